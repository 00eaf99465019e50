// The tensors of swiglu_ffn_norm, and what runs it on CUDA, behind the checks of swiglu_ffn_norm.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace stca {

struct SwigluFfnNormTensors {
  const at::Tensor& x;                                      // [N, D]
  const at::Tensor &w_u, &w_v, &w_o;                        // [D, F], [D, F], [F, D]
  const std::optional<at::Tensor>&norm_weight, &norm_bias;  // [D]
};

// u and v side by side [N, 2 F], and h [N, D], for the backward pass; not defined where nothing is kept.
struct SwigluFfnNormKept {
  at::Tensor uv, h;
};

// Writes y [N, D], the norm's mean and rstd [N], which are [0] without a norm, and what is to be kept.
void swiglu_ffn_norm_on_cuda(const SwigluFfnNormTensors& in, double eps, const at::Tensor& y, const at::Tensor& mean,
                             const at::Tensor& rstd, const SwigluFfnNormKept& kept);

// Returns the gradients of all six tensors; that of one that is not given is [0].
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> swiglu_ffn_norm_backward_on_cuda(
    const SwigluFfnNormTensors& in, const at::Tensor& dy, const at::Tensor& mean, const at::Tensor& rstd, bool x_grad,
    const SwigluFfnNormKept& kept);

}  // namespace stca
