// The host's side of target_attention on Hopper: tensor maps, launches, and which calls it takes. The kernel:
// attend.cuh.
#include "target_attention.h"

#include "attend.cuh"
#include "tensor_map.h"

namespace stca {
namespace cuda {
namespace sm90 {
namespace {

// One pass: the tensor maps of what it streams, and the kernel.
template <class T, int kBlocks, Pass kPass>
const char* launch_pass(const TargetAttentionBackwardParams& b, const Tiling& tiling, const Schedule& schedule,
                        const Weighing* weighing, const Partials& partials, cudaStream_t stream) {
  const TargetAttentionParams& p = b.forward;
  const bool bfloat = p.dtype == Dtype::kBFloat16;
  Streams streams{};
  const char* error = nullptr;
  if (kPass == Pass::kHistory) {
    const int64_t rows = p.num_targets * p.heads;
    error = make_tensor_map(streams.q, bfloat, p.q, rows, 1, p.key_dim, p.q_head_stride, 0, kColumns / 2);
    if (error == nullptr) {
      error = make_tensor_map(streams.dout, bfloat, b.dout, rows, 1, p.value_dim, p.value_dim, 0, kColumns / 2);
    }
  } else {
    error = make_tensor_map(streams.history, bfloat, p.k, p.num_rows, p.kv_heads, p.key_dim, p.k_row_stride,
                            p.k_head_stride, kColumns);
  }
  if (error != nullptr) return error;
  using M = Memory<kPass, kBlocks>;
  auto* kernel = &target_attention_sm90_kernel<kPass, T, kBlocks>;
  cudaError_t status = residence(reinterpret_cast<const void*>(kernel), kThreads, M::kBytes).error;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {unsigned(kBlocks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(kBlocks * tiling.num_ranges));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = M::kBytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  if (status == cudaSuccess) {
    status = cudaLaunchKernelEx(&config, kernel, streams, b, tiling, schedule, weighing, partials);
  }
  if (status == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(status);
}

template <class T, int kBlocks>
const char* forward(const TargetAttentionParams& p, const CudaDevice& device, void* workspace, cudaStream_t stream) {
  const Tiling tiling{kRows, kColumns, device.multiprocessors / kBlocks, false};
  const Schedule schedule = schedule_at(workspace, p.num_requests, tiling.num_ranges);
  float* sums = reinterpret_cast<float*>(static_cast<char*>(workspace) +
                                         aligned_bytes(schedule_bytes(p.num_requests, tiling.num_ranges)));
  const Partials partials{sums, sums + max_partials(tiling.num_ranges) * kRows * p.value_dim};
  const char* error = launch_schedule(p, tiling, schedule, stream);
  if (error == nullptr) {
    TargetAttentionBackwardParams b{};
    b.forward = p;
    error = launch_pass<T, kBlocks, Pass::kForward>(b, tiling, schedule, nullptr, partials, stream);
  }
  return error != nullptr ? error : launch_combine(p, tiling, schedule, partials, stream);
}

template <class T, int kBlocks>
const char* backward(const TargetAttentionBackwardParams& b, const CudaDevice& device, void* workspace,
                     const Weighing* weighing, float* sums, cudaStream_t stream) {
  const TargetAttentionParams& p = b.forward;
  const int num_ranges = device.multiprocessors / kBlocks;
  const Tiling rows{kRows, kQueryRows<Pass::kHistory>, num_ranges, true},
      queries{kQueryRows<Pass::kQueries>, kColumns, num_ranges, false};
  const Schedule schedule = schedule_at(workspace, p.num_requests, num_ranges);
  const char* error = launch_schedule(p, rows, schedule, stream);
  if (error == nullptr) error = launch_pass<T, kBlocks, Pass::kHistory>(b, rows, schedule, weighing, {}, stream);
  if (error == nullptr) error = launch_schedule(p, queries, schedule, stream);
  if (error == nullptr) {
    error = launch_pass<T, kBlocks, Pass::kQueries>(b, queries, schedule, weighing, {sums, nullptr}, stream);
  }
  return error != nullptr ? error : launch_combine_dq(b, queries, schedule, sums, stream);
}

// Calls f(Element<T>(), blocks) for the call's type and width.
template <class F>
auto visit_call(const TargetAttentionParams& p, F f) {
  auto with_type = [&](auto type) {
    return p.key_dim > kWidth ? f(type, std::integral_constant<int, 2>()) : f(type, std::integral_constant<int, 1>());
  };
  return p.dtype == Dtype::kBFloat16 ? with_type(Element<bfloat16>()) : with_type(Element<float16>());
}

}  // namespace

// What has no rows, or the same ones again and again, has no tensor map. Rows of at most 128, and gradients of wide
// rows for so few query rows that loading a tile of history takes longer than using it, are faster by the common
// kernels: measured on an H200, benchmarks/NOTES.md.
bool takes(const TargetAttentionParams& p, const CudaDevice& device) {
  constexpr int64_t kMost = int64_t(1) << 31;
  return device.capability == 9 && p.shared && (p.dtype == Dtype::kBFloat16 || p.dtype == Dtype::kFloat16) &&
         p.key_dim > 128 && p.key_dim <= 2 * kWidth && p.key_dim % 8 == 0 && p.history_index == nullptr &&
         p.num_rows > 0 && p.num_rows < kMost && p.k_row_stride > 0 && (p.kv_heads == 1 || p.k_head_stride > 0) &&
         rows_aligned(p.q, 2, p.q_target_stride, p.q_head_stride) &&
         rows_aligned(p.k, 2, p.k_row_stride, p.k_head_stride);
}

bool takes_backward(const TargetAttentionBackwardParams& b, const CudaDevice& device) {
  const TargetAttentionParams& p = b.forward;
  const int64_t query_rows = p.num_targets * p.heads;
  return takes(p, device) && p.kv_heads == 1 && p.q_target_stride == p.heads * p.q_head_stride &&
         (p.key_dim <= kWidth || query_rows >= 32 * p.num_requests) && query_rows > 0 &&
         query_rows < int64_t(1) << 31 && p.q_head_stride > 0 && rows_aligned(b.dout, 2, 0, 0) &&
         rows_aligned(p.visible, 8, 0, 0);
}

int64_t workspace(const TargetAttentionParams& p, const CudaDevice& device) {
  return aligned_bytes(schedule_bytes(p.num_requests, device.multiprocessors)) +
         max_partials(device.multiprocessors) * kRows * (p.value_dim + 2) * int64_t(sizeof(float));
}

int64_t partial_rows(const CudaDevice& device) { return max_partials(device.multiprocessors) * kRows; }

const char* launch_forward(const TargetAttentionParams& p, const CudaDevice& device, void* workspace, Stream stream) {
  return visit_call(p, [&](auto type, auto blocks) {
    return forward<typename decltype(type)::element, decltype(blocks)::value>(p, device, workspace, stream);
  });
}

const char* launch_backward(const TargetAttentionBackwardParams& b, const CudaDevice& device, void* workspace,
                            const Weighing* weighing, float* sums, Stream stream) {
  return visit_call(b.forward, [&](auto type, auto blocks) {
    return backward<typename decltype(type)::element, decltype(blocks)::value>(b, device, workspace, weighing, sums,
                                                                               stream);
  });
}

}  // namespace sm90
}  // namespace cuda
}  // namespace stca
