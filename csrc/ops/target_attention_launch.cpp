#include "target_attention_launch.h"

#include <algorithm>
#include <thread>
#include <vector>

namespace stca {
namespace {

// Items in any order, then the combines of their partial results.
void run_forward(const TargetAttentionParams& p, CpuIsa isa, const TargetAttentionPlan& plan) {
  const auto item_kernel = STCA_CPU_KERNEL(isa, target_attention_item);
  const auto combine_kernel = STCA_CPU_KERNEL(isa, target_attention_combine);
  const int64_t scratch_bytes = STCA_CPU_KERNEL(isa, target_attention_scratch)(p, plan.tiling, plan.max_targets);
  const int64_t element = accumulator_size(p.dtype);
  const at::Tensor partials = at::empty({plan.partial_count * plan.partial_size * element}, at::kByte);
  char* memory = static_cast<char*>(partials.mutable_data_ptr());
  for_each_item(plan.items.size(), scratch_bytes, [&](int64_t i, void* scratch) {
    const TargetAttentionItem& item = plan.items[i];
    item_kernel(p, plan.tiling, item, scratch,
                item.partial < 0 ? nullptr : memory + item.partial * plan.partial_size * element);
  });
  for_each_item(plan.combines.size(), 0,
                [&](int64_t i, void*) { combine_kernel(p, plan.combines[i], memory, plan.partial_size); });
}

// Pieces of one history add up their dq in order. Whoever is done too early waits for a piece that another thread took
// before, so that nobody waits for ever, and a thread holds one dq, however many pieces there are.
void run_backward(const TargetAttentionBackwardParams& p, CpuIsa isa, const TargetAttentionPlan& plan,
                  at::Tensor& scratch) {
  const auto item_kernel = STCA_CPU_KERNEL(isa, target_attention_backward_item);
  const auto add_kernel = STCA_CPU_KERNEL(isa, target_attention_backward_add);
  const int64_t scratch_bytes =
      STCA_CPU_KERNEL(isa, target_attention_backward_scratch)(p, plan.tiling, plan.max_targets);
  std::vector<std::atomic<int64_t>> next(plan.combines.size());  // the partial result that each combine takes next
  for (size_t m = 0; m < next.size(); ++m) next[m] = plan.combines[m].partial_begin;
  auto work = [&](int64_t i, void* own) {
    const TargetAttentionItem& item = plan.items[i];
    item_kernel(p, plan.tiling, item, own);
    if (item.combine < 0) return add_kernel(p, item, own);
    while (next[item.combine].load(std::memory_order_acquire) != item.partial) std::this_thread::yield();
    add_kernel(p, item, own);
    next[item.combine].store(item.partial + 1, std::memory_order_release);
  };
  for_each_item(plan.items.size(), scratch_bytes, work, &scratch);
}

}  // namespace

void launch_target_attention(const TargetAttentionParams& p, const at::Tensor& like, CpuIsa isa, bool backward) {
  if constexpr (kWithCuda) {
    if (runs_on_cuda(like)) return target_attention_on_cuda(p, like, backward);
  }
  run_forward(p, isa, plan_target_attention(p, at::get_num_threads()));
}

void launch_target_attention_backward(TargetAttentionBackwardParams p, const at::Tensor& like, CpuIsa isa,
                                      int64_t rows_at_once, const std::function<void(int64_t, int64_t)>& use) {
  const int64_t rows = p.forward.num_rows;
  if constexpr (kWithCuda) {
    if (runs_on_cuda(like)) {
      target_attention_backward_on_cuda(p, like);
      return use(0, rows);
    }
  }
  const bool rounds = accumulator_size(p.forward.dtype) != int64_t(like.element_size());
  at::Tensor dq_sums, scratch;
  p.dq_sums = p.dq;
  p.first_row = 0;
  do {
    const int64_t end = std::min(p.first_row + rows_at_once, rows);
    const TargetAttentionPlan plan = plan_target_attention_backward(p.forward, at::get_num_threads(), p.first_row, end);
    if (rounds && !dq_sums.defined() && (end < rows || !plan.combines.empty())) {
      dq_sums = at::empty({p.forward.num_targets, p.forward.heads, p.forward.key_dim}, at::kFloat);
      p.dq_sums = dq_sums.mutable_data_ptr();
    }
    run_backward(p, isa, plan, scratch);
    use(p.first_row, end);
    p.first_row = end;
  } while (p.first_row < rows);
}

}  // namespace stca
