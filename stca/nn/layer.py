"""One layer of STCA: its own encoding of the raw history, and the attention of a fused query to it."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpointed

from stca.nn.attention import Keep, TargetAttention
from stca.nn.ffn import SwiGLUFFN
from stca.nn.layout import Kept
from stca.nn.module import Module
from stca.nn.order import Order
from stca.nn.product import matmul
from stca.ops._common import Recompute


class STCALayer(Module):
    r"""One layer: encodes the raw history, fuses the query with what earlier layers found, and attends.

    .. math::
        \begin{aligned}
        \tilde X_i &= \mathrm{LN}(\mathrm{SwiGLUFFN}_i(X)) \\
        q_i &= \mathrm{LN}(\mathrm{SwiGLUFFN}_i([o_1, \ldots, o_{i-1}, x_t] W_{C,i})) \\
        o_i &= \mathrm{Attention}(q_i, \tilde X_i)
        \end{aligned}

    The first layer has no :math:`W_C`: its query is :math:`\mathrm{LN}(\mathrm{SwiGLUFFN}_1(x_t))`.

    Args:
        dim: D, width of queries, history rows and result.
        num_heads: H, divides D.
        position: i, from 1; the query is fused from i inputs.
        ffn_ratio: r, hidden width of both networks over D.
        share_ffn: one network (and its norm) for queries and history instead of two.
        order: of the attention, see `TargetAttention`.
        history_group: ranks that each hold a part of every history, see `TargetAttention`.
        eps: of the layer norms.
        recompute: of both networks and the attention, see `SwiGLUFFN` and `TargetAttention`.

    Raises:
        ValueError: a position below 1, or sizes that `SwiGLUFFN` or `TargetAttention` refuse.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        position: int = 1,
        ffn_ratio: float = 2,
        *,
        share_ffn: bool = False,
        order: Order = "auto",
        history_group: dist.ProcessGroup | None = None,
        eps: float = 1e-5,
        recompute: Recompute = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if position < 1:
            raise ValueError(f"STCALayer: position must be at least 1, got {position}")

        def ffn() -> SwiGLUFFN:
            return SwiGLUFFN(dim, ffn_ratio, norm=True, eps=eps, recompute=recompute, device=device, dtype=dtype)

        self.history_ffn = ffn()
        self.query_ffn = self.history_ffn if share_ffn else ffn()
        self.w_c = nn.Parameter(torch.empty(position * dim, dim, device=device, dtype=dtype)) if position > 1 else None
        self.reset_parameters()  # before the attention draws: the order that seeds stand for
        self.attention = TargetAttention(
            dim,
            num_heads,
            order=order,
            history_group=history_group,
            recompute=recompute,
            device=device,
            dtype=dtype,
        )

    def reset_parameters(self) -> None:
        """Draws the layer's own weights, not those of its parts, so that variance is kept."""
        if self.w_c is not None:
            nn.init.normal_(self.w_c, std=self.w_c.shape[0] ** -0.5)

    def forward(
        self,
        inputs: Tensor | None,
        history: Kept,
        *,
        encoded: bool = False,
        keep: Keep = "rows",
        checkpoint: bool = False,
        **requests: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """What the targets find in their histories, and how much of it matched.

        Args:
            inputs: [o_1, ..., o_(i-1), x_t], [T, i * D]. None: only encode the history.
            history: [N, D], raw rows; where `encoded`, what the attention takes.
            encoded: the history is what this layer made of it already.
            keep: without inputs, the form of what is given.
            checkpoint: do not keep the encoded history for the backward pass, encode it again.
            requests: offsets, `visible` and `history_index` of flat rows, as of `TargetAttention`.

        Returns:
            o_i [T, D] and lse [T, H]; without inputs the encoded history, rows [N, D] or keys and values
            [N, 2, H, D / H]. A row of it depends on its own raw row alone, so it can be kept for later requests.
        """
        if keep not in ("rows", "keys_values") or (keep != "rows" and inputs is not None):
            raise ValueError(f"STCALayer: keep must be 'rows', or without inputs 'keys_values', got {keep!r}")
        group = self.attention.history_group
        if not encoded:
            assert isinstance(history, Tensor)
        if not encoded and checkpoint:
            history = checkpointed(self.history_ffn, history, group, use_reentrant=False)
        elif not encoded:
            history = self.history_ffn(history, group)
        if inputs is None:
            return history if keep == "rows" else self.attention(None, history)
        query = self.query_ffn(inputs if self.w_c is None else matmul(inputs, self.w_c))
        found: tuple[Tensor, Tensor] = self.attention(query, history, **requests, return_lse=True)
        return found
