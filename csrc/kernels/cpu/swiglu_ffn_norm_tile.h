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

// u and v [rows, F] of a tile, with row stride `stride`.
template <class S, class A>
void project_up(const SwigluFfnNormParams& p, Rows<S> x, int64_t rows, A* u, A* v, int64_t stride) {
  const int64_t hidden = whole_panels<A>(p.hidden);
  const Strided<operand_t<S>> left = by_rows(x.data, x.stride);
  multiply<S>(rows, hidden, p.dim, left, packed<S>(p.w_u, p.dim), u, stride, false);
  multiply<S>(rows, hidden, p.dim, left, packed<S>(p.w_v, p.dim), v, stride, false);
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
template <class S, class A>
void project_down(const SwigluFfnNormParams& p, const A* g, int64_t g_stride, int64_t rows, void* rounded, A* h,
                  int64_t h_stride) {
  multiply<S>(rows, whole_panels<A>(p.dim), p.hidden,
              by_rows(round_rows<S>(g, rows, p.hidden, g_stride, rounded), g_stride), packed<S>(p.w_o, p.hidden), h,
              h_stride, false);
}

}  // namespace STCA_ISA
}  // namespace stca
