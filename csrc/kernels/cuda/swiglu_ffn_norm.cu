// Gate and norm of swiglu_ffn_norm on CUDA, forward and backward (formulas: ../swiglu_ffn_norm.h).
//
// The gate takes a thread for 16 bytes. The norm takes a warp for each row, which reads the row again from cache and
// computes in float32. The sums over rows, for the norm's own gradients, take a block for each run of rows and a thread
// for each column, and add in order of rows.
#include "../swiglu_ffn_norm_cuda.h"

#include <initializer_list>
#include <type_traits>

#include "tile.cuh"

namespace stca {
namespace {

using namespace cuda;

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;

STCA_DEVICE float sigmoid(float x) { return 1 / (1 + expf(-x)); }

// The vector of g [rows, hidden] that this thread owns. Its u has the same column in uv, its v one that is `hidden`
// further on.
template <class T>
struct Place {
  int64_t row;
  int column, count;
  STCA_DEVICE Place(int64_t rows, int hidden) {
    const int vectors = (hidden + kVector<T> - 1) / kVector<T>;
    const int64_t at = int64_t(blockIdx.x) * kThreads + int64_t(threadIdx.x);
    row = at / vectors;
    column = int(at % vectors) * kVector<T>;
    count = row < rows ? min(kVector<T>, hidden - column) : 0;
  }
};

template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads) swiglu_fwd_kernel(const T* uv, T* g, const int64_t rows, const int hidden) {
  const Place<T> at(rows, hidden);
  if (at.count <= 0) return;
  const T* u = uv + at.row * 2 * hidden + at.column;
  float up[kVector<T>], x[kVector<T>];
  load_vector(u, at.count, kAligned, up);
  load_vector(u + hidden, at.count, kAligned, x);
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) up[i] *= x[i] * sigmoid(x[i]);
  store_vector(up, at.count, kAligned, g + at.row * hidden + at.column);
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    swiglu_bwd_kernel(T* uv, const T* dg, const int64_t rows, const int hidden) {
  const Place<T> at(rows, hidden);
  if (at.count <= 0) return;
  T* u = uv + at.row * 2 * hidden + at.column;
  float up[kVector<T>], x[kVector<T>], d[kVector<T>];
  load_vector(u, at.count, kAligned, up);
  load_vector(u + hidden, at.count, kAligned, x);
  load_vector(dg + at.row * hidden + at.column, at.count, kAligned, d);
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) {
    const float s = sigmoid(x[i]);
    const float dv = d[i] * up[i] * s * (1 + x[i] * (1 - s));
    up[i] = d[i] * x[i] * s;
    x[i] = dv;
  }
  store_vector(up, at.count, kAligned, u);
  store_vector(x, at.count, kAligned, u + hidden);
}

STCA_DEVICE float sum_of_warp(float value) {
  for (int by = 1; by < kWarp; by *= 2) value += shuffle_xor(value, by);
  return value;
}

// Calls f(column, count) for the vectors of a row that this lane owns.
template <class T, class F>
STCA_DEVICE void for_vectors(int64_t dim, F f) {
  for (int64_t d = int64_t(threadIdx.x) % kWarp * kVector<T>; d < dim; d += kWarp * kVector<T>) {
    f(d, int(min(int64_t(kVector<T>), dim - d)));
  }
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads) layer_norm_fwd_kernel(const NormParams p, T* y) {
  const int64_t row = int64_t(blockIdx.x) * kWarps + int(threadIdx.x) / kWarp;
  if (row >= p.num_rows) return;
  const T* h = static_cast<const T*>(p.h) + row * p.dim;
  const T *weight = static_cast<const T*>(p.weight), *bias = static_cast<const T*>(p.bias);
  float x[kVector<T>], sum = 0, squares = 0;
  for_vectors<T>(p.dim, [&](int64_t d, int n) {
    load_vector(h + d, n, kAligned, x);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) sum += x[i];
  });
  const float mean = sum_of_warp(sum) / float(p.dim);
  for_vectors<T>(p.dim, [&](int64_t d, int n) {
    load_vector(h + d, n, kAligned, x);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) squares += i < n ? (x[i] - mean) * (x[i] - mean) : 0.0f;
  });
  const float rstd = 1 / sqrtf(sum_of_warp(squares) / float(p.dim) + float(p.eps));
  if (int(threadIdx.x) % kWarp == 0) {
    p.mean[row] = mean;
    p.rstd[row] = rstd;
  }
  for_vectors<T>(p.dim, [&](int64_t d, int n) {
    float w[kVector<T>], b[kVector<T>] = {};
    load_vector(h + d, n, kAligned, x);
    load_vector(weight + d, n, kAligned, w);
    if (bias != nullptr) load_vector(bias + d, n, kAligned, b);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) x[i] = (x[i] - mean) * rstd * w[i] + b[i];
    store_vector(x, n, kAligned, y + row * p.dim + d);
  });
}

// dh = rstd * (a - mean(a) - (xhat - mean(xhat)) * mean(a * xhat)) with a = dy * weight. Where h is large beside its
// deviation, rounding leaves xhat a mean, which is taken off, so that the sum of dh is 0 as it must be.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads) layer_norm_bwd_kernel(const NormParams p, const T* dy, T* dh) {
  const int64_t row = int64_t(blockIdx.x) * kWarps + int(threadIdx.x) / kWarp;
  if (row >= p.num_rows) return;
  const T *h = static_cast<const T*>(p.h) + row * p.dim, *weight = static_cast<const T*>(p.weight);
  // Divided here, for each division is a call: between the loops, ptxas for Hopper spills a register to make it.
  const float mean = p.mean[row], rstd = p.rstd[row], inverse = 1 / float(p.dim);
  float a[kVector<T>], xhat[kVector<T>], w[kVector<T>];
  auto load = [&](int64_t d, int n) {
    load_vector(dy + row * p.dim + d, n, kAligned, a);
    load_vector(weight + d, n, kAligned, w);
    load_vector(h + d, n, kAligned, xhat);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      a[i] *= w[i];
      xhat[i] = i < n ? (xhat[i] - mean) * rstd : 0.0f;
    }
  };
  float sum = 0, dot = 0, xhats = 0;
  for_vectors<T>(p.dim, [&](int64_t d, int n) {
    load(d, n);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      sum += a[i];
      dot += a[i] * xhat[i];
      xhats += xhat[i];
    }
  });
  const float a_mean = sum_of_warp(sum) * inverse, dot_mean = sum_of_warp(dot) * inverse;
  const float xhat_mean = sum_of_warp(xhats) * inverse;
  for_vectors<T>(p.dim, [&](int64_t d, int n) {
    load(d, n);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) a[i] = rstd * (a[i] - a_mean - (xhat[i] - xhat_mean) * dot_mean);
    store_vector(a, n, kAligned, dh + row * p.dim + d);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    layer_norm_bwd_sums_kernel(const NormParams p, const T* dy, const int64_t pieces, float* part_sums) {
  const int64_t part = int64_t(blockIdx.x) / pieces;
  const int64_t d = int64_t(blockIdx.x) % pieces * kThreads + int64_t(threadIdx.x);
  if (d >= p.dim) return;
  const int64_t begin = part * kNormPartRows, end = min(p.num_rows, begin + kNormPartRows);
  float weight = 0, bias = 0;
  for (int64_t row = begin; row < end; ++row) {
    const float grad = widen(dy[row * p.dim + d]);
    weight += grad * (widen(static_cast<const T*>(p.h)[row * p.dim + d]) - p.mean[row]) * p.rstd[row];
    bias += grad;
  }
  part_sums[2 * part * p.dim + d] = weight;
  part_sums[(2 * part + 1) * p.dim + d] = bias;
}

// Returns f(true_type) where rows of so many bytes start at multiples of 16 in all tensors, else f(false_type). The
// kernel knows it when it is compiled, so that no load waits for the one before.
template <class F>
const char* by_alignment(int64_t row_bytes, std::initializer_list<const void*> tensors, F f) {
  uintptr_t bits = uintptr_t(row_bytes);
  for (const void* tensor : tensors) bits |= reinterpret_cast<uintptr_t>(tensor);
  return bits % 16 == 0 ? f(std::true_type()) : f(std::false_type());
}

}  // namespace

const char* swiglu_gate_cuda(Dtype dtype, const void* uv, void* g, int64_t rows, int64_t hidden, void* stream) {
  return visit_cuda_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::element;
    return by_alignment(hidden * int64_t(sizeof(T)), {uv, g}, [&](auto aligned) {
      return launch("swiglu gate", &swiglu_fwd_kernel<T, decltype(aligned)::value>,
                    {divide_up(rows * divide_up(hidden, kVector<T>), kThreads), kThreads}, static_cast<Stream>(stream),
                    static_cast<const T*>(uv), static_cast<T*>(g), rows, int(hidden));
    });
  });
}

const char* swiglu_gate_backward_cuda(Dtype dtype, void* uv, const void* dg, int64_t rows, int64_t hidden,
                                      void* stream) {
  return visit_cuda_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::element;
    return by_alignment(hidden * int64_t(sizeof(T)), {uv, dg}, [&](auto aligned) {
      return launch("swiglu gate backward", &swiglu_bwd_kernel<T, decltype(aligned)::value>,
                    {divide_up(rows * divide_up(hidden, kVector<T>), kThreads), kThreads}, static_cast<Stream>(stream),
                    static_cast<T*>(uv), static_cast<const T*>(dg), rows, int(hidden));
    });
  });
}

const char* norm_cuda(const NormParams& p, void* y, void* stream) {
  return visit_cuda_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::element;
    return by_alignment(p.dim * int64_t(sizeof(T)), {p.h, p.weight, p.bias, y}, [&](auto aligned) {
      return launch("swiglu norm", &layer_norm_fwd_kernel<T, decltype(aligned)::value>,
                    {divide_up(p.num_rows, kWarps), kThreads}, static_cast<Stream>(stream), p, static_cast<T*>(y));
    });
  });
}

const char* norm_backward_cuda(const NormParams& p, const void* dy, void* dh, float* part_sums, void* stream) {
  return visit_cuda_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::element;
    const int64_t pieces = divide_up(p.dim, kThreads), parts = divide_up(p.num_rows, kNormPartRows);
    // These sums come first, for dh may take the place of h.
    const char* error = launch("swiglu norm sums", &layer_norm_bwd_sums_kernel<T>, {parts * pieces, kThreads},
                               static_cast<Stream>(stream), p, static_cast<const T*>(dy), pieces, part_sums);
    if (error != nullptr) return error;
    return by_alignment(p.dim * int64_t(sizeof(T)), {p.h, p.weight, dy, dh}, [&](auto aligned) {
      return launch("swiglu norm backward", &layer_norm_bwd_kernel<T, decltype(aligned)::value>,
                    {divide_up(p.num_rows, kWarps), kThreads}, static_cast<Stream>(stream), p,
                    static_cast<const T*>(dy), static_cast<T*>(dh));
    });
  });
}

#if !defined(STCA_SM90)  // no call is taken where sm90/ffn.cu is not compiled
bool ffn_products_cuda_take(Dtype, int64_t, int64_t, int64_t, const CudaDevice&) { return false; }
int ffn_weight_splits(int64_t, int64_t, const CudaDevice&) { return 1; }
const char* ffn_product_cuda(FfnProduct, const FfnProductParams&, const CudaDevice&, void*) {
  return "Hopper's kernels are not built";
}
#endif

}  // namespace stca
