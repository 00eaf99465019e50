"""Context parallelism: every rank of a group holds a part of every history, and only query-sized results travel."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _SumGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, *xs: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        return tuple(x.view_as(x) for x in xs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        totals = [grad.clone(memory_format=torch.contiguous_format) for grad in grads]
        for total in totals:
            dist.all_reduce(total, group=ctx.group)
        return None, *totals


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, x: Tensor) -> Tensor:
        ctx.rank = dist.get_rank(group)
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad[ctx.rank]


def sum_gradients(group: dist.ProcessGroup, *xs: Tensor) -> tuple[Tensor, ...]:
    """Tensors that are the same on every rank, before they meet the rank's own rows: their gradients are summed."""
    summed: tuple[Tensor, ...] = _SumGradients.apply(group, *xs)  # type: ignore[no-untyped-call]
    return summed


def merge_parts(group: dist.ProcessGroup, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    r"""What all ranks' rows give together, from what each rank's own rows gave; the same on every rank.

    .. math::
        \text{lse} = \log \sum_w e^{\text{lse}_w} \qquad \text{out} = \sum_w e^{\text{lse}_w - \text{lse}} \text{out}_w

    Args:
        group: of W ranks.
        out: [T, H, Dv] of this rank's rows.
        lse: [T, H] of this rank's rows, -inf where a target sees none of them.
    """
    outs, lses = (_Gather.apply(group, x) for x in (out, lse))  # type: ignore[no-untyped-call]
    most = lses.detach().amax(dim=0)
    weights = torch.exp(lses - most.masked_fill(most == -torch.inf, 0))  # [W, T, H]
    total = weights.sum(dim=0)
    nothing = total == 0  # on any rank
    total = total.masked_fill(nothing, 1)
    merged = ((weights / total)[..., None] * outs).sum(dim=0).to(out.dtype)
    return merged, (most.masked_fill(nothing, 0) + total.log()).masked_fill(nothing, -torch.inf)
