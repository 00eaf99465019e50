// The host's side of target_attention on Hopper with v beside k: tensor maps, launches, and which calls it takes. The
// kernels: projected_forward.cuh, projected_dkv.cuh, projected_dq.cuh.
#include "projected.h"

#include "projected_dkv.cuh"
#include "projected_dq.cuh"
#include "projected_forward.cuh"
#include "tensor_map.h"

namespace stca {
namespace cuda {
namespace sm90 {
namespace {

int group_of(const TargetAttentionParams& p) { return int(p.heads / p.kv_heads); }

// k and v in tiles of so many rows of a head.
template <class T>
const char* map_history(TensorMaps& maps, const TargetAttentionParams& p, int tile_rows) {
  constexpr CUtensorMapDataType type = MapType<T>::value;
  const char* error =
      make_tensor_map(maps.k, type, p.k, p.num_rows, p.kv_heads, p.key_dim, p.k_row_stride, p.k_head_stride, tile_rows);
  if (error != nullptr) return error;
  return make_tensor_map(maps.v, type, p.v, p.num_rows, p.kv_heads, p.value_dim, p.v_row_stride, p.v_head_stride,
                         tile_rows);
}

// q and dout in tiles of so many query rows of a history head: of some targets, all its heads of each.
template <class T>
const char* map_queries(TensorMaps& maps, const TargetAttentionBackwardParams& b, int tile_rows) {
  constexpr CUtensorMapDataType type = MapType<T>::value;
  const TargetAttentionParams& p = b.forward;
  const int group = group_of(p);
  const char* error = make_tensor_map(maps.q, type, p.q, p.num_targets, p.heads, p.key_dim, p.q_target_stride,
                                      p.q_head_stride, tile_rows / group, group);
  if (error != nullptr) return error;
  return make_tensor_map(maps.dout, type, b.dout, p.num_targets, p.heads, p.value_dim, p.heads * p.value_dim,
                         p.value_dim, tile_rows / group, group);
}

template <class F>
Tiling tiling_of(const CudaDevice& device) {
  const auto kernel = &target_attention_projected_sm90_kernel<F>;
  return {F::kKept, F::kStep, resident_blocks(device, kernel, F::kThreads, F::kBytes), false};
}

// The forward pass, or that for dq, once its schedule is there.
template <class F>
const char* launch_queries(const TargetAttentionBackwardParams& b, const Tiling& tiling, const Schedule& schedule,
                           const Weighing* weighing, const Partials& partials, Stream stream) {
  TensorMaps maps{};
  const char* error = map_history<typename F::Element>(maps, b.forward, F::kStep);
  if (error != nullptr) return error;
  return launch("target_attention on Hopper", &target_attention_projected_sm90_kernel<F>,
                {tiling.num_ranges, F::kThreads, F::kBytes}, stream, maps, b, tiling, schedule, weighing, partials);
}

template <class F>
const char* forward(const TargetAttentionParams& p, const CudaDevice& device, void* workspace, Stream stream) {
  const Tiling tiling = tiling_of<F>(device);
  const Schedule schedule = schedule_at(workspace, p.num_requests, tiling.num_ranges);
  float* sums = reinterpret_cast<float*>(static_cast<char*>(workspace) +
                                         aligned_bytes(schedule_bytes(p.num_requests, tiling.num_ranges)));
  const Partials partials{sums, sums + max_partials(tiling.num_ranges) * F::kKept * p.value_dim};
  TargetAttentionBackwardParams b{};
  b.forward = p;
  const char* error = launch_schedule(p, tiling, schedule, stream);
  if (error == nullptr) error = launch_queries<F>(b, tiling, schedule, nullptr, partials, stream);
  return error != nullptr ? error : launch_combine(p, tiling, schedule, partials, stream);
}

template <class F>
const char* dkv(const TargetAttentionBackwardParams& b, const CudaDevice& device, void* workspace,
                const Weighing* weighing, Stream stream) {
  const Tiling tiling{F::kKept, F::kStep, device.multiprocessors, true};
  const Schedule schedule = schedule_at(workspace, b.forward.num_requests, tiling.num_ranges);
  TensorMaps maps{};
  const char* error = map_history<typename F::Element>(maps, b.forward, F::kKept);
  if (error == nullptr) error = map_queries<typename F::Element>(maps, b, F::kStep);
  if (error == nullptr) error = launch_schedule(b.forward, tiling, schedule, stream);
  if (error != nullptr) return error;
  return launch("target_attention dk, dv on Hopper", &target_attention_projected_dkv_sm90_kernel<F>,
                {tiling.num_ranges, F::kThreads, F::kBytes}, stream, maps, b, tiling, schedule, weighing);
}

template <class F>
const char* dq(const TargetAttentionBackwardParams& b, const CudaDevice& device, void* workspace,
               const Weighing* weighing, float* sums, Stream stream) {
  const Tiling tiling = tiling_of<F>(device);
  const Schedule schedule = schedule_at(workspace, b.forward.num_requests, tiling.num_ranges);
  const char* error = launch_schedule(b.forward, tiling, schedule, stream);
  if (error == nullptr) error = launch_queries<F>(b, tiling, schedule, weighing, {sums, nullptr}, stream);
  return error != nullptr ? error : launch_combine_dq(b, tiling, schedule, sums, stream);
}

int64_t query_rows(const TargetAttentionParams& p) { return p.num_targets * group_of(p); }  // of a history head

// What a call's kernels are chosen by: T, width and warpgroups of a block.
template <class OwnElement, int kMaxWidth, int kOwnGroups>
struct Projected {
  using T = OwnElement;
  static constexpr int kWidth = kMaxWidth;
  static constexpr int kGroups = kOwnGroups;
};

// Calls f(Projected<...>()) for the call's type and width. Where requests have up to 64 query rows for a history head,
// bytes decide: one warpgroup to a block, and two blocks on a multiprocessor.
template <class Result, class F>
Result visit_projected(const TargetAttentionParams& p, F f) {
  const bool one = query_rows(p) <= choice::projected_one_group::value * p.num_requests;
  const bool wide = max(p.key_dim, p.value_dim) > 64;
  return visit_cuda_dtype(p.dtype, [&](auto type) -> Result {
    using T = typename decltype(type)::element;
    if constexpr (sizeof(T) == 2) {
      if (wide) return one ? f(Projected<T, 128, 1>()) : f(Projected<T, 128, 2>());
      return one ? f(Projected<T, 64, 1>()) : f(Projected<T, 64, 2>());
    }
    return Result();  // of a type that takes_projected() refuses
  });
}

template <class A, class Of64, class Choice64, class Of128, class Choice128, class F>
auto visit_variant_of(F f) {
  if constexpr (A::kWidth == 64) {
    return visit_variant<Choice64, typename A::T>(Of64(), f);
  } else {
    return visit_variant<Choice128, typename A::T>(Of128(), f);
  }
}

// Call f(LayoutOf<...>()) with the variant of a kernel.
template <class A, class F>
auto visit_forward(F f) {
  return visit_variant_of<A, ForwardsOf64, choice::projected_64_forward, ForwardsOf128, choice::projected_128_forward>(
      [&](auto v) { return f(LayoutOf<ProjectedForward<typename A::T, A::kWidth, A::kGroups, decltype(v)>>()); });
}
template <class A, class F>
auto visit_dkv(F f) {
  return visit_variant_of<A, DkvsOf64, choice::projected_64_dkv, DkvsOf128, choice::projected_128_dkv>(
      [&](auto v) { return f(LayoutOf<ProjectedDkv<typename A::T, A::kWidth, decltype(v)>>()); });
}
template <class A, class F>
auto visit_dq(F f) {
  return visit_variant_of<A, DqsOf64, choice::projected_64_dq, DqsOf128, choice::projected_128_dq>(
      [&](auto v) { return f(LayoutOf<ProjectedDq<typename A::T, A::kWidth, A::kGroups, decltype(v)>>()); });
}

}  // namespace

// Few query rows have kernels of their own among the common ones, which wait for bytes as these would.
bool takes_projected(const TargetAttentionParams& p) {
  const int64_t width = max(p.key_dim, p.value_dim);
  return !p.shared && !has_few_rows(p) && element_size(p.dtype) == 2 && width > 32 && width <= 128 &&
         p.key_dim % 8 == 0 && p.value_dim % 8 == 0 && p.history_index == nullptr && p.num_rows > 0 &&
         p.num_rows < int64_t(1) << 31 && p.k_row_stride > 0 && p.v_row_stride > 0 &&
         (p.kv_heads == 1 || min(p.k_head_stride, p.v_head_stride) > 0) &&
         rows_aligned(p.q, 2, p.q_target_stride, p.q_head_stride) &&
         rows_aligned(p.k, 2, p.k_row_stride, p.k_head_stride) && rows_aligned(p.v, 2, p.v_row_stride, p.v_head_stride);
}

bool takes_projected_backward(const TargetAttentionBackwardParams& b) {
  const TargetAttentionParams& p = b.forward;
  return takes_projected(p) && kRows % group_of(p) == 0 && query_rows(p) > 0 && p.num_targets < int64_t(1) << 31 &&
         p.q_target_stride > 0 && (p.heads == 1 || p.q_head_stride > 0) && rows_aligned(b.dout, 2, 0, 0);
}

int64_t projected_workspace(const TargetAttentionParams& p, const CudaDevice& device) {
  const Tiling tiling = visit_projected<Tiling>(p, [&](auto call) {
    return visit_forward<decltype(call)>([&](auto f) { return tiling_of<typename decltype(f)::type>(device); });
  });
  return aligned_bytes(schedule_bytes(p.num_requests, tiling.num_ranges)) +
         max_partials(tiling.num_ranges) * tiling.tile_rows * (p.value_dim + 2) * int64_t(sizeof(float));
}

int64_t projected_partial_rows(const TargetAttentionParams& p, const CudaDevice& device) {
  const Tiling tiling = visit_projected<Tiling>(p, [&](auto call) {
    return visit_dq<decltype(call)>([&](auto f) { return tiling_of<typename decltype(f)::type>(device); });
  });
  return max_partial_rows(tiling);
}

const char* launch_projected_forward(const TargetAttentionParams& p, const CudaDevice& device, void* workspace,
                                     Stream stream) {
  return visit_projected<const char*>(p, [&](auto call) {
    return visit_forward<decltype(call)>(
        [&](auto f) { return forward<typename decltype(f)::type>(p, device, workspace, stream); });
  });
}

const char* launch_projected_backward(const TargetAttentionBackwardParams& b, const CudaDevice& device, void* workspace,
                                      const Weighing* weighing, float* sums, Stream stream) {
  return visit_projected<const char*>(b.forward, [&](auto call) {
    const char* error = visit_dkv<decltype(call)>(
        [&](auto f) { return dkv<typename decltype(f)::type>(b, device, workspace, weighing, stream); });
    if (error != nullptr) return error;
    return visit_dq<decltype(call)>(
        [&](auto f) { return dq<typename decltype(f)::type>(b, device, workspace, weighing, sums, stream); });
  });
}

}  // namespace sm90
}  // namespace cuda
}  // namespace stca
