// Every operator of stca, with its shapes. R requests, T targets, N history rows, H heads, Hk history heads.
#include <torch/library.h>

TORCH_LIBRARY(stca, m) {
  // q [T, H, Dk], k [N, Hk, Dk], v [N, Hk, Dv] (None: v is k), offsets [R + 1], visible [T, 2]
  // -> out [T, H, Dv], lse [T, H]
  m.def(
      "target_attention(Tensor q, Tensor k, Tensor? v, Tensor target_offsets, Tensor history_offsets, "
      "Tensor? visible, float scale) -> (Tensor out, Tensor lse)");
  // dout [T, H, Dv], dlse [T, H] (None: zero) -> dq, dk, dv like q, k, v; dv is [0] when v is None
  m.def(
      "target_attention_backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor? v, Tensor target_offsets, "
      "Tensor history_offsets, Tensor? visible, Tensor out, Tensor lse, float scale) "
      "-> (Tensor dq, Tensor dk, Tensor dv)");
}
