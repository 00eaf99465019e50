// The host's side of target_attention on Hopper: tensor maps, launches, and which calls it takes. The kernel:
// kernel.cuh.
#include "target_attention.h"

#include "kernel.cuh"
#include "projected.h"
#include "tensor_map.h"

namespace stca {
namespace cuda {
namespace sm90 {
namespace {

template <class V>
int ranges_of(const CudaDevice& device) {
  return device.multiprocessors * V::L::kResident / V::kBlocks;
}

// One pass: the tensor maps of what it streams, and the kernel.
template <class T, class V, Pass kPass>
const char* launch_pass(const TargetAttentionBackwardParams& b, const Tiling& tiling, const Schedule& schedule,
                        const Weighing* weighing, const Partials& partials, char* ds, cudaStream_t stream) {
  using L = typename V::L;
  const TargetAttentionParams& p = b.forward;
  Streams streams{};
  const char* error = make_row_maps(streams.history, MapType<T>::value, p.k, p.pool_rows, p.kv_heads, p.key_dim,
                                    p.k_row_stride, p.k_head_stride, kColumns);
  if (kPass == Pass::kHistory && error == nullptr) {
    const int64_t rows = p.num_targets * p.heads;
    error = make_tensor_map(streams.q, MapType<T>::value, p.q, rows, 1, p.key_dim, p.q_head_stride, 0, kColumns / 2);
    if (error == nullptr) {
      error =
          make_tensor_map(streams.dout, MapType<T>::value, b.dout, rows, 1, p.value_dim, p.value_dim, 0, kColumns / 2);
    }
  }
  if (error != nullptr) return error;
  const Grid grid{int64_t(V::kBlocks) * tiling.num_ranges, L::kThreads, Memory<kPass, L, V::kBlocks>::kBytes,
                  V::kBlocks};
  return launch("target_attention on Hopper", &target_attention_sm90_kernel<kPass, T, L, V::kBlocks>, grid, stream,
                streams, b, tiling, schedule, weighing, partials, ds);
}

template <class T, class V>
const char* forward(const TargetAttentionParams& p, const CudaDevice& device, void* workspace, cudaStream_t stream) {
  const Tiling tiling{kRows, kColumns, ranges_of<V>(device), false};
  const Schedule schedule = schedule_at(workspace, p.num_requests, tiling.num_ranges);
  float* sums = reinterpret_cast<float*>(static_cast<char*>(workspace) +
                                         aligned_bytes(schedule_bytes(p.num_requests, tiling.num_ranges)));
  const Partials partials{sums, sums + max_partials(tiling.num_ranges) * kRows * p.value_dim};
  const char* error = launch_schedule(p, tiling, schedule, stream);
  if (error == nullptr) {
    TargetAttentionBackwardParams b{};
    b.forward = p;
    error = launch_pass<T, V, Pass::kForward>(b, tiling, schedule, nullptr, partials, nullptr, stream);
  }
  return error != nullptr ? error : launch_combine(p, tiling, schedule, partials, stream);
}

// Of more query rows dS has room for fewer than 256 history rows, and reading and writing the partial dq of a chunk
// would take longer than its products.
constexpr int64_t kMostKept = kKeptBytes / 2 / 256;

// The passes of the gradients: that of the history, and that of the queries of requests which the former leaves out.
template <class V>
Tiling history_tiling(const TargetAttentionParams& p, const CudaDevice& device) {
  return kept_tiling(p, ranges_of<V>(device), kRows, kQueryRows<Pass::kHistory>, kMostKept, V::kBlocks * kPartialBytes);
}
template <class V>
Tiling queries_tiling(const TargetAttentionParams& p, const CudaDevice& device) {
  const int left_out = history_tiling<V>(p, device).tile_rows;
  return {kQueryRows<Pass::kQueries>, kColumns, ranges_of<V>(device), false, 0, left_out};
}

template <class T, class V>
const char* backward(const TargetAttentionBackwardParams& b, const CudaDevice& device, void* workspace,
                     const Weighing* weighing, const Kept& kept, cudaStream_t stream) {
  const auto launcher = [&](auto pass) {
    return [&](const Tiling& tiling, const Schedule& schedule) {
      return launch_pass<T, V, decltype(pass)::value>(b, tiling, schedule, weighing, {kept.partials, nullptr}, kept.ds,
                                                      stream);
    };
  };
  return launch_products(b, history_tiling<V>(b.forward, device), queries_tiling<V>(b.forward, device), workspace,
                         kept.partials, stream, launcher(std::integral_constant<Pass, Pass::kHistory>()),
                         launcher(std::integral_constant<Pass, Pass::kQueries>()));
}

// Calls f(Element<T>(), Variant()) for the call's type and width, in the forward pass or the backward pass.
template <class Result, class F>
Result visit_call(const TargetAttentionParams& p, bool backward, F f) {
  return visit_cuda_dtype(p.dtype, [&](auto type) -> Result {
    using namespace choice;
    using T = typename decltype(type)::element;
    if constexpr (sizeof(T) == 2) {
      const auto call = [&](auto variant) { return f(type, variant); };
      const auto either = [&](auto of_forward, auto of_backward, auto variants) {
        return backward ? visit_variant<decltype(of_backward), T>(variants, call)
                        : visit_variant<decltype(of_forward), T>(variants, call);
      };
      if (p.key_dim <= 256) return either(attention_256_forward(), attention_256_backward(), Of256());
      if (p.key_dim <= 512) return either(attention_512_forward(), attention_512_backward(), Of512());
      return either(attention_1024_forward(), attention_1024_backward(), Of1024());
    }
    return Result();  // of a type that takes() refuses
  });
}

bool takes_shared(const TargetAttentionParams& p) {
  constexpr int64_t kMost = int64_t(1) << 31;
  return p.shared && element_size(p.dtype) == 2 && p.key_dim > choice::attention_least_width::value &&
         p.key_dim <= 1024 && p.key_dim % 8 == 0 && p.num_rows > 0 && p.num_rows < kMost && p.pool_rows > 0 &&
         p.pool_rows < kMost && p.k_row_stride > 0 && (p.kv_heads == 1 || p.k_head_stride > 0) &&
         rows_aligned(p.q, 2, p.q_target_stride, p.q_head_stride) &&
         rows_aligned(p.k, 2, p.k_row_stride, p.k_head_stride);
}

}  // namespace

// A tensor that has no rows, or the same ones again and again, has no tensor map. Rows of at most 128, and gradients of
// wide rows for so few query rows that loading a tile of history takes longer than using it, are faster by the common
// kernels: measured on an H200, benchmarks/NOTES.md.
bool takes(const TargetAttentionParams& p, const CudaDevice& device) {
  if (p.shared) return device.takes(Sm90Family::target_attention) && takes_shared(p);
  return device.takes(Sm90Family::target_attention_projected) && takes_projected(p);
}

bool takes_backward(const TargetAttentionBackwardParams& b, const CudaDevice& device) {
  const TargetAttentionParams& p = b.forward;
  const int64_t query_rows = p.num_targets * p.heads;
  if (!p.shared) return device.takes(Sm90Family::target_attention_projected) && takes_projected_backward(b);
  return takes(p, device) && p.kv_heads == 1 && p.q_target_stride == p.heads * p.q_head_stride &&
         (p.key_dim <= 512 || query_rows >= choice::attention_wide_rows::value * p.num_requests) && query_rows > 0 &&
         query_rows < int64_t(1) << 31 && p.q_head_stride > 0 && rows_aligned(b.dout, 2, 0, 0) &&
         rows_aligned(p.visible, 8, 0, 0);
}

int64_t workspace(const TargetAttentionParams& p, const CudaDevice& device) {
  if (!p.shared) return projected_workspace(p, device);
  const int num_ranges =
      visit_call<int>(p, false, [&](auto, auto variant) { return ranges_of<decltype(variant)>(device); });
  return aligned_bytes(schedule_bytes(p.num_requests, num_ranges)) +
         max_partials(num_ranges) * kRows * (p.value_dim + 2) * int64_t(sizeof(float));
}

int64_t kept_blocks(const TargetAttentionParams& p, const CudaDevice& device) {
  if (!p.shared) return 0;
  return visit_call<int64_t>(p, true, [&](auto, auto variant) -> int64_t {
    using V = decltype(variant);
    return V::kBlocks * history_tiling<V>(p, device).num_ranges;
  });
}

int64_t partial_rows(const TargetAttentionParams& p, const CudaDevice& device) {
  if (!p.shared) return projected_partial_rows(p, device);
  return visit_call<int64_t>(p, true, [&](auto, auto variant) {
    using V = decltype(variant);
    return max(max_partial_rows(history_tiling<V>(p, device)), max_partial_rows(queries_tiling<V>(p, device)));
  });
}

const char* launch_forward(const TargetAttentionParams& p, const CudaDevice& device, void* workspace, Stream stream) {
  if (!p.shared) return launch_projected_forward(p, device, workspace, stream);
  return visit_call<const char*>(p, false, [&](auto type, auto variant) {
    return forward<typename decltype(type)::element, decltype(variant)>(p, device, workspace, stream);
  });
}

const char* launch_backward(const TargetAttentionBackwardParams& b, const CudaDevice& device, void* workspace,
                            const Weighing* weighing, const Kept& kept, Stream stream) {
  if (!b.forward.shared) return launch_projected_backward(b, device, workspace, weighing, kept.partials, stream);
  return visit_call<const char*>(b.forward, true, [&](auto type, auto variant) {
    return backward<typename decltype(type)::element, decltype(variant)>(b, device, workspace, weighing, kept, stream);
  });
}

}  // namespace sm90
}  // namespace cuda
}  // namespace stca
