// Forward pass of target_attention on CUDA: which kernel takes a call, and those for rows of the call's type.
#if defined(STCA_SM90)
#include "sm90/target_attention.h"
#endif
#include "target_attention_forward.cuh"

namespace stca {
namespace cuda {
namespace {

// Adds up the partial results of a query row whose tile several ranges share, weighted, in order of splits. Each warp
// finds the weights for itself: that is less than a barrier.
template <class T>
__global__ void __launch_bounds__(kCombineThreads)
    target_attention_fwd_combine_kernel(const TargetAttentionParams p, const Tiling tiling, const Schedule schedule,
                                        const Partials partials, const Combine combine) {
  const int part = int(blockIdx.x % combine.parts), lane = int(threadIdx.x) % kWarp;
  const int64_t number = blockIdx.x / combine.parts;
  if (number >= schedule.combine_begin[tiling.num_ranges]) return;
  const SplitRow row = split_row(p, tiling, schedule, number);
  const auto state = [&](int s) { return partials.max_and_sum + 2 * row.partial(s); };
  float row_max = -kInfinity, row_sum = 0;
  for (int s = lane; s < row.splits; s += kWarp) row_max = max(row_max, state(s)[0]);
  for (int by = 1; by < kWarp; by *= 2) row_max = max(row_max, shuffle_xor(row_max, by));
  const float shift = row_max == -kInfinity ? 0.0f : row_max;
  for (int s = lane; s < row.splits; s += kWarp) row_sum += state(s)[1] * exp2f(state(s)[0] - shift);
  for (int by = 1; by < kWarp; by *= 2) row_sum += shuffle_xor(row_sum, by);

  if (part == 0 && threadIdx.x == 0) write_max_and_sum(p, row.index, row_max, row_sum);

  T* out = static_cast<T*>(p.out) + row.index * p.value_dim;
  const float scale = inverse(row_sum);
  add_splits(
      row, partials.sums, p.value_dim, combine, part,
      [&](int64_t partial) { return exp2f(partials.max_and_sum[2 * partial] - shift); },
      [&](int d, float sum) { narrow(sum * scale, out[d]); });
}

template <class T, int kWidth, bool kShared>
using Rows = Forward<T, kWidth, kShared, T>;
template <class T, int kWidth, bool kShared>
using Few = ForFewRows<T, kWidth, kShared, T>;

// Returns f(LayoutOf<F>()) for the layout of the kernel that takes the call.
template <class Use>
auto visit_forward(const TargetAttentionParams& p, Use use) {
  return has_few_rows(p) ? visit_layout<Few>(p, use) : visit_layout<Rows>(p, use);
}

}  // namespace

const char* launch_combine(const TargetAttentionParams& p, const Tiling& tiling, const Schedule& schedule,
                           const Partials& partials, Stream stream) {
  const Combine rows = combine_of(p, tiling, p.value_dim);
  return visit_cuda_dtype(p.dtype, [&](auto type) {
    return launch("target_attention combine", &target_attention_fwd_combine_kernel<typename decltype(type)::element>,
                  {rows.grid(), kCombineThreads, kCombineBytes}, stream, p, tiling, schedule, partials, rows);
  });
}

}  // namespace cuda

const char* target_attention_cuda_refusal(const TargetAttentionParams& p) {
  if (p.shared && p.key_dim > 1024) return "a width of at most 1024 when v is None";
  if (!p.shared && cuda::max(p.key_dim, p.value_dim) > 256) return "widths of at most 256 when v is given";
  return nullptr;
}

int target_attention_cuda_shared_bytes(const TargetAttentionParams& params) {
  if (cuda::has_scales(params)) return cuda::int8_shared_bytes(params);
  return cuda::visit_forward(params, [](auto layout) { return decltype(layout)::type::kBytes; });
}

int64_t target_attention_cuda_workspace(const TargetAttentionParams& params, const CudaDevice& device) {
  if (cuda::has_scales(params)) return cuda::int8_workspace(params, device);
#if defined(STCA_SM90)
  if (cuda::sm90::takes(params, device)) return cuda::sm90::workspace(params, device);
#endif
  return cuda::visit_forward(
      params, [&](auto layout) { return cuda::workspace_of<typename decltype(layout)::type>(params, device); });
}

const char* target_attention_cuda(const TargetAttentionParams& params, const CudaDevice& device, void* workspace,
                                  void* stream) {
  if (params.num_targets == 0) return nullptr;
  const cuda::Stream to = static_cast<cuda::Stream>(stream);
  if (const char* error = cuda::launch_index_check(params, to)) return error;
  if (cuda::has_scales(params)) return cuda::launch_int8(params, device, workspace, to);
#if defined(STCA_SM90)
  if (cuda::sm90::takes(params, device)) return cuda::sm90::launch_forward(params, device, workspace, to);
#endif
  return cuda::visit_forward(params, [&](auto layout) {
    return cuda::enqueue<typename decltype(layout)::type>(params, device, workspace, to);
  });
}

}  // namespace stca
