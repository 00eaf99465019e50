// Runs the kernels of target_attention where the tensors are: on the CPU's threads or on a CUDA stream.
#pragma once

#include <functional>

#include "../kernels/cpu_isa.h"
#include "../kernels/target_attention.h"
#include "common.h"

namespace stca {

// `like` is any tensor of the call; all pointers in `params` are on its device. Where a `backward` pass is to follow,
// this already refuses what that pass would. On the CPU `isa` computes, which is cpu_isa(dtype).
void launch_target_attention(const TargetAttentionParams& params, const at::Tensor& like, CpuIsa isa, bool backward);

// The CPU takes `rows_at_once` history rows at a time: `use` finds their gradients in params.dk and dv before the next
// ones take their place. CUDA takes all rows at once.
void launch_target_attention_backward(TargetAttentionBackwardParams params, const at::Tensor& like, CpuIsa isa,
                                      int64_t rows_at_once,
                                      const std::function<void(int64_t row_begin, int64_t row_end)>& use);

// What these call where tensors are on CUDA (target_attention_cuda.cpp).
void target_attention_on_cuda(TargetAttentionParams params, const at::Tensor& like, bool backward);
void target_attention_backward_on_cuda(TargetAttentionBackwardParams params, const at::Tensor& like);

}  // namespace stca
