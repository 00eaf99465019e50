#include "target_attention_launch.h"

#if defined(STCA_WITH_CUDA)
#include "../kernels/target_attention_cuda.h"
#include "cuda.h"
#endif

namespace stca {
namespace {

// Runs all items of a plan, then its merges.
template <class Item, class Merge>
void run(const TargetAttentionPlan& plan, Dtype dtype, const Item& run_item, const Merge& run_merge) {
  const int64_t element = accumulator_size(dtype);
  const at::Tensor partials = at::empty({plan.partial_count * plan.partial_size * element}, at::kByte);
  char* memory = static_cast<char*>(partials.mutable_data_ptr());
  for_each_item(plan.items.size(), plan.scratch_size * element, [&](int64_t i, void* scratch) {
    const TargetAttentionItem& item = plan.items[i];
    run_item(item, scratch, item.partial < 0 ? nullptr : memory + item.partial * plan.partial_size * element);
  });
  for_each_item(plan.merges.size(), 0, [&](int64_t i, void*) { run_merge(plan.merges[i], memory); });
}

#if defined(STCA_WITH_CUDA)
constexpr const char* kOp = "target_attention";

void check_supported(const TargetAttentionParams& p, const CudaDevice& device, bool backward) {
  const char* supported = target_attention_cuda_refusal(p, device, backward);
  STCA_CHECK(supported == nullptr, kOp, "on CUDA must be given ", supported, ", got ", dtype_name(p.dtype),
             " with Dk = ", p.key_dim, ", Dv = ", p.value_dim, p.shared ? " and v None" : "");
}
#endif

}  // namespace

void launch_target_attention(const TargetAttentionParams& p, [[maybe_unused]] const at::Tensor& like) {
#if defined(STCA_WITH_CUDA)
  if (runs_on_cuda(like)) {
    const CudaCall call(like);
    check_supported(p, call.device(), false);
    const at::Tensor workspace = call.workspace(target_attention_cuda_workspace(p, call.device()));
    call.check(kOp, target_attention_cuda(p, call.device(), workspace.mutable_data_ptr(), call.stream()));
    return;
  }
#endif
  const TargetAttentionPlan plan = plan_target_attention(p, at::get_num_threads());
  const auto item_kernel = STCA_SELECT_CPU_KERNEL(target_attention_item);
  const auto merge_kernel = STCA_SELECT_CPU_KERNEL(target_attention_merge);
  run(
      plan, p.dtype,
      [&](const TargetAttentionItem& item, void* scratch, void* partial) {
        item_kernel(p, plan.tiling, item, scratch, partial);
      },
      [&](const TargetAttentionMerge& merge, void* partials) { merge_kernel(p, merge, partials, plan.partial_size); });
}

void launch_target_attention_backward(const TargetAttentionBackwardParams& p, [[maybe_unused]] const at::Tensor& like) {
#if defined(STCA_WITH_CUDA)
  if (runs_on_cuda(like)) {
    const CudaCall call(like);
    check_supported(p.forward, call.device(), true);
    const at::Tensor workspace = call.workspace(target_attention_backward_cuda_workspace(p.forward, call.device()));
    call.check(kOp, target_attention_backward_cuda(p, call.device(), workspace.mutable_data_ptr(), call.stream()));
    return;
  }
#endif
  const TargetAttentionPlan plan = plan_target_attention_backward(p.forward, at::get_num_threads());
  const auto item_kernel = STCA_SELECT_CPU_KERNEL(target_attention_backward_item);
  const auto merge_kernel = STCA_SELECT_CPU_KERNEL(target_attention_backward_merge);
  run(
      plan, p.forward.dtype,
      [&](const TargetAttentionItem& item, void* scratch, void* partial) {
        item_kernel(p, plan.tiling, item, scratch, partial);
      },
      [&](const TargetAttentionMerge& merge, void* partials) { merge_kernel(p, merge, partials, plan.partial_size); });
}

}  // namespace stca
