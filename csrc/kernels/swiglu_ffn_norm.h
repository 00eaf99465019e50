// The history path of one STCA layer, row by row: a gated feed-forward network and a layer norm, on raw pointers.
//
//   u = x w_u    v = x w_v    g = u * silu(v)    h = g w_o    y = (h - mean(h)) * rstd(h) * norm_weight + norm_bias
//
// with rstd(h) = 1 / sqrt(var(h) + eps); y = h without a norm. Only a tile of rows of u, v and g exists at a time, save
// where u, v and h are to be kept for the backward pass.
// Source: docs/mathematics.md, arXiv 2511.06077. Letters of shapes: docs/glossary.md.
#pragma once

#include <cstdint>

#include "cpu_isa.h"
#include "dtype.h"

namespace stca {

struct SwigluFfnNormParams {
  Dtype dtype;
  int64_t num_rows;   // N
  int64_t dim;        // D
  int64_t hidden;     // F
  int64_t tile_rows;  // swiglu_ffn_norm_tile_rows()
  double eps;
  bool norm;

  const void* x;  // [N, D], last dimension contiguous
  int64_t x_stride;

  // True: in panels made by pack_panels(), where zeros fill up the last one. False: contiguous, as they were given.
  bool in_panels;
  const void* w_u;  // [D, F]
  const void* w_v;  // [D, F]
  const void* w_o;  // [F, D]; of these three a backward pass reads none where uv and h were kept

  // In the accumulation type, filled up with zeros to a whole panel; not read without a norm.
  const void* norm_weight;  // [D]
  const void* norm_bias;    // [D]

  void* y;     // [N, D] contiguous
  void* mean;  // [N] of h, accumulation type
  void* rstd;  // [N] of h, accumulation type

  // What the backward pass gets of the forward pass; nullptr: nothing, it computes them again.
  void* uv;  // [N, 2 F] contiguous: a row of u, then one of v
  void* h;   // [N, D] contiguous, accumulation type: y is the same, kept or not; not used without a norm
};

// `forward.mean` and `forward.rstd` are inputs here, `forward.uv` and `forward.h` where they were kept, and
// `forward.y`, nullptr where it does not spare h.
struct SwigluFfnNormBackwardParams {
  SwigluFfnNormParams forward;
  const int64_t* rows;  // [M] ascending: the rows that have a gradient, all that is read and written; nullptr: all
  const void* w_u_t;    // [F, D] in panels; not read without dx
  const void* w_v_t;    // [F, D] in panels; not read without dx
  const void* w_o_t;    // [D, F] in panels
  const void* dy;       // [N, D] contiguous
  void* dx;             // [N, D] contiguous; nullptr: not wanted
};

// Rows of one tile of a call of `rows`: threads have equally many tiles, or nearly, of equally many rows. In a backward
// pass each thread at work has gradients of the weights of its own, so fewer threads share few rows.
int64_t swiglu_ffn_norm_tile_rows(int64_t dim, int64_t hidden, int64_t rows, int64_t threads, bool backward);

// Elements of the accumulation type that hold a matrix [rows, columns] in panels, for any instruction set.
constexpr int64_t kWidestPanel = 32;  // AVX-512 in float
int64_t panels_capacity(int64_t rows, int64_t columns);

// Where each gradient lies in one partial result of the weights' gradients, [size] of the accumulation type; the norm's
// are filled up to whole panels.
struct SwigluFfnNormWeightGrads {
  int64_t w_u, w_v, w_o, norm_weight, norm_bias, size;
};
SwigluFfnNormWeightGrads swiglu_ffn_norm_weight_grads(const SwigluFfnNormParams& params);

// Element (i, j) of the matrix [rows, columns] is at from[i * row_stride + j * column_stride]. Packs the columns from
// `begin` on, a multiple of kWidestPanel, up to `end`.
STCA_DECLARE_CPU_KERNEL(void, pack_panels, Dtype dtype, const void* from, int64_t rows, int64_t columns,
                        int64_t row_stride, int64_t column_stride, int64_t begin, int64_t end, void* to)

// Bytes of scratch memory that a thread needs, as the same instruction set's kernels of rows lay it out.
STCA_DECLARE_CPU_KERNEL(int64_t, swiglu_ffn_norm_scratch, const SwigluFfnNormParams& params)
STCA_DECLARE_CPU_KERNEL(int64_t, swiglu_ffn_norm_backward_scratch, const SwigluFfnNormParams& params)

// Rows [row_begin, row_end).
STCA_DECLARE_CPU_KERNEL(void, swiglu_ffn_norm_rows, const SwigluFfnNormParams& params, int64_t row_begin,
                        int64_t row_end, void* scratch)

// has[i]: whether row i of dy [N, D], contiguous, has an element that is neither 0 nor -0, for i in [begin, end).
STCA_DECLARE_CPU_KERNEL(void, find_gradients, Dtype dtype, const void* dy, int64_t dim, int64_t begin, int64_t end,
                        bool* has)

// The rows that places [begin, end) of `params.rows` name; `weight_grads` is set to their part of the weights'
// gradients.
STCA_DECLARE_CPU_KERNEL(void, swiglu_ffn_norm_backward_rows, const SwigluFfnNormBackwardParams& params, int64_t begin,
                        int64_t end, void* weight_grads, void* scratch)

// to[i] = sum over p of partials[p][offset + i], in order of p, for i in [0, size).
STCA_DECLARE_CPU_KERNEL(void, sum_partials, Dtype dtype, const void* const* partials, int64_t count, int64_t offset,
                        int64_t size, void* to)

}  // namespace stca
