// Runs the kernels of target_attention where the tensors are: on the CPU's threads or on a CUDA stream.
#pragma once

#include "../kernels/target_attention.h"
#include "common.h"

namespace stca {

// `like` is any tensor of the call; all pointers in `params` are on its device.
void launch_target_attention(const TargetAttentionParams& params, const at::Tensor& like);
void launch_target_attention_backward(const TargetAttentionBackwardParams& params, const at::Tensor& like);

}  // namespace stca
