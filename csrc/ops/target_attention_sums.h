// Gradients of k and v where a row stands for several history rows: sums of the gradients of these, in their order.
#pragma once

#include "../kernels/target_attention.h"
#include "common.h"

namespace stca {

// Returns dk and dv, like k and v; dv is undefined where v is. `params` holds everything but these. Sums are made in
// the accumulation type and rounded once. On the CPU memory beyond them does not grow with `index`.
std::pair<at::Tensor, at::Tensor> launch_indexed_target_attention_backward(TargetAttentionBackwardParams params,
                                                                           CpuIsa isa, const at::Tensor& index,
                                                                           const at::Tensor& k, const at::Tensor& v);

}  // namespace stca
