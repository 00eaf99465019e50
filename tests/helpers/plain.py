"""The operators as one would write them in eager PyTorch, and what they give beside the oracles."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from cases import TARGET_ATTENTION, TargetAttentionInputs, accumulation
from torch import Tensor

import stca


def target_attention_references(
    inputs: TargetAttentionInputs, oracle: Callable[..., Any] = stca.reference.target_attention
) -> dict[str, tuple[Tensor, Tensor]]:
    """Each result by the oracle, in float64, and by plain PyTorch, in that result's own dtype."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # many small operations
    expected = inputs.to(torch.float64).results(oracle)
    plain = inputs.results(plain_target_attention)
    plain["lse"] = inputs.to(accumulation(inputs.q.dtype)).call(plain_target_attention)[1]
    torch.set_num_threads(threads)
    return {name: (expected[name], plain[name]) for name in expected}


@cache  # the same for every instruction set and device
def references_of_case(name: str, dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    """`target_attention_references` of a case of `TARGET_ATTENTION`."""
    return target_attention_references(next(case for case in TARGET_ATTENTION if case.name == name).build(dtype))


def plain_target_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    target_offsets: Tensor,
    history_offsets: Tensor,
    *,
    visible: Tensor | None = None,
    history_index: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """target_attention as one would write it: a masked softmax per request, all in the inputs' dtype."""
    _, H, Dk = q.shape
    if history_index is not None:
        k, v = k[history_index], None if v is None else v[history_index]
    group, values = H // k.shape[1], k if v is None else v
    scale = Dk**-0.5 if scale is None else scale
    outs, lses = [q.new_zeros(0, H, values.shape[2])], [q.new_zeros(0, H)]
    targets, rows = target_offsets.diff().tolist(), history_offsets.diff().tolist()
    everything = [torch.tensor([[0, n]]) for n in rows]
    ranges = everything if visible is None else torch.split(visible, targets)
    parts = torch.split(q, targets), torch.split(k, rows), torch.split(values, rows), ranges
    for qs, ks, vs, seen_rows in zip(*parts, strict=True):
        ks, vs = ks.repeat_interleave(group, dim=1), vs.repeat_interleave(group, dim=1)
        scores = torch.einsum("thd,nhd->thn", qs * scale, ks)
        n = torch.arange(len(ks))
        seen = (seen_rows[:, :1] <= n) & (n < seen_rows[:, 1:])  # [m, L]
        any_seen = seen.any(dim=1)[:, None, None]
        # Where nothing is seen the scores stay finite, else their gradient would be NaN times 0.
        scores = scores.masked_fill(~seen[:, None] & any_seen, -torch.inf)
        outs.append(torch.einsum("thn,nhd->thd", scores.softmax(dim=2) * any_seen, vs))
        lses.append(scores.logsumexp(dim=2).masked_fill(~any_seen[..., 0], -torch.inf))
    out, lse = torch.cat(outs), torch.cat(lses)
    return (out, lse) if return_lse else out


def swiglu_results(
    inputs: dict[str, Tensor],
    dy: Tensor,
    f: Callable[..., Tensor] = stca.reference.swiglu_ffn_norm,
    **options: Any,
) -> dict[str, Tensor]:
    """y of swiglu_ffn_norm and each gradient, in the dtype of the inputs."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    y = f(**leaves, **options)
    grads = torch.autograd.grad(y, list(leaves.values()), dy.to(y.dtype))
    return {"y": y.detach()} | {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}


def swiglu_references(inputs: dict[str, Tensor], dy: Tensor, **options: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """`swiglu_results` of the oracle in float64, and in the inputs' dtype."""
    exact = swiglu_results({name: x.double() for name, x in inputs.items()}, dy, **options)
    plain = swiglu_results(inputs, dy, **options)
    return {name: (exact[name], plain[name]) for name in exact}
