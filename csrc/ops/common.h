// What every op needs to turn tensors into plain structs: checks with one form of message, and the thread pool.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <atomic>
#include <optional>

#include "../kernels/dtype.h"

namespace stca {

// Whether the CUDA kernels are linked. Only files that are compiled with them (*_cuda.cpp) define what is called behind
// `if constexpr (kWithCuda)`.
#if defined(STCA_WITH_CUDA)
constexpr bool kWithCuda = true;
#else
constexpr bool kWithCuda = false;
#endif

// Raises ValueError "op: what was expected, what came", e.g. "target_attention: q must be [T, H, Dk], got [4, 8]".
#define STCA_CHECK(condition, op, ...) TORCH_CHECK_VALUE(condition, op, ": ", __VA_ARGS__)

// Returns the tensor's element type, which must be one that its device's kernels take.
Dtype checked_dtype(const char* op, const char* name, const at::Tensor& tensor);
void check_dims(const char* op, const char* name, const at::Tensor& tensor, const char* shape, int64_t dims);
void check_same(const char* op, const char* name, const at::Tensor& tensor, const char* model_name,
                const at::Tensor& model);

// Whether the CUDA kernels take the tensor. (The machine of tests/ptx, which runs them on the CPU, brings its own
// answer.)
bool runs_on_cuda(const at::Tensor& tensor);

// Returns integers on the CPU where their values are to be checked, else nothing: to look at those on a GPU would wait
// for it, which is done only with STCA_DEBUG=1 in the environment.
std::optional<at::Tensor> values_to_check(const at::Tensor& integers);

// Returns an int32 or int64 tensor, which must be on the device of `rows`, as contiguous int64.
at::Tensor checked_integers(const char* op, const char* name, const at::Tensor& tensor, const char* rows_name,
                            const at::Tensor& rows);

// Returns offsets [R + 1] as contiguous int64. They must be on the device of `rows`, start at 0, never decrease and end
// at `total`, the number of rows of `rows_name`; without a total they may end at any number.
at::Tensor checked_offsets(const char* op, const char* name, const at::Tensor& offsets, std::optional<int64_t> total,
                           const char* rows_name, const at::Tensor& rows);

// float64 for float64, float32 for everything else.
at::ScalarType accumulation_type(const at::Tensor& tensor);

// Returns the tensor itself if its last dimension is contiguous, else a contiguous copy. Kernels take any other stride.
at::Tensor with_contiguous_rows(const at::Tensor& tensor);

// Calls work(item, scratch) once for each item in [0, count) on the threads of at::parallel_for, each thread with
// `scratch_bytes` of its own. A free thread takes the next item, so items are best sorted by falling cost. Calls one
// after the other may share memory in `kept`, so that its pages are brought in once.
template <class Work>
void for_each_item(int64_t count, int64_t scratch_bytes, const Work& work, at::Tensor* kept = nullptr) {
  if (count == 0) return;
  const int64_t threads = std::min<int64_t>(count, at::get_num_threads());
  const int64_t stride = (scratch_bytes + 63) / 64 * 64;
  at::Tensor own, &scratch = kept == nullptr ? own : *kept;
  if (!scratch.defined() || scratch.numel() < threads * stride) scratch = at::empty({threads * stride}, at::kByte);
  char* memory = static_cast<char*>(scratch.mutable_data_ptr());
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      for (int64_t item; (item = next.fetch_add(1)) < count;) work(item, memory + thread * stride);
    }
  });
}

}  // namespace stca
