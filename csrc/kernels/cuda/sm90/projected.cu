// The host's side of target_attention on Hopper with v beside k. The kernels: projected_forward.cuh.
#include "projected.h"

#include "projected_forward.cuh"
#include "tensor_map.h"

namespace stca {
namespace cuda {
namespace sm90 {
namespace {

template <class T>
const char* make_history_maps(HistoryMaps& maps, const TargetAttentionParams& p, int tile_rows) {
  constexpr CUtensorMapDataType type = MapType<T>::value;
  const char* error =
      make_tensor_map(maps.k, type, p.k, p.num_rows, p.kv_heads, p.key_dim, p.k_row_stride, p.k_head_stride, tile_rows);
  if (error != nullptr) return error;
  return make_tensor_map(maps.v, type, p.v, p.num_rows, p.kv_heads, p.value_dim, p.v_row_stride, p.v_head_stride,
                         tile_rows);
}

template <class F>
Tiling forward_tiling(const CudaDevice& device) {
  const auto kernel = &target_attention_projected_fwd_sm90_kernel<F>;
  return {F::kKept, F::kStep, resident_blocks(device, kernel, F::kThreads, F::kBytes), false};
}

template <class F>
const char* forward(const TargetAttentionParams& p, const CudaDevice& device, void* workspace, Stream stream) {
  const Tiling tiling = forward_tiling<F>(device);
  const Schedule schedule = schedule_at(workspace, p.num_requests, tiling.num_ranges);
  float* sums = reinterpret_cast<float*>(static_cast<char*>(workspace) +
                                         aligned_bytes(schedule_bytes(p.num_requests, tiling.num_ranges)));
  const Partials partials{sums, sums + max_partials(tiling.num_ranges) * F::kKept * p.value_dim};
  HistoryMaps maps{};
  const char* error = make_history_maps<typename F::Element>(maps, p, F::kStep);
  if (error == nullptr) error = launch_schedule(p, tiling, schedule, stream);
  if (error == nullptr) {
    error = launch("target_attention on Hopper", &target_attention_projected_fwd_sm90_kernel<F>,
                   {tiling.num_ranges, F::kThreads, F::kBytes}, stream, maps, p, tiling, schedule, partials);
  }
  return error != nullptr ? error : launch_combine(p, tiling, schedule, partials, stream);
}

// Calls f(LayoutOf<ProjectedForward<...>>()) for the call's type and width. Where requests have up to 64 query rows for
// a history head, bytes decide: half of the work a tile, and two blocks on a multiprocessor.
template <class F>
auto visit_forward(const TargetAttentionParams& p, F f) {
  const bool few = p.num_targets * (p.heads / p.kv_heads) <= kRows * p.num_requests;
  const bool wide = max(p.key_dim, p.value_dim) > 64;
  return visit_cuda_dtype(p.dtype, [&](auto type) -> decltype(f(LayoutOf<ProjectedForward<bfloat16, 64, 1>>())) {
    using T = typename decltype(type)::element;
    if constexpr (sizeof(T) == 2) {
      if (wide && few) return f(LayoutOf<ProjectedForward<T, 128, 1>>());
      if (wide) return f(LayoutOf<ProjectedForward<T, 128, 2>>());
      if (few) return f(LayoutOf<ProjectedForward<T, 64, 1>>());
      return f(LayoutOf<ProjectedForward<T, 64, 2>>());
    }
    return {};  // of a type that takes_projected() refuses
  });
}

}  // namespace

bool takes_projected(const TargetAttentionParams& p) {
  const int64_t width = max(p.key_dim, p.value_dim);
  return !p.shared && element_size(p.dtype) == 2 && width > 32 && width <= 128 && p.key_dim % 8 == 0 &&
         p.value_dim % 8 == 0 && p.history_index == nullptr && p.num_rows > 0 && p.num_rows < int64_t(1) << 31 &&
         p.k_row_stride > 0 && p.v_row_stride > 0 && (p.kv_heads == 1 || min(p.k_head_stride, p.v_head_stride) > 0) &&
         rows_aligned(p.q, 2, p.q_target_stride, p.q_head_stride) &&
         rows_aligned(p.k, 2, p.k_row_stride, p.k_head_stride) && rows_aligned(p.v, 2, p.v_row_stride, p.v_head_stride);
}

int64_t projected_workspace(const TargetAttentionParams& p, const CudaDevice& device) {
  return visit_forward(p, [&](auto layout) {
    const Tiling tiling = forward_tiling<typename decltype(layout)::type>(device);
    const int64_t rows = max_partials(tiling.num_ranges) * tiling.tile_rows;
    return aligned_bytes(schedule_bytes(p.num_requests, tiling.num_ranges)) +
           rows * (p.value_dim + 2) * int64_t(sizeof(float));
  });
}

const char* launch_projected_forward(const TargetAttentionParams& p, const CudaDevice& device, void* workspace,
                                     Stream stream) {
  return visit_forward(
      p, [&](auto layout) { return forward<typename decltype(layout)::type>(p, device, workspace, stream); });
}

}  // namespace sm90
}  // namespace cuda
}  // namespace stca
