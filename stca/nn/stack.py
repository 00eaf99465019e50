"""STCA: layers of target-to-history cross attention, each over its own encoding of the raw history."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from stca.nn.attention import Order
from stca.nn.ffn import SwiGLUFFN
from stca.nn.layer import STCALayer, fusion
from stca.nn.layout import Flat, flatten
from stca.nn.product import matmul


class STCA(nn.Module):
    r"""Stacked target-to-history cross attention: what each target finds in its request's history, [T, D].

    Layers i = 1..M as in `STCALayer`, then

    .. math::
        z = \mathrm{SwiGLUFFN}([o_1, \ldots, o_M, x_t] W_Z)

    No self-attention among history rows, no mask, no residuals; the cost is linear in the history's length. The
    history is held once per request, never per target.

    Args:
        dim: D, width of targets, history rows and result.
        num_layers: M.
        num_heads: H, divides D.
        ffn_ratio: r, hidden width of the feed-forward networks over D.
        share_ffn: one network (and its norm) for queries and history in each layer instead of two.
        final_norm: a layer norm behind z.
        use_lse: let z see how much of the history matched, not only what: adds
            :math:`\log(1 + e^{\mathrm{lse}})\, W_L` of every layer and head to the input of the last network.
            Attention weights sum to 1, so o alone cannot tell one matching event from a hundred. Not in the paper.
        order: of the attention, see `TargetAttention`.
        history_group: ranks that each hold a part of every history, see `TargetAttention`.
        checkpoint: do not keep the encoded history for the backward pass, encode it again.
        eps: of the layer norms.

    Source:
        arXiv 2511.06077, section 3.2.

    Example:
        >>> model = stca.nn.STCA(dim=16, num_layers=2, num_heads=4)
        >>> offsets = torch.tensor([0, 2, 3]), torch.tensor([0, 5, 9])  # 2 requests: 2 and 1 targets, 5 and 4 rows
        >>> model(torch.randn(3, 16), torch.randn(9, 16), *offsets).shape
        torch.Size([3, 16])
    """

    def __init__(
        self,
        dim: int,
        num_layers: int = 4,
        num_heads: int = 8,
        ffn_ratio: float = 2,
        *,
        share_ffn: bool = False,
        final_norm: bool = False,
        use_lse: bool = False,
        order: Order = "auto",
        history_group: dist.ProcessGroup | None = None,
        checkpoint: bool = False,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"STCA: num_layers must be at least 1, got {num_layers}")
        self.dim = dim
        self.checkpoint = checkpoint
        self.layers = nn.ModuleList(
            STCALayer(
                dim,
                num_heads,
                position,
                ffn_ratio,
                share_ffn=share_ffn,
                order=order,
                history_group=history_group,
                eps=eps,
                device=device,
                dtype=dtype,
            )
            for position in range(1, num_layers + 1)
        )
        self.w_z = fusion(num_layers + 1, dim, device, dtype)
        self.w_l = (
            nn.Parameter(nn.init.normal_(torch.empty(num_layers * num_heads, dim, device=device, dtype=dtype), std=0.1))
            if use_lse
            else None
        )
        self.output_ffn = SwiGLUFFN(dim, ffn_ratio, norm=final_norm, eps=eps, device=device, dtype=dtype)

    def forward(
        self,
        targets: Tensor,
        history: Tensor,
        target_offsets: Tensor | None = None,
        history_offsets: Tensor | None = None,
        *,
        visible: Tensor | None = None,
        target_lengths: Tensor | None = None,
        history_lengths: Tensor | None = None,
        history_index: Tensor | None = None,
    ) -> Tensor:
        """z for every target, in one of three forms.

        Args:
            targets: flat [T, D], padded [B, m, D], or nested [B, j, D] with layout torch.jagged.
            history: raw rows in the same form: [N, D], [B, L, D], or nested. Padding is encoded but never attended to.
            target_offsets: [R + 1], flat form only: request r owns targets `target_offsets[r]:target_offsets[r+1]`.
            history_offsets: [R + 1], flat form only, as above for history rows.
            visible: int [T, 2] ([B, m, 2] in padded form): each target sees only rows [begin, end) of its own
                request's history. None: all.
            target_lengths: int [B], padded form only: z of targets beyond is 0. None: all are targets.
            history_lengths: int [B], padded form only: rows beyond are padding. None: all are rows.
            history_index: int [N], flat form only: the history holds P distinct rows [P, D], and row n of the
                requests' histories is row `history_index[n]`. Each distinct row is encoded once.

        Returns:
            z in the targets' form.

        Raises:
            ValueError: arguments of different forms, rows of another width than D, or what
                `stca.ops.target_attention` refuses.
        """
        flat = flatten(
            "STCA",
            self.dim,
            targets,
            history,
            target_offsets,
            history_offsets,
            visible,
            history_index,
            target_lengths,
            history_lengths,
        )
        layers = (
            partial(layer, history=flat.history, flat=flat, history_index=history_index, checkpoint=self.checkpoint)
            for layer in self._layers()
        )
        return flat.restore(self._stack(flat, layers))

    def encode_history(self, history: Tensor) -> list[Tensor]:
        """Every layer's encoding of history rows [N, D]: what a server keeps per user and extends by new rows."""
        return [layer.encode_history(history) for layer in self._layers()]

    def attend(
        self,
        targets: Tensor,
        encoded: Sequence[Tensor],
        target_offsets: Tensor,
        history_offsets: Tensor,
        *,
        visible: Tensor | None = None,
        history_index: Tensor | None = None,
    ) -> Tensor:
        """z [T, D] from flat targets and what `encode_history` gave for their history.

        Raises:
            ValueError: another number of encodings than layers.
        """
        if len(encoded) != len(self.layers):
            raise ValueError(
                f"STCA.attend: encoded must hold {len(self.layers)} tensors, one a layer, got {len(encoded)}"
            )
        flat = flatten(
            "STCA.attend", self.dim, targets, encoded[0], target_offsets, history_offsets, visible, history_index
        )
        layers = (
            partial(layer.attend, encoded=rows, flat=flat, history_index=history_index)
            for layer, rows in zip(self._layers(), encoded, strict=True)
        )
        return self._stack(flat, layers)

    def _layers(self) -> Iterable[STCALayer]:
        return cast("Iterable[STCALayer]", self.layers)

    def _stack(self, flat: Flat, layers: Iterable[Callable[[list[Tensor]], tuple[Tensor, Tensor]]]) -> Tensor:
        inputs, lses = [flat.targets], []
        for layer in layers:
            o, lse = layer(inputs)
            inputs.insert(-1, o)
            lses.append(lse)
        fused = matmul(torch.cat(inputs, dim=1), self.w_z)
        if self.w_l is not None:
            # softplus is 0 for a target that sees nothing, whose lse is -inf.
            fused = fused + matmul(F.softplus(torch.cat(lses, dim=1)).to(fused.dtype), self.w_l)
        z: Tensor = self.output_ffn(fused)
        return z
