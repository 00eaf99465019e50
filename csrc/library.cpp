// Every operator of stca, with its shapes. R requests, T targets, N history rows, H heads, Hk history heads.
#include <torch/library.h>

TORCH_LIBRARY(stca, m) {
  // q [T, H, Dk], k [P, Hk, Dk], v [P, Hk, Dv] (None: v is k), offsets [R + 1], visible [T, 2], history_index [N]
  // -> out [T, H, Dv], lse [T, H], max_and_sum [T, H, 2] (for the backward pass), scores [pairs of a target and a
  // history row * H] with keep, else [0]; backward: one is to follow.
  // k_scale, v_scale [P, Hk]: k, v are int8 then, and row n of head j stands for scale[n, j] times what it holds
  m.def(
      "target_attention(Tensor q, Tensor k, Tensor? v, Tensor target_offsets, Tensor history_offsets, "
      "Tensor? visible, Tensor? history_index, float? scale, bool backward=False, Tensor? k_scale=None, "
      "Tensor? v_scale=None, bool keep=False) -> (Tensor out, Tensor lse, Tensor max_and_sum, Tensor scores)");
  // dout [T, H, Dv], dlse [T, H] (None: zero) -> dq, dk, dv like q, k, v; dv is [0] when v is None. scores, as they
  // were kept, spare a product
  m.def(
      "target_attention_backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor? v, Tensor target_offsets, "
      "Tensor history_offsets, Tensor? visible, Tensor? history_index, Tensor out, Tensor max_and_sum, float? scale, "
      "bool history_grads=True, Tensor? scores=None) -> (Tensor dq, Tensor dk, Tensor dv)");

  // x [N, D], w_u [D, F], w_v [D, F], w_o [F, D], norm_weight [D] (None: no norm), norm_bias [D]
  // -> y [N, D], mean [N], rstd [N], and with keep for the backward pass uv [N, 2 F] and h [N, D] (on the CPU of the
  // accumulation type), else [0]
  m.def(
      "swiglu_ffn_norm(Tensor x, Tensor w_u, Tensor w_v, Tensor w_o, Tensor? norm_weight, Tensor? norm_bias, "
      "float eps, bool keep=False) -> (Tensor y, Tensor mean, Tensor rstd, Tensor uv, Tensor h)");
  // dy [N, D] -> gradients like x, w_u, w_v, w_o, norm_weight, norm_bias; [0] for what is None. y spares computing h
  // again, uv and h, which come together, every product of the forward pass
  m.def(
      "swiglu_ffn_norm_backward(Tensor dy, Tensor x, Tensor w_u, Tensor w_v, Tensor w_o, Tensor? norm_weight, "
      "Tensor? norm_bias, Tensor mean, Tensor rstd, Tensor? y=None, bool x_grad=True, Tensor? uv=None, Tensor? h=None) "
      "-> (Tensor dx, Tensor dw_u, Tensor dw_v, Tensor dw_o, Tensor dnorm_weight, Tensor dnorm_bias)");

  // xs of [R, ...], target_offsets [R + 1] -> [T, ...] each; total: T
  m.def("request_gather(Tensor[] xs, Tensor target_offsets, SymInt? total) -> Tensor[]");
  // x [T, ...], target_offsets [R + 1] -> [R, ...]
  m.def("request_reduce(Tensor x, Tensor target_offsets, bool mean) -> Tensor");
  // grad [R, ...], target_offsets [R + 1] -> [T, ...]; total: T
  m.def("request_reduce_backward(Tensor grad, Tensor target_offsets, bool mean, SymInt total) -> Tensor");

  // values [N, ...], offsets [R + 1], index [S], keep [S] -> values [sum of lengths, ...], offsets [S + 1]
  m.def(
      "jagged_select(Tensor values, Tensor offsets, Tensor index, Tensor? keep, SymInt? total) "
      "-> (Tensor values, Tensor offsets)");
  m.def("jagged_select_backward(Tensor grad, Tensor offsets, Tensor index, Tensor? keep, SymInt num_rows) -> Tensor");
}
