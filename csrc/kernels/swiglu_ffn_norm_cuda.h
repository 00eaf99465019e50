// What swiglu_ffn_norm does on CUDA beside its matrix products, on a chunk of rows. Formulas: swiglu_ffn_norm.h.
// Tensors are contiguous, and streams are a cudaStream_t. Every function returns nullptr, or the message of the CUDA
// error.
#pragma once

#include <cstdint>

#include "cuda_device.h"
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

// ---- Hopper's own products, with what follows each of them in the same kernel.

enum class FfnProduct {
  kGate,          // g = u * silu(v) [n, F] with [u, v] = x w_uv, and uv [n, 2 F] where it is wanted
  kDown,          // h = g w_o [n, D]
  kGateBackward,  // du and dv over u and v, with dg = dh w_o^T
  kInput,         // dx = [du, dv] w_uv^T [n, D]
  kWeights        // sums += left^T right [splits, M, C] in float32, each of another run of rows: x and duv, or g and dh
};

// [rows, columns] = left right, contracted over `depth`. All but `left` is contiguous.
struct FfnProductParams {
  Dtype dtype;
  int64_t rows, columns, depth;  // columns of one of u and v where these are two
  const void* left;              // [rows, depth]; kWeights: [depth, rows]
  int64_t left_stride;
  const void* right;  // [depth, columns]; kGate: [depth, 2 columns]; kGateBackward and kInput: [columns, depth]
  void* to;           // [rows, columns]; kGateBackward: uv [rows, 2 columns]; kWeights: float [splits, rows, columns]
  void* uv;           // kGate: [rows, 2 columns]; nullptr: not wanted
  int splits;         // of kWeights: ffn_weight_splits()
};

// Whether they take a call of N rows whose tensors are aligned as theirs must be: rows start at multiples of 16 bytes.
bool ffn_products_cuda_take(Dtype dtype, int64_t num_rows, int64_t dim, int64_t hidden, const CudaDevice& device);

// Among how many runs of rows the gradient of a weight [rows, columns] is split, so that no multiprocessor is idle.
int ffn_weight_splits(int64_t rows, int64_t columns, const CudaDevice& device);

const char* ffn_product_cuda(FfnProduct product, const FfnProductParams& params, const CudaDevice& device,
                             void* stream);

}  // namespace stca
