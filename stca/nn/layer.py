"""One layer of STCA: its own encoding of the raw history, and the attention of a fused query to it."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from stca.nn.attention import Order, TargetAttention
from stca.nn.ffn import SwiGLUFFN
from stca.nn.layout import Flat
from stca.nn.product import matmul


def fusion(inputs: int, dim: int, device: torch.device | str | None, dtype: torch.dtype | None) -> nn.Parameter:
    """Weights [inputs * D, D] that keep unit variance."""
    weight = torch.empty(inputs * dim, dim, device=device, dtype=dtype)
    return nn.Parameter(nn.init.normal_(weight, std=(inputs * dim) ** -0.5))


class STCALayer(nn.Module):
    r"""One layer: encodes the raw history, fuses the query with what earlier layers found, and attends.

    .. math::
        \tilde X_i = \mathrm{LN}(\mathrm{SwiGLUFFN}_i(X)) \qquad
        q_i = \mathrm{LN}(\mathrm{SwiGLUFFN}_i([o_1, \ldots, o_{i-1}, x_t] W_{C,i})) \qquad
        o_i = \mathrm{Attention}(q_i, \tilde X_i)

    The first layer has no :math:`W_C`: its query is :math:`\mathrm{LN}(\mathrm{SwiGLUFFN}_1(x_t))`.

    Args:
        dim: D.
        num_heads: H.
        position: i, from 1; the query is fused from i inputs.
        ffn_ratio: r, hidden width of both networks over D.
        share_ffn: one network (and its norm) for queries and history instead of two.
        order: of the attention, see `TargetAttention`.
        history_group: ranks that each hold a part of every history, see `TargetAttention`.
        eps: of the layer norms.
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.history_ffn = SwiGLUFFN(dim, ffn_ratio, norm=True, eps=eps, device=device, dtype=dtype)
        self.query_ffn = (
            self.history_ffn if share_ffn else SwiGLUFFN(dim, ffn_ratio, norm=True, eps=eps, device=device, dtype=dtype)
        )
        self.w_c = fusion(position, dim, device, dtype) if position > 1 else None
        self.attention = TargetAttention(
            dim, num_heads, order=order, history_group=history_group, device=device, dtype=dtype
        )

    def forward(
        self,
        inputs: Sequence[Tensor],
        history: Tensor,
        flat: Flat,
        history_index: Tensor | None = None,
        checkpoint: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """`attend` to the history's own encoding; with `checkpoint` it is encoded again in the backward pass."""
        encoded: Tensor = (
            recompute(self.encode_history, history, use_reentrant=False) if checkpoint else self.encode_history(history)
        )
        return self.attend(inputs, encoded, flat, history_index)

    def encode_history(self, history: Tensor) -> Tensor:
        """History rows [N, D] -> [N, D]; a row depends on itself alone, so it can be kept for later requests."""
        encoded: Tensor = self.history_ffn(history, self.attention.history_group)
        return encoded

    def attend(
        self, inputs: Sequence[Tensor], encoded: Tensor, flat: Flat, history_index: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """o_i [T, D] and its lse [T, H], from [o_1, ..., o_(i-1), x_t] and the encoded history."""
        query = inputs[0] if self.w_c is None else matmul(torch.cat(list(inputs), dim=1), self.w_c)
        return self.attention.attend(flat._replace(targets=self.query_ffn(query), history=encoded), history_index)
