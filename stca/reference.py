"""Plain PyTorch oracles, straight from the equations: `stca.reference.f` has the signature of `stca.ops.f`.

They loop over requests and targets and store every score. Run them in float64 to judge anything else.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from stca.nn import STCA, STCALayer, SwiGLUFFN, TargetAttention


def target_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    target_offsets: Tensor,
    history_offsets: Tensor,
    *,
    visible: Tensor | None = None,
    history_index: Tensor | None = None,
    scale: float | None = None,
    recompute: bool | Literal["auto"] = True,
    return_lse: bool = False,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Oracle of `stca.ops.target_attention`: one softmax per target, over the rows that it sees."""
    _, H, Dk = q.shape
    accumulation = torch.float64 if q.dtype == torch.float64 else torch.float32
    if k_scale is not None:
        k = k.to(accumulation) * k_scale[:, :, None]
    if v is not None and v_scale is not None:
        v = v.to(accumulation) * v_scale[:, :, None]
    if history_index is not None:
        k, v = k[history_index], None if v is None else v[history_index]
    group = H // k.shape[1]
    scale = Dk**-0.5 if scale is None else scale
    keys = k.to(accumulation).repeat_interleave(group, dim=1)  # [N, H, Dk]
    values = keys if v is None else v.to(accumulation).repeat_interleave(group, dim=1)  # [N, H, Dv]
    outs, lses = [], []
    for request in range(len(target_offsets) - 1):
        first, last = int(history_offsets[request]), int(history_offsets[request + 1])
        for t in range(int(target_offsets[request]), int(target_offsets[request + 1])):
            begin, end = (0, last - first) if visible is None else visible[t].tolist()
            rows = slice(first + begin, first + end)
            scores = scale * torch.einsum("hd,nhd->hn", q[t].to(accumulation), keys[rows])
            lse = scores.logsumexp(dim=1)
            alpha = scores.softmax(dim=1)  # exp(scores - lse) keeps no digit of scores beyond 1e15
            outs.append(torch.einsum("hn,nhd->hd", alpha, values[rows]).to(q.dtype))
            lses.append(lse)
    out = torch.stack(outs) if outs else q.new_zeros(0, H, values.shape[2])
    lse = torch.stack(lses) if lses else q.new_zeros(0, H, dtype=accumulation)
    return (out, lse) if return_lse else out


def swiglu_ffn_norm(
    x: Tensor,
    w_u: Tensor,
    w_v: Tensor,
    w_o: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    recompute: bool | Literal["auto"] = True,
) -> Tensor:
    """Oracle of `stca.ops.swiglu_ffn_norm`, in the inputs' own dtype; autograd keeps what it needs either way.

    Its gradients are autograd's, 0 times what a row holds: NaN of rows that are not finite, also where their incoming
    gradient is 0. The operator leaves these rows out; its gradients are the oracle's on the batch without them.
    """
    v = x @ w_v
    h = ((x @ w_u) * (v / (1 + torch.exp(-v)))) @ w_o
    if norm_weight is None:
        return h
    centred = h - h.mean(dim=1, keepdim=True)
    y = centred / torch.sqrt(centred.square().mean(dim=1, keepdim=True) + eps) * norm_weight
    return y if norm_bias is None else y + norm_bias


def request_gather(
    x: Tensor | Sequence[Tensor], target_offsets: Tensor, *, total: int | None = None
) -> Tensor | list[Tensor]:
    """Oracle of `stca.ops.request_gather`: one index per target."""
    counts = target_offsets.diff().tolist()
    rows = [r for r, count in enumerate(counts) for _ in range(count)]
    return x[rows] if isinstance(x, Tensor) else [each[rows] for each in x]


def request_reduce(x: Tensor, target_offsets: Tensor, reduce: Literal["sum", "mean"] = "sum") -> Tensor:
    """Oracle of `stca.ops.request_reduce`: one request after the other."""
    ends = target_offsets.tolist()
    sums = []
    for begin, end in pairwise(ends):
        total = x[begin:end].sum(dim=0)
        sums.append(total / max(1, end - begin) if reduce == "mean" else total)
    return torch.stack(sums) if sums else x.new_zeros(0, *x.shape[1:])


def jagged_select(
    values: Tensor, offsets: Tensor, index: Tensor, keep: Tensor | None = None, total: int | None = None
) -> tuple[Tensor, Tensor]:
    """Oracle of `stca.ops.jagged_select`: one slice after the other."""
    slices, ends = [values[:0]], [0]
    for s, r in enumerate(index.tolist()):
        begin, end = int(offsets[r]), int(offsets[r + 1])
        if keep is not None:
            begin = max(begin, end - int(keep[s]))
        slices.append(values[begin:end])
        ends.append(ends[-1] + end - begin)
    return torch.cat(slices), offsets.new_tensor(ends)


def multi_head_attention(x: Tensor, rows: Tensor, attention: TargetAttention) -> tuple[Tensor, Tensor]:
    """What one target x [D] finds in the rows [L, D] that it sees, and lse [H]: the projected order, head by head."""
    D, H = attention.dim, attention.num_heads
    heads, lse = [], []
    for j in range(H):
        columns = slice(j * D // H, (j + 1) * D // H)
        scores = (rows @ attention.w_k[:, columns]) @ (x @ attention.w_q[:, columns]) / (D // H) ** 0.5
        lse.append(scores.logsumexp(dim=0))
        heads.append(torch.softmax(scores, dim=0) @ (rows @ attention.w_v[:, columns]))
    return torch.cat(heads) @ attention.w_o, torch.stack(lse)


def stca_forward(
    model: STCA,
    targets: Tensor,
    history: Tensor,
    target_offsets: Tensor,
    history_offsets: Tensor,
    *,
    visible: Tensor | None = None,
) -> Tensor:
    """Oracle of `stca.nn.STCA` on flat rows: the equations target by target, each with its own copy of its history."""

    def ffn(module: SwiGLUFFN, x: Tensor) -> Tensor:
        weights = module.w_u, module.w_v, module.w_o, module.norm_weight, module.norm_bias
        return swiglu_ffn_norm(x, *weights, eps=module.eps)

    results = []
    for r in range(len(target_offsets) - 1):
        first, last = int(history_offsets[r]), int(history_offsets[r + 1])
        for t in range(int(target_offsets[r]), int(target_offsets[r + 1])):
            begin, end = (0, last - first) if visible is None else visible[t].tolist()
            rows, inputs, lses = history[first + begin : first + end], [targets[t]], []
            for layer in model.layers:
                assert isinstance(layer, STCALayer)
                query = inputs[0] if layer.w_c is None else torch.cat(inputs) @ layer.w_c
                encoded, q = ffn(layer.history_ffn, rows), ffn(layer.query_ffn, query[None])[0]
                o, lse = multi_head_attention(q, encoded, layer.attention)
                inputs.insert(-1, o)
                lses.append(lse)
            fused = torch.cat(inputs) @ model.w_z
            if model.w_l is not None:
                fused = fused + torch.log1p(torch.exp(torch.cat(lses))) @ model.w_l
            results.append(ffn(model.output_ffn, fused[None])[0])
    return torch.stack(results) if results else targets[:0]
