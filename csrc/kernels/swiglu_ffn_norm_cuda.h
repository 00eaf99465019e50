// What swiglu_ffn_norm does on CUDA beside its matrix products, on a chunk of rows. Formulas: swiglu_ffn_norm.h.
// Tensors are contiguous, and streams are a cudaStream_t. Every function returns nullptr, or the message of the CUDA
// error.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace stca {

// Writes g = u * silu(v) [rows, hidden]; u and v lie side by side in uv [rows, 2 hidden].
const char* swiglu_gate_cuda(Dtype dtype, const void* uv, void* g, int64_t rows, int64_t hidden, void* stream);

// Writes du = dg * silu(v) over u, and dv = dg * u * silu'(v) over v.
const char* swiglu_gate_backward_cuda(Dtype dtype, void* uv, const void* dg, int64_t rows, int64_t hidden,
                                      void* stream);

struct NormParams {
  Dtype dtype;
  int64_t num_rows, dim;
  double eps;
  const void* h;       // [num_rows, D]
  const void* weight;  // [D]
  const void* bias;    // [D]; nullptr: zero
  float* mean;         // [num_rows]
  float* rstd;         // [num_rows]
};

// Writes y = (h - mean) * rstd * weight + bias [num_rows, D], and mean and rstd.
const char* norm_cuda(const NormParams& params, void* y, void* stream);

// Writes dh [num_rows, D] from dy, and the sums of dy * xhat and of dy over each run of kNormPartRows rows,
// [parts, 2, D].
constexpr int64_t kNormPartRows = 64;
const char* norm_backward_cuda(const NormParams& params, const void* dy, void* dh, float* part_sums, void* stream);

}  // namespace stca
