"""What `torch.utils.flop_counter.FlopCounterMode` counts: 2 FLOPs for each multiplication and addition of a product."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from stca.ops._common import count_pairs, has_values


@register_flop_formula(torch.ops.stca.target_attention, get_raw=True)
def _target_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    target_offsets: Tensor,
    history_offsets: Tensor,
    visible: Tensor | None,
    history_index: Tensor | None,
    *_: Any,
    **__: Any,
) -> int:
    rows = (k if history_index is None else history_index).shape[0]
    widths = q.shape[2] + (k if v is None else v).shape[2]
    return 2 * q.shape[1] * widths * count_pairs(q, rows, target_offsets, history_offsets, visible)


@register_flop_formula(torch.ops.stca.target_attention_backward, get_raw=True)
def _target_attention_backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    target_offsets: Tensor,
    history_offsets: Tensor,
    visible: Tensor | None,
    history_index: Tensor | None,
    out: Tensor,
    max_and_sum: Tensor,
    scale: float | None,
    history_grads: bool = True,
    scores: Tensor | None = None,
    **_: Any,
) -> int:
    """Scores again where they are not given, the weights' gradient and dq; with dk and dv two more.

    On CUDA dk and dv are made on their own: they find scores and the weights' gradient once more, and are made whether
    wanted or not.
    """
    rows = (k if history_index is None else history_index).shape[0]
    key, value = q.shape[2], dout.shape[2]
    products = key * (2 - (scores is not None)) + value + (key + value if history_grads else 0)
    if q.device.type == "cuda":
        products = 4 * key + 3 * value
    return 2 * q.shape[1] * products * count_pairs(q, rows, target_offsets, history_offsets, visible)


@register_flop_formula(torch.ops.stca.swiglu_ffn_norm, get_raw=True)
def _swiglu_ffn_norm(x: Tensor, w_u: Tensor, *_: Any, **__: Any) -> int:
    return 2 * 3 * x.shape[0] * w_u.numel()


@register_flop_formula(torch.ops.stca.swiglu_ffn_norm_backward, get_raw=True)
def _swiglu_ffn_norm_backward(
    dy: Tensor,
    x: Tensor,
    w_u: Tensor,
    w_v: Tensor,
    w_o: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    y: Tensor | None = None,
    x_grad: bool = True,
    uv: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> int:
    """A gradient for each product, and before, where uv is not given, both hidden ones, and the norm's without y.

    dx takes two, and is made on CUDA whether wanted or not. Rows without a gradient are left out on the CPU.
    """
    on_cuda = x.device.type == "cuda"
    rows = x.shape[0] if on_cuda or not has_values(dy) else int(dy.ne(0).any(dim=1).sum())
    again = 0 if uv is not None else 2 + (norm_weight is not None and (y is None or on_cuda))
    return 2 * (again + 4 + 2 * (x_grad or on_cuda)) * rows * w_u.numel()
