"""The gated feed-forward network of STCA."""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stca import ops
from stca.nn.history_group import sum_gradients
from stca.nn.module import Module, check_like, check_tensor
from stca.ops._common import Recompute


def hidden_width(owner: str, dim: int, ffn_ratio: float) -> int:
    """F, the whole part of ffn_ratio * dim.

    Raises:
        ValueError: a width below 1.
    """
    if not (dim >= 1 and 1 <= ffn_ratio * dim < math.inf):
        raise ValueError(f"{owner}: dim and ffn_ratio * dim must be at least 1, got {dim} and {ffn_ratio * dim:g}")
    return int(ffn_ratio * dim)


class SwiGLUFFN(Module):
    r"""Gated feed-forward network without biases, with or without a layer norm behind it.

    .. math::
        \text{SwiGLUFFN}(x) = \big((x W_u) \odot \mathrm{silu}(x W_v)\big) W_o

    Args:
        dim: D, width of input and output.
        ffn_ratio: r; the hidden width is F = r * D.
        norm: put a layer norm with weight and bias behind it.
        eps: of the layer norm.
        recompute: whether the backward pass computes hidden rows again or keeps them: True, False or "auto", see
            `stca.ops.swiglu_ffn_norm`.

    Shapes:
        x [..., D] -> [..., D]

    Raises:
        ValueError: dim or the hidden width below 1, or an x of another width, dtype or device than the weights.

    Source:
        arXiv 2511.06077, section 3.2.

    Example:
        >>> stca.nn.SwiGLUFFN(8, norm=True)(torch.randn(5, 8)).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        dim: int,
        ffn_ratio: float = 2,
        *,
        norm: bool = False,
        eps: float = 1e-5,
        recompute: Recompute = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden_width("SwiGLUFFN", dim, ffn_ratio)
        self.dim = dim
        self.eps = eps
        self.recompute = recompute
        self.w_u = nn.Parameter(torch.empty(dim, hidden, device=device, dtype=dtype))
        self.w_v = nn.Parameter(torch.empty(dim, hidden, device=device, dtype=dtype))
        self.w_o = nn.Parameter(torch.empty(hidden, dim, device=device, dtype=dtype))
        self.norm_weight = nn.Parameter(torch.empty(dim, device=device, dtype=dtype)) if norm else None
        self.norm_bias = nn.Parameter(torch.empty(dim, device=device, dtype=dtype)) if norm else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weights that keep rows of unit variance near unit variance."""
        for weight in (self.w_u, self.w_v, self.w_o):
            nn.init.normal_(weight, std=weight.shape[0] ** -0.5)
        with torch.no_grad():
            # silu(x) x' of two unit normals has a second moment of 0.36.
            self.w_o.mul_(0.36**-0.5)
        if self.norm_weight is not None and self.norm_bias is not None:
            nn.init.ones_(self.norm_weight)
            nn.init.zeros_(self.norm_bias)

    def forward(self, x: Tensor, history_group: dist.ProcessGroup | None = None) -> Tensor:
        """x [..., D] -> [..., D]; with a group, x is this rank's part of all rows (see `TargetAttention`)."""
        check_tensor("SwiGLUFFN", "x", x)
        if x.is_nested:
            raise ValueError(f"SwiGLUFFN: x must be [..., D] with D = {self.dim}, got nested (its values() are rows)")
        if x.dim() == 0 or x.shape[-1] != self.dim:
            raise ValueError(f"SwiGLUFFN: x must be [..., D] with D = {self.dim}, got {list(x.shape)}")
        check_like("SwiGLUFFN", self.w_u, x=x)
        rows = x.reshape(-1, self.dim)
        weights: list[Tensor] = [self.w_u, self.w_v, self.w_o]
        if self.norm_weight is not None and self.norm_bias is not None:
            weights += [self.norm_weight, self.norm_bias]
        if history_group is not None:
            weights = list(sum_gradients(history_group, *weights))
        w_u, w_v, w_o, *norm = weights
        norm_weight, norm_bias = norm or (None, None)
        y = ops.swiglu_ffn_norm(rows, w_u, w_v, w_o, norm_weight, norm_bias, self.eps, recompute=self.recompute)
        return y if x.dim() == 2 else y.reshape(x.shape)  # no view: modules around this one may change it in place

    def extra_repr(self) -> str:
        """Sizes, for print(module)."""
        return f"{self.dim}, hidden={self.w_u.shape[1]}, norm={self.norm_weight is not None}"
