"""STCA: layers of target-to-history cross attention, each over its own encoding of the raw history."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from stca.nn.attention import Keep
from stca.nn.ffn import SwiGLUFFN
from stca.nn.layer import STCALayer
from stca.nn.layout import Kept, pack_requests, split_kept
from stca.nn.module import Module, check_like, check_tensor
from stca.nn.order import Order
from stca.nn.product import matmul
from stca.ops._common import Recompute


class STCA(Module):
    r"""Stacked target-to-history cross attention: what each target finds in its request's history, [T, D].

    Layers i = 1..M as in `STCALayer`, then

    .. math::
        z = \mathrm{SwiGLUFFN}([o_1, \ldots, o_M, x_t] W_Z)

    No self-attention among history rows, no mask, no residuals; the cost is linear in the history's length. The
    history is held once per request, never per target. When results have the same bits: see `TargetAttention`.

    Args:
        dim: D, width of targets, history rows and result.
        num_layers: M, at least 1.
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
        recompute: of all feed-forward networks and attentions, see `SwiGLUFFN` and `TargetAttention`.
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
        recompute: Recompute = True,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"STCA: num_layers must be at least 1, got {num_layers}")
        self.dim, self.num_heads = dim, num_heads
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
                recompute=recompute,
                device=device,
                dtype=dtype,
            )
            for position in range(1, num_layers + 1)
        )
        self.w_z = nn.Parameter(torch.empty((num_layers + 1) * dim, dim, device=device, dtype=dtype))
        self.w_l = (
            nn.Parameter(torch.empty(num_layers * num_heads, dim, device=device, dtype=dtype)) if use_lse else None
        )
        self.reset_parameters()  # before the last network draws: the order that seeds stand for
        self.output_ffn = SwiGLUFFN(
            dim, ffn_ratio, norm=final_norm, eps=eps, recompute=recompute, device=device, dtype=dtype
        )

    def reset_parameters(self) -> None:
        """Draws the stack's own weights, not those of its parts: w_z so that variance is kept."""
        nn.init.normal_(self.w_z, std=self.w_z.shape[0] ** -0.5)
        if self.w_l is not None:
            nn.init.normal_(self.w_l, std=0.1)

    def forward(
        self,
        targets: Tensor | None,
        history: Tensor | None = None,
        target_offsets: Tensor | None = None,
        history_offsets: Tensor | None = None,
        *,
        visible: Tensor | None = None,
        target_lengths: Tensor | None = None,
        history_lengths: Tensor | None = None,
        history_index: Tensor | None = None,
        encoded: Sequence[Kept] | None = None,
        keep: Keep = "rows",
    ) -> Tensor | list[Tensor]:
        """z for every target, in one of three forms.

        Args:
            targets: flat [T, D], padded [B, m, D], or nested [B, j, D] with layout torch.jagged. None: only encode the
                history, see `encode_history`.
            history: raw rows in the same form: [N, D], [B, L, D], or nested. Padding is encoded but never attended to,
                and whatever it holds is in no gradient.
            target_offsets: [R + 1], flat form only: request r owns targets `target_offsets[r]:target_offsets[r+1]`.
            history_offsets: [R + 1], flat form only, as above for history rows.
            visible: int [T, 2] ([B, m, 2] in padded form, [T, 2] or nested in nested form): each target sees only rows
                [begin, end) of its own request's history. None: all.
            target_lengths: int [B], padded form only: z of targets beyond is 0. None: all are targets.
            history_lengths: int [B], padded form only: rows beyond are padding. None: all are rows.
            history_index: int [N], flat form only: the history holds P distinct rows [P, D], and row n of the
                requests' histories is row `history_index[n]`. Each distinct row is encoded once.
            encoded: flat form only: what `encode_history` gave, in place of the history. See `attend`.
            keep: without targets only, see `encode_history`.

        Returns:
            z in the targets' form.

        Raises:
            TypeError: something else than a tensor.
            ValueError: arguments of different forms, rows of another width than D or of another dtype or device than
                the weights, lengths that no padded batch has, or what `stca.ops.target_attention` refuses. Lengths on a
                GPU are checked with STCA_DEBUG=1 only, as offsets are.
        """
        others = target_offsets, history_offsets, visible, history_index, target_lengths, history_lengths
        if targets is None and encoded is None and all(each is None for each in others):
            return self._encode(history, keep)
        check_tensor("STCA", "targets", targets)
        owner, rows = ("STCA", history) if encoded is None else ("STCA.attend", self._checked(encoded))
        if encoded is not None and history is not None:
            raise ValueError("STCA: history must be None where encoded is given, got both")
        packed = pack_requests(owner, self.dim, targets, rows, *others)
        check_like(owner, self.w_z, targets=packed.targets, history=packed.history if encoded is None else None)
        options = {"encoded": encoded is not None, "checkpoint": self.checkpoint, **packed.options()}
        x = packed.targets
        inputs, found, lses = x, [], []
        kept = [packed.history] * len(self.layers) if encoded is None else encoded
        for layer, own_rows in zip(self.layers, kept, strict=True):
            o, lse = layer(inputs, own_rows, **options)
            found.append(o)
            lses.append(lse)
            inputs = torch.cat([*found, x], dim=1)  # [o_1, ..., o_i, x_t]
        fused = matmul(inputs, self.w_z)
        if self.w_l is not None:
            # softplus is 0 for a target that sees nothing, whose lse is -inf.
            fused = fused + matmul(F.softplus(torch.cat(lses, dim=1)).to(fused.dtype), self.w_l)
        return packed.unpack(self.output_ffn(fused), 0.0)

    def encode_history(self, history: Tensor, keep: Keep = "rows") -> list[Tensor]:
        """Every layer's encoding of history rows [N, D]: what a server keeps per user and extends by new rows.

        Args:
            history: [N, D], raw rows.
            keep: "rows" gives the encoded rows [N, D], with whose results `forward`'s agree to the bit in float32.
                "keys_values" gives the keys and values [N, 2, H, D / H] that the layer's attention makes of them: twice
                the memory, and a request then costs neither their products nor attention at H times their width. Sums
                may round otherwise than in `forward`, since a BLAS sums the same row otherwise among other numbers of
                rows. Where H = 1 rows are the better choice.

        Raises:
            ValueError: another width than D, another dtype or device than the weights', or an unknown `keep`.
        """
        encoded: list[Tensor] = self(None, history, keep=keep)  # a call, so that hooks and FSDP see it
        return encoded

    def attend(
        self,
        targets: Tensor,
        encoded: Sequence[Kept],
        target_offsets: Tensor,
        history_offsets: Tensor,
        *,
        visible: Tensor | None = None,
        history_index: Tensor | None = None,
    ) -> Tensor:
        """z [T, D] from flat targets and what `encode_history` gave, or pairs of it as int8 and scales.

        Raises:
            ValueError: another number of encodings than layers, or what `forward` refuses.
        """
        z: Tensor = self(
            targets,
            None,
            target_offsets,
            history_offsets,
            visible=visible,
            history_index=history_index,
            encoded=encoded,
        )
        return z

    def _encode(self, history: Any, keep: Keep) -> list[Tensor]:
        if keep not in ("rows", "keys_values"):
            raise ValueError(f"STCA.encode_history: keep must be 'rows' or 'keys_values', got {keep!r}")
        check_tensor("STCA.encode_history", "history", history)
        if history.is_nested or history.dim() != 2 or history.shape[-1] != self.dim:
            form = "nested" if history.is_nested else list(history.shape)
            raise ValueError(f"STCA.encode_history: history must be [N, D] with D = {self.dim}, got {form}")
        check_like("STCA.encode_history", self.w_z, history=history)
        return [layer(None, history, keep=keep) for layer in self.layers]

    def _checked(self, encoded: Sequence[Kept]) -> Tensor:
        """The first layer's rows, whose form the others have too."""
        if not isinstance(encoded, Sequence | Tensor):
            raise TypeError(
                f"STCA.attend: encoded must be a sequence of tensors, got {type(encoded).__name__} {encoded!r}"
            )
        if len(encoded) != len(self.layers):
            raise ValueError(
                f"STCA.attend: encoded must hold {len(self.layers)} tensors, one a layer, got {len(encoded)}"
            )
        kept = [split_kept("STCA.attend", own) for own in encoded]
        first = kept[0][0]
        for i, (rows, scale) in enumerate(kept):
            check_tensor("STCA.attend", f"encoded[{i}]", rows)
            if rows.shape != first.shape:
                raise ValueError(
                    f"STCA.attend: encoded[{i}] must be {list(first.shape)}, as encoded[0], got {list(rows.shape)}"
                )
            check_like("STCA.attend", self.w_z, **{f"encoded[{i}]": rows if scale is None else None})
        return first
