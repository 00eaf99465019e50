// What the forward and the backward pass of swiglu_ffn_norm share: a tile's rows, and the network up to h.
#pragma once

#include "../swiglu_ffn_norm.h"
#include "matmul.h"
#include "scratch.h"

namespace stca {
namespace STCA_ISA {

// A matrix of `rows` rows as pack_panels() left it.
template <class S>
Panels<operand_t<S>> packed(const void* panels, int64_t rows) {
  return {static_cast<const operand_t<S>*>(panels), operands<S>(rows)};
}

// Rows of a [N, D] tensor for a tile, and their stride: the tensor's own where they lie one after the other and are
// multiplied as they are. `row_at(i)` is the tile's row i in the tensor, in ascending order.
template <class T, class RowAt>
Rows<tile_t<T>> load_rows(const void* tensor, int64_t stride, int64_t width, int64_t rows, tile_t<T>* buffer,
                          RowAt row_at) {
  using S = tile_t<T>;
  const int64_t padded_width = whole_operands<S>(width);
  const T* from = static_cast<const T*>(tensor);
  if constexpr (sizeof(T) == sizeof(S)) {
    const bool together = row_at(rows - 1) - row_at(0) == rows - 1;
    if (together && width == padded_width && stride % kTerms<S> == 0) return {from + row_at(0) * stride, stride};
  }
  for (int64_t i = 0; i < rows; ++i) load_row<T>(from + row_at(i) * stride, width, buffer + i * padded_width);
  return {buffer, padded_width};
}

// c [rows, columns] = a w of a tile, where w is [depth, columns] as the call has it; zeros behind the columns.
template <class T>
void multiply_by_weight(const SwigluFfnNormParams& p, int64_t rows, int64_t columns, int64_t depth,
                        Strided<operand_t<tile_t<T>>> a, const void* w, accumulator_t<T>* c, int64_t c_row) {
  using S = tile_t<T>;
  if (p.in_panels) {
    const int64_t whole = whole_panels<accumulator_t<T>>(columns);
    return multiply<S>(rows, whole, depth, a, packed<S>(w, depth), c, c_row, false);
  }
  multiply<S>(rows, columns, depth, a, Streamed<T>{static_cast<const T*>(w), columns}, c, c_row, false);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = columns; j < c_row; ++j) c[i * c_row + j] = 0;
  }
}

// u and v [rows, F] of a tile, with row stride `stride`.
template <class T>
void project_up(const SwigluFfnNormParams& p, Rows<tile_t<T>> x, int64_t rows, accumulator_t<T>* u, accumulator_t<T>* v,
                int64_t stride) {
  const auto left = by_rows(x.data, x.stride);
  multiply_by_weight<T>(p, rows, p.hidden, p.dim, left, p.w_u, u, stride);
  multiply_by_weight<T>(p, rows, p.hidden, p.dim, left, p.w_v, v, stride);
}

// g = u * silu(v); may be u itself.
template <class A>
void gate(const A* u, const A* v, A* g, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<A>) {
    const vec_t<A> x = load(v + i);
    store(g + i, load(u + i) * x * sigmoid<A>(x));
  }
}

// h [rows, D] of a tile from g [rows, F]; `rounded` has half the room of g, and may be g itself.
template <class T>
void project_down(const SwigluFfnNormParams& p, const accumulator_t<T>* g, int64_t g_stride, int64_t rows,
                  void* rounded, accumulator_t<T>* h, int64_t h_stride) {
  const auto left = by_rows(round_rows<tile_t<T>>(g, rows, p.hidden, g_stride, rounded), g_stride);
  multiply_by_weight<T>(p, rows, p.dim, p.hidden, left, p.w_o, h, h_stride);
}

}  // namespace STCA_ISA
}  // namespace stca
