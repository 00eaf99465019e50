// target_attention on CUDA: what its kernels cannot do is refused, then they are enqueued.
#include "../kernels/target_attention_cuda.h"

#include <algorithm>
#include <string>

#include "cuda.h"
#include "target_attention_launch.h"

namespace stca {
namespace {

constexpr const char* kOp = "target_attention";

void check_supported(const TargetAttentionParams& p, const CudaDevice& device, bool backward) {
  auto check = [&](bool is, const auto&... supported) {
    STCA_CHECK(is, kOp, "on CUDA must be given ", supported..., ", got ", dtype_name(p.dtype), " with Dk = ", p.key_dim,
               ", Dv = ", p.value_dim, p.shared ? " and v None" : "");
  };
  const char* widths = target_attention_cuda_refusal(p);
  check(widths == nullptr, widths);
  const int forward = target_attention_cuda_shared_bytes(p);
  const int gradients = backward ? target_attention_backward_cuda_shared_bytes(p) : 0;
  check(std::max(forward, gradients) <= device.shared_bytes, "widths that fit the ", device.shared_bytes,
        " bytes of shared memory of a block on this GPU (these take ", forward,
        backward ? ", their gradients " + std::to_string(gradients) : "", ")");
}

}  // namespace

void target_attention_on_cuda(TargetAttentionParams p, const at::Tensor& like, bool backward) {
  const CudaCall call(like);
  p.reports = call.device().reports;
  check_supported(p, call.device(), backward);
  const at::Tensor workspace = call.workspace(target_attention_cuda_workspace(p, call.device()));
  call.check(kOp, target_attention_cuda(p, call.device(), workspace.mutable_data_ptr(), call.stream()));
}

void target_attention_backward_on_cuda(TargetAttentionBackwardParams p, const at::Tensor& like) {
  const CudaCall call(like);
  p.forward.reports = call.device().reports;
  check_supported(p.forward, call.device(), true);
  const at::Tensor workspace = call.workspace(target_attention_backward_cuda_workspace(p.forward, call.device()));
  call.check(kOp, target_attention_backward_cuda(p, call.device(), workspace.mutable_data_ptr(), call.stream()));
}

}  // namespace stca
