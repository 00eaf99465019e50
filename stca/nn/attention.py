"""Multi-head attention of targets to their request's history, in the cheaper of two exact orders."""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stca import ops
from stca.nn.history_group import merge_parts, sum_gradients
from stca.nn.layout import Flat, flatten
from stca.nn.order import BY_FLOPS, compiled_order_costs, order_costs
from stca.nn.product import einsum, matmul, matmuls

Order = Literal["auto", "reordered", "projected"]
_WORTH_MEASURING = 1e8  # FLOPs of attention, a millisecond or so
_ROWS_OF_A_GROUP = 10_000  # of a history, for the choice of order where no rank knows its length


class TargetAttention(nn.Module):
    r"""Softmax attention of every target to the history rows of its own request.

    .. math::
        \alpha_j = \mathrm{softmax}\big(x_t W_{Q,j} (X W_{K,j})^\top / \sqrt{d_h}\big) \qquad
        o = [\alpha_1 X W_{V,1}, \ldots, \alpha_H X W_{V,H}] W_O

    The two orders give the same result and gradients. "projected" forms the keys and values of every history row.
    "reordered" never does: :math:`u_j = (x_t W_{Q,j}) W_{K,j}^\top` attends to the raw rows and what it gathers is
    projected, which is cheaper for few targets, about m < D / (H - 1).

    Args:
        dim: D, width of targets, history rows and output.
        num_heads: H, divides D.
        bias: biases of queries, values and output. A bias of keys would drop out of the softmax and is not held.
        order: "auto" takes the faster order for the shapes at hand, with m = T / R targets per request: by FLOPs, and
            near the crossover by what they cost here (`order_costs`); "reordered" under `torch.export`, since one
            program then serves all shapes.
        history_group: ranks that each hold a part of every request's history, and all targets. Histories, their
            offsets and `visible` are this rank's part; results and the gradients of targets and weights are whole
            and the same on every rank. What travels is of the size of the queries, whatever the history's length.

    Shapes:
        targets [T, D] and history [N, D] with offsets, or padded, or nested (see `STCA`) -> like targets.
        A target that sees no row gets exactly 0.

    Raises:
        ValueError: an unknown order, or heads that do not divide D.

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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads != 0:
            raise ValueError(f"TargetAttention: num_heads must divide dim = {dim}, got {num_heads}")
        if order not in ("auto", "reordered", "projected"):
            raise ValueError(f"TargetAttention: order must be 'auto', 'reordered' or 'projected', got {order!r}")
        self.dim = dim
        self.num_heads = num_heads
        self.order: Order = order
        self.history_group = history_group
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

    def chosen_order(
        self, T: int, N: int, R: int, P: int | None = None, dtype: torch.dtype | None = None
    ) -> Literal["reordered", "projected"]:
        """The faster order, unless the module fixes one or is being exported; see `stca.nn.order_costs`.

        Args:
            T: targets of all requests.
            N: history rows of all requests.
            R: requests.
            P: distinct history rows, N when None.
            dtype: of targets and history, that of the weights when None.
        """
        if self.order != "auto":
            return self.order
        if torch.compiler.is_exporting():
            return "reordered"
        D, H, pairs = self.dim, self.num_heads, N * T / max(R, 1)
        project, attend = 4 * (N if P is None else P) * D * D, 4 * D * pairs
        # What travels between the ranks of a group depends on the order, so they must agree; small or clear cases
        # are not worth a measurement.
        costs = BY_FLOPS
        if self.history_group is None and H * attend > _WORTH_MEASURING and 4 * H * attend > project + attend:
            find = compiled_order_costs if torch.compiler.is_compiling() else order_costs
            costs = find(self.w_q.device, dtype or self.w_q.dtype, torch.is_grad_enabled(), D, H)
        reordered = costs.reordered * H * attend + 4 * T * D * D
        return "reordered" if reordered <= project + costs.projected * attend else "projected"

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
        """Attends; see the class, and `STCA.forward` for the forms of the arguments."""
        flat = flatten(
            "TargetAttention",
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
        return flat.restore(self.attend(flat, history_index)[0])

    def attend(self, flat: Flat, history_index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """o [T, D] and the logarithms of the softmax denominators [T, H], for arguments in flat form."""
        x, rows = flat.targets, flat.history
        D, H, dh = self.dim, self.num_heads, self.dim // self.num_heads
        T, R = x.shape[0], flat.target_offsets.shape[0] - 1
        q = matmul(x, self.w_q) if self.b_q is None else matmul(x, self.w_q) + self.b_q
        q = q.view(T, H, dh)
        N, P = rows.shape[0] if history_index is None else history_index.shape[0], rows.shape[0]
        group = self.history_group
        if group is not None:
            N = P = _ROWS_OF_A_GROUP * R  # all ranks must take one order, and know their own rows only
        reordered = self.chosen_order(T, N, R, P, q.dtype) == "reordered"
        if reordered:
            q = einsum("thd,khd->thk", q, self.w_k.view(D, H, dh))
            if group is not None:
                (q,) = sum_gradients(group, q)
            k, v = rows[:, None], None
        else:
            w_k: Tensor = self.w_k
            w_v: Tensor = self.w_v
            if group is not None:
                q, w_k, w_v = sum_gradients(group, q, w_k, w_v)
            k, v = (each.view(-1, H, dh) for each in matmuls(rows, w_k, w_v))
        out, lse = ops.target_attention(
            q,
            k,
            v,
            flat.target_offsets,
            flat.history_offsets,
            visible=flat.visible,
            history_index=history_index,
            scale=dh**-0.5,
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

        Raises:
            ValueError: what it cannot express: another width of keys or values, `add_bias_kv`, `add_zero_attn`, or
                dropout.

        Example:
            >>> mha = torch.nn.MultiheadAttention(16, 4)
            >>> stca.nn.TargetAttention.from_multihead_attention(mha).num_heads
            4
        """
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
                raise ValueError(f"TargetAttention.from_multihead_attention: mha.{name} must be {needed}, got {value}")
        assert mha.in_proj_weight is not None
        weight = mha.in_proj_weight
        module = cls(
            mha.embed_dim,
            mha.num_heads,
            bias=mha.in_proj_bias is not None,
            order=order,
            device=weight.device,
            dtype=weight.dtype,
        )
        with torch.no_grad():
            for to, rows in zip((module.w_q, module.w_k, module.w_v), weight.chunk(3), strict=True):
                to.copy_(rows.T)
            module.w_o.copy_(mha.out_proj.weight.T)
            if module.b_q is not None and module.b_v is not None and module.b_o is not None:
                b_q, _, b_v = mha.in_proj_bias.chunk(3)
                module.b_q.copy_(b_q)
                module.b_v.copy_(b_v)
                module.b_o.copy_(mha.out_proj.bias)
        return module

    def extra_repr(self) -> str:
        """Sizes, for print(module)."""
        return f"{self.dim}, num_heads={self.num_heads}, bias={self.b_q is not None}, order={self.order!r}"
