// Backward pass of target_attention on CUDA: the order of its kernels, what comes before and after the two that hold
// the products (target_attention_backward_dkv.cu and _dq.cu), and the workspace.
#if defined(STCA_SM90)
#include "sm90/target_attention.h"
#endif
#include "combine.cuh"
#include "target_attention_backward.cuh"

namespace stca {
namespace cuda {
namespace {

constexpr int kWarps = 4;

// delta = dout . out - dlse, and what else turns scores into weights: one warp for each (target, head).
template <class T>
__global__ void __launch_bounds__(kWarps* kWarp)
    target_attention_bwd_preprocess_kernel(const TargetAttentionBackwardParams b, Weighing* weighing) {
  const TargetAttentionParams& p = b.forward;
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t at = int64_t(blockIdx.x) * kWarps + int(threadIdx.x) / kWarp;
  if (at >= p.num_targets * p.heads) return;
  float sum = 0;
  for (int64_t d = lane; d < p.value_dim; d += kWarp) {
    const int64_t i = at * p.value_dim + d;
    sum += widen(static_cast<const T*>(b.dout)[i]) * widen(static_cast<const T*>(p.out)[i]);
  }
  for (int by = 1; by < kWarp; by *= 2) sum += shuffle_xor(sum, by);
  if (lane != 0) return;
  const float* max_and_sum = static_cast<const float*>(p.max_and_sum) + 2 * at;
  const float dlse = b.dlse == nullptr ? 0.0f : static_cast<const float*>(b.dlse)[at];
  weighing[at] = {max_and_sum[0], inverse(max_and_sum[1]), sum - dlse, 0};
}

// Adds up the partial dq of a query row whose tile several ranges share, in order of splits.
template <class T>
__global__ void __launch_bounds__(kCombineThreads)
    target_attention_bwd_dq_combine_kernel(const TargetAttentionBackwardParams b, const Tiling tiling,
                                           const Schedule schedule, const float* partials, const Combine combine) {
  const TargetAttentionParams& p = b.forward;
  const int64_t number = blockIdx.x / combine.parts;
  if (number >= schedule.combine_begin[tiling.num_ranges]) return;
  const SplitRow row = split_row(p, tiling, schedule, number);
  T* dq = static_cast<T*>(b.dq) + row.index * p.key_dim;
  add_splits(
      row, partials, p.key_dim, combine, int(blockIdx.x % combine.parts), [](int64_t) { return 1.0f; },
      [&](int d, float sum) { narrow(sum, dq[d]); });
}

const char* launch_preprocess(const TargetAttentionBackwardParams& b, Weighing* weighing, Stream stream) {
  const int64_t blocks = divide_up(b.forward.num_targets * b.forward.heads, kWarps);
  return visit_cuda_dtype(b.forward.dtype, [&](auto type) {
    return launch("target_attention weighing",
                  &target_attention_bwd_preprocess_kernel<typename decltype(type)::element>, {blocks, kWarps * kWarp},
                  stream, b, weighing);
  });
}

// Workspace: how the call is cut, by one kernel after the other, then the weighing of query rows, then partial dq.
int64_t max_schedule_bytes(const TargetAttentionParams& p, const CudaDevice& device) {
  return aligned_bytes(schedule_bytes(p.num_requests, kMaxBlocks * device.multiprocessors));
}
int64_t weighing_bytes(const TargetAttentionParams& p) {
  return aligned_bytes(p.num_targets * p.heads * int64_t(sizeof(Weighing)));
}

// Bytes of ds that all blocks keep, and rows of partial dq, at most.
int64_t kept_bytes(const TargetAttentionParams& p, const CudaDevice& device) {
  int64_t blocks = dkv_tiling(p, device).num_ranges;
#if defined(STCA_SM90)
  if (sm90::takes(p, device)) blocks = max(blocks, sm90::kept_blocks(p, device));
#endif
  return blocks * kKeptBytes;
}
int64_t partial_rows(const TargetAttentionParams& p, const CudaDevice& device) {
  const Tiling history = dkv_tiling(p, device), queries = dq_tiling(p, device, history.tile_rows);
  int64_t rows = max(max_partial_rows(history), max_partial_rows(queries));
#if defined(STCA_SM90)
  if (sm90::takes(p, device)) rows = max(rows, sm90::partial_rows(p, device));
#endif
  return rows;
}

}  // namespace

const char* launch_combine_dq(const TargetAttentionBackwardParams& b, const Tiling& tiling, const Schedule& schedule,
                              const float* partials, Stream stream) {
  const Combine rows = combine_of(b.forward, tiling, b.forward.key_dim);
  return visit_cuda_dtype(b.forward.dtype, [&](auto type) {
    return launch("target_attention combine of dq",
                  &target_attention_bwd_dq_combine_kernel<typename decltype(type)::element>,
                  {rows.grid(), kCombineThreads, kCombineBytes}, stream, b, tiling, schedule, partials, rows);
  });
}

}  // namespace cuda

int target_attention_backward_cuda_shared_bytes(const TargetAttentionParams& params) {
  return cuda::max(cuda::dkv_shared_bytes(params), cuda::dq_shared_bytes(params));
}

int64_t target_attention_backward_cuda_workspace(const TargetAttentionParams& params, const CudaDevice& device) {
  return cuda::max_schedule_bytes(params, device) + cuda::weighing_bytes(params) + cuda::kept_bytes(params, device) +
         cuda::partial_rows(params, device) * params.key_dim * int64_t(sizeof(float));
}

const char* target_attention_backward_cuda(const TargetAttentionBackwardParams& params, const CudaDevice& device,
                                           void* workspace, void* stream) {
  using namespace cuda;
  const Stream to = static_cast<Stream>(stream);
  char* memory = static_cast<char*>(workspace) + max_schedule_bytes(params.forward, device);
  auto* weighing = reinterpret_cast<Weighing*>(memory);
  char* ds = memory + weighing_bytes(params.forward);
  const Kept kept{ds, reinterpret_cast<float*>(ds + kept_bytes(params.forward, device))};
  if (const char* error = launch_preprocess(params, weighing, to)) return error;
#if defined(STCA_SM90)
  if (sm90::takes_backward(params, device)) {
    return sm90::launch_backward(params, device, workspace, weighing, kept, to);
  }
#endif
  const Tiling history = dkv_tiling(params.forward, device);
  return launch_products(
      params, history, dq_tiling(params.forward, device, history.tile_rows), workspace, kept.partials, to,
      [&](const Tiling& tiling, const Schedule& schedule) {
        return launch_dkv(params, tiling, schedule, weighing, kept, to);
      },
      [&](const Tiling& tiling, const Schedule& schedule) {
        return launch_dq(params, tiling, schedule, weighing, kept.partials, to);
      });
}

}  // namespace stca
