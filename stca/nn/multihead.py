"""What `torch.nn.MultiheadAttention` holds, in the form of `TargetAttention`."""

from typing import Any

from torch import Tensor, nn

Taken = dict[str, tuple[Tensor, bool]]  # values, and whether they are trained

_WHAT = "TargetAttention.from_multihead_attention: mha"


def taken_from(mha: Any) -> tuple[Taken, Taken]:
    """Weights and biases (none or all three) by their names in `TargetAttention`.

    Raises:
        TypeError: something that is no `nn.MultiheadAttention`.
        ValueError: what `TargetAttention` cannot express.
    """
    _check(mha)
    trained = mha.in_proj_weight.requires_grad
    weights = {
        name: (rows.T, trained) for name, rows in zip(("w_q", "w_k", "w_v"), mha.in_proj_weight.chunk(3), strict=True)
    }
    weights["w_o"] = mha.out_proj.weight.T, mha.out_proj.weight.requires_grad
    if mha.in_proj_bias is None:
        return weights, {}
    b_q, _, b_v = mha.in_proj_bias.chunk(3)
    trained = mha.in_proj_bias.requires_grad
    return weights, {
        "b_q": (b_q, trained),
        "b_v": (b_v, trained),
        "b_o": (mha.out_proj.bias, mha.out_proj.bias.requires_grad),
    }


def _check(mha: Any) -> None:
    if not isinstance(mha, nn.MultiheadAttention):
        raise TypeError(f"{_WHAT} must be a torch.nn.MultiheadAttention, got {type(mha).__name__}")
    if type(mha).forward is not nn.MultiheadAttention.forward:
        raise ValueError(
            f"{_WHAT} must compute what torch.nn.MultiheadAttention does, got {type(mha).__name__} with its own forward"
        )
    cannot = {
        "kdim": (mha.kdim, mha.embed_dim),
        "vdim": (mha.vdim, mha.embed_dim),
        "bias_k": (mha.bias_k, None),
        "bias_v": (mha.bias_v, None),
        "add_zero_attn": (mha.add_zero_attn, False),
        "dropout": (mha.dropout, 0.0),
    }
    for name, (value, needed) in cannot.items():
        if value is not needed and value != needed:
            raise ValueError(f"{_WHAT}.{name} must be {needed}, got {value}")
    weight, out = mha.in_proj_weight, mha.out_proj.weight
    if (out.dtype, out.device) != (weight.dtype, weight.device):
        raise ValueError(
            f"{_WHAT}.out_proj must have the dtype and device of in_proj_weight, {weight.dtype} on {weight.device}, "
            f"got {out.dtype} on {out.device}"
        )
    given = [bias is not None for bias in (mha.in_proj_bias, mha.out_proj.bias)]
    if given[0] != given[1]:
        raise ValueError(f"{_WHAT} must have both of in_proj_bias and out_proj.bias or neither, got {given}")
