"""Multi-head attention of targets to their request's history, in the cheaper of two exact orders."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stca import ops
from stca.nn.history_group import merge_parts, sum_gradients
from stca.nn.layout import Kept, PackedRequests, pack_requests, split_kept
from stca.nn.module import Module, check_like, check_tensor
from stca.nn.multihead import taken_from
from stca.nn.order import CPU_COSTS, CUDA_COSTS, ROWS_OF_A_GROUP, Order, compiled_choice
from stca.nn.product import einsum, matmul, project_history, rows_asked_for
from stca.ops._common import Recompute

Keep = Literal["rows", "keys_values"]


class TargetAttention(Module):
    r"""Softmax attention of every target to the history rows of its own request.

    .. math::
        \alpha_j = \mathrm{softmax}\big(x_t W_{Q,j} (X W_{K,j})^\top / \sqrt{d_h}\big) \qquad
        o = [\alpha_1 X W_{V,1}, \ldots, \alpha_H X W_{V,H}] W_O

    The two orders give the same result and gradients. "projected" forms the keys and values of every history row.
    "reordered" never does: :math:`u_j = (x_t W_{Q,j}) W_{K,j}^\top` attends to the raw rows and what it gathers is
    projected, which is cheaper for few targets, about m < D / (H - 1). Rows that no target sees may hold anything and
    are in no gradient.

    Without targets a call gives the keys and values of a flat history, [N, 2, H, D / H], which can be kept and stand
    for its rows in later calls: those attend to them as they are, whatever the order. Kept rows, and keys and values,
    may be int8 with scales, a pair of tensors [N, ..., D] and [N, ..., 1]; then nothing may require a gradient.

    The bits are the same on every run of the same call with as many threads. Other numbers of threads, targets or
    requests sum in another order, which in float32 changes results by some 1e-7; what other requests hold does not.

    Args:
        dim: D, width of targets, history rows and output.
        num_heads: H, divides D.
        bias: biases of queries, values and output. A bias of keys would drop out of the softmax and is not held.
        order: "auto" takes the faster order for the shapes at hand, by FLOPs and what one costs in each order: on the
            CPU "projected" from about D / (1.2 H - 2) targets per request on. It is "reordered" where one program
            serves all shapes, under `torch.export` and, of nested tensors, under `torch.compile`.
        history_group: ranks that each hold a part of every request's history, and all targets. Histories, their
            offsets and `visible` are this rank's part; results and the gradients of targets and weights are whole
            and the same on every rank. What travels is of the size of the queries, whatever the history's length.
        recompute: whether the backward pass of the reordered form computes scores again or keeps them: True, False or
            "auto", see `stca.ops.target_attention`.

    Shapes:
        targets [T, D] and history [N, D] or [N, 2, H, D / H] with offsets, or padded, or nested (see `STCA`) -> like
        targets.
        A target that sees no row gets exactly 0.

    Raises:
        ValueError: an unknown order, D below 1, or heads that do not divide D.

    Source:
        arXiv 2511.06077, section 3.2; the reordering: "Request-level reordering" there.

    Example:
        >>> attention = stca.nn.TargetAttention(16, 4)
        >>> offsets = torch.tensor([0, 2, 3]), torch.tensor([0, 5, 9])
        >>> attention(torch.randn(3, 16), torch.randn(9, 16), *offsets).shape
        torch.Size([3, 16])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        bias: bool = False,
        order: Order = "auto",
        history_group: dist.ProcessGroup | None = None,
        recompute: Recompute = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"TargetAttention: dim must be at least 1, got {dim}")
        if num_heads < 1 or dim % num_heads != 0:
            raise ValueError(f"TargetAttention: num_heads must divide dim = {dim}, got {num_heads}")
        if order not in ("auto", "reordered", "projected"):
            raise ValueError(f"TargetAttention: order must be 'auto', 'reordered' or 'projected', got {order!r}")
        self.dim = dim
        self.num_heads = num_heads
        self.order: Order = order
        self.history_group = history_group
        self.recompute = recompute
        self.w_q, self.w_k, self.w_v, self.w_o = (
            nn.Parameter(torch.empty(dim, dim, device=device, dtype=dtype)) for _ in range(4)
        )
        self.b_q, self.b_v, self.b_o = (
            nn.Parameter(torch.empty(dim, device=device, dtype=dtype)) if bias else None for _ in range(3)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weights that keep unit variance; biases are 0."""
        for weight in (self.w_q, self.w_k, self.w_v, self.w_o):
            nn.init.normal_(weight, std=self.dim**-0.5)
        for bias in (self.b_q, self.b_v, self.b_o):
            if bias is not None:
                nn.init.zeros_(bias)

    def chosen_order(self, T: int, N: int, R: int, P: int | None = None) -> Literal["reordered", "projected"]:
        """The faster order, unless the module fixes one or one program serves all shapes.

        Args:
            T: targets of all requests.
            N: history rows of all requests.
            R: requests.
            P: distinct history rows, N when None.
        """
        if self.order != "auto":
            return self.order
        if torch.compiler.is_exporting():
            return "reordered"
        D, H, pairs = self.dim, self.num_heads, N * T / max(R, 1)
        project, attend = 4 * (N if P is None else min(N, P)) * D * D, 4 * D * pairs
        reordered, projected = CUDA_COSTS if self.w_q.is_cuda else CPU_COSTS
        cheaper = reordered * H * attend + 4 * T * D * D <= project + projected * attend
        if torch.compiler.is_compiling():
            cheaper = compiled_choice(R, cheaper)
        return "reordered" if cheaper else "projected"

    def forward(
        self,
        targets: Tensor | None,
        history: Kept,
        target_offsets: Tensor | None = None,
        history_offsets: Tensor | None = None,
        *,
        visible: Tensor | None = None,
        target_lengths: Tensor | None = None,
        history_lengths: Tensor | None = None,
        history_index: Tensor | None = None,
        return_lse: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attends; see the class, and `STCA.forward` for the forms of the arguments.

        With `return_lse` also the logarithms of the softmax denominators, H in place of D, -inf where nothing is seen.
        """
        others = target_offsets, history_offsets, visible, history_index, target_lengths, history_lengths
        history, scale = split_kept("TargetAttention", history)
        if targets is None and all(each is None for each in others):
            check_tensor("TargetAttention", "history", history)
            if scale is not None or history.is_nested or history.dim() != 2 or history.shape[1] != self.dim:
                form = "nested" if history.is_nested else list(history.shape)
                raise ValueError(f"TargetAttention: history must be [N, D] with D = {self.dim}, got {form}")
            check_like("TargetAttention", self.w_k, history=history)
            return torch.stack(self._project(history), dim=1)
        packed = pack_requests("TargetAttention", self.dim, targets, history, *others)
        out, lse = self._attend(packed, scale)
        out = packed.unpack(out, 0.0)
        return (out, packed.unpack(lse, -torch.inf)) if return_lse else out

    def _project(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, [N, H, D / H] each."""
        weights: tuple[Tensor, ...] = self.w_k, self.w_v
        if self.history_group is not None:
            weights = sum_gradients(self.history_group, *weights)
        k, v = (each.view(-1, self.num_heads, self.dim // self.num_heads) for each in project_history(rows, *weights))
        return k, v

    def _attend(self, requests: PackedRequests, scale: Tensor | None) -> tuple[Tensor, Tensor]:
        x, rows, target_offsets, history_offsets, visible, index, _ = requests
        D, H, dh = self.dim, self.num_heads, self.dim // self.num_heads
        T, P, R, group = x.shape[0], rows.shape[0], target_offsets.shape[0] - 1, self.history_group
        check_like("TargetAttention", self.w_q, targets=x, history=rows if scale is None else None)
        q = (matmul(x, self.w_q) if self.b_q is None else matmul(x, self.w_q) + self.b_q).view(T, H, dh)
        N = P if index is None else index.shape[0]
        if group is not None:
            N = P = ROWS_OF_A_GROUP * R  # all ranks must take one order, and know their own rows only
        kept = rows.dim() == 4
        reordered = not kept and self.chosen_order(T, N, R, P) == "reordered"
        if not kept and not reordered and index is not None:
            rows, scale, index = rows_asked_for(rows, scale, index)
        scales: Sequence[Tensor | None] = (None, None)
        if scale is not None and (kept or reordered):
            scales = scale[..., 0].unbind(1) if kept else (scale, None)
        elif scale is not None:
            rows = rows.to(x.dtype).mul_(scale)
        if reordered:
            q = einsum("thd,khd->thk", q, self.w_k.view(D, H, dh))
        if group is not None:
            (q,) = sum_gradients(group, q)
        k, v = (rows[:, None], None) if reordered else rows.unbind(1) if kept else self._project(rows)
        out, lse = ops.target_attention(
            q,
            k,
            v,
            target_offsets,
            history_offsets,
            visible=visible,
            history_index=index,
            k_scale=scales[0],
            v_scale=scales[1],
            scale=dh**-0.5,
            recompute=self.recompute,
            return_lse=True,
        )
        if group is not None:
            out, lse = merge_parts(group, out, lse)
        if reordered:
            out = einsum("thk,khd->thd", out, self.w_v.view(D, H, dh))
        out = out.reshape(T, D)
        if self.b_v is None or self.b_o is None:
            return matmul(out, self.w_o), lse
        # The weights of a target that sees any row sum to 1, so the bias of the values comes through once.
        seen = (lse[:, :1] > -torch.inf).to(out.dtype)
        return (matmul(out + self.b_v, self.w_o) + self.b_o) * seen, lse

    @classmethod
    def from_multihead_attention(cls, mha: nn.MultiheadAttention, *, order: Order = "auto") -> "TargetAttention":
        """A module with the trained weights of `mha`, called with the history as its keys and values.

        What is frozen there is frozen here, and the module is in the same mode, training or evaluation. Rows are
        [T, D], [B, m, D] or nested here whatever `mha.batch_first` is.

        Raises:
            TypeError: something that is no `nn.MultiheadAttention`.
            ValueError: what it cannot express: another width of keys or values, `add_bias_kv`, `add_zero_attn`,
                dropout, or a subclass that computes something else.

        Example:
            >>> mha = torch.nn.MultiheadAttention(16, 4)
            >>> stca.nn.TargetAttention.from_multihead_attention(mha).num_heads
            4
        """
        weights, biases = taken_from(mha)
        like = mha.out_proj.weight
        options: dict[str, Any] = {"bias": bool(biases), "order": order, "device": like.device, "dtype": like.dtype}
        module = cls(mha.embed_dim, mha.num_heads, **options)
        for name, (values, requires_grad) in {**weights, **biases}.items():
            own = module.get_parameter(name).requires_grad_(requires_grad)
            with torch.no_grad():
                own.copy_(values)
        return module.train(mha.training)

    def extra_repr(self) -> str:
        """Sizes, for print(module)."""
        return f"{self.dim}, num_heads={self.num_heads}, bias={self.b_q is not None}, order={self.order!r}"
