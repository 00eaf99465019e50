// What the forward and the backward pass of swiglu_ffn_norm share: a tile's rows, and the network up to h.
#pragma once

#include "../swiglu_ffn_norm.h"
#include "matmul.h"

namespace stca {
namespace STCA_ISA {

// A matrix in panels, from its row `k` on and from the panel of its column `j` on (a multiple of kPanel).
template <class A>
Panels<A> panels_from(const void* packed, int64_t rows, int64_t k, int64_t j) {
  return {static_cast<const A*>(packed) + j * rows + k * kPanel<A>, rows * kPanel<A>, kPanel<A>, true};
}

// Rows of a [N, D] tensor in the accumulation type: the tensor's own where no conversion is needed.
template <class T>
Strided<accumulator_t<T>> load_rows(const void* tensor, int64_t stride, int64_t width, int64_t row_begin, int64_t rows,
                                    accumulator_t<T>* buffer) {
  const T* from = static_cast<const T*>(tensor) + row_begin * stride;
  if constexpr (sizeof(T) == sizeof(accumulator_t<T>)) {
    return {from, stride, 1};
  } else {
    for (int64_t i = 0; i < rows; ++i) widen<T>(from + i * stride, buffer + i * width, width);
    return {buffer, width, 1};
  }
}

// u and v [rows, F] of a tile, with row stride `stride`.
template <class A>
void project_up(const SwigluFfnNormParams& p, Strided<A> x, int64_t rows, A* u, A* v, int64_t stride) {
  const int64_t hidden = whole_panels<A>(p.hidden);
  multiply<A>(rows, hidden, p.dim, x, panels_from<A>(p.w_u, p.dim, 0, 0), u, stride, false);
  multiply<A>(rows, hidden, p.dim, x, panels_from<A>(p.w_v, p.dim, 0, 0), v, stride, false);
}

// g = u * silu(v); may be u itself.
template <class A>
void gate(const A* u, const A* v, A* g, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<A>) {
    const vec_t<A> x = load(v + i);
    store(g + i, load(u + i) * x * sigmoid<A>(x));
  }
}

// h [rows, D] of a tile from g [rows, F].
template <class A>
void project_down(const SwigluFfnNormParams& p, const A* g, int64_t g_stride, int64_t rows, A* h, int64_t h_stride) {
  multiply<A>(rows, whole_panels<A>(p.dim), p.hidden, {g, g_stride, 1}, panels_from<A>(p.w_o, p.hidden, 0, 0), h,
              h_stride, false);
}

}  // namespace STCA_ISA
}  // namespace stca
