"""Histories cut over ranks give what one process gives: results, gradients, and little on the wire."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import offsets
from processes import run_ranks
from torch import Tensor, nn

from stca.nn import STCA, TargetAttention

D, H = 16, 4
M_TARGETS, LENGTHS = [3, 0, 2, 4, 1], [50, 4, 0, 33, 1]
TARGETS, ROWS = offsets(M_TARGETS), offsets(LENGTHS)
T, N = sum(M_TARGETS), sum(LENGTHS)
MODELS: dict[str, Any] = {
    "reordered": lambda **group: TargetAttention(D, H, order="reordered", dtype=torch.float64, **group),
    "projected": lambda **group: TargetAttention(D, H, order="projected", bias=True, dtype=torch.float64, **group),
    "stca": lambda **group: STCA(D, 2, H, use_lse=True, checkpoint=True, dtype=torch.float64, **group),
}


def _case(kind: str, **group: Any) -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    model = MODELS[kind](**group)
    x, rows, dz = (torch.randn(n, D, dtype=torch.float64) for n in (T, N, T))
    length = torch.repeat_interleave(ROWS.diff(), TARGETS.diff())
    ends = torch.stack([(torch.rand(T) * (length + 1)).long() for _ in range(2)], dim=1)
    return model, x, rows, dz, ends.sort(dim=1).values


def _results(model: nn.Module, x: Tensor, rows: Tensor, history: Tensor, visible: Tensor, dz: Tensor) -> list[Tensor]:
    leaves = [x.requires_grad_(), rows.requires_grad_(), *model.parameters()]
    z = model(x, rows, TARGETS, history, visible=visible)
    return [z.detach(), *torch.autograd.grad(z, leaves, dz)]


def _cuts(world_size: int) -> Tensor:
    """Where each history is cut, [world_size + 1, R]: at random, so that parts are empty too."""
    generator = torch.Generator().manual_seed(1)
    inner = (
        (torch.rand(world_size - 1, len(LENGTHS), generator=generator) * (ROWS.diff() + 1)).long().sort(dim=0).values
    )
    return torch.cat([torch.zeros(1, len(LENGTHS), dtype=torch.int64), inner, ROWS.diff()[None]])


def _worker(rank: int, world_size: int) -> tuple[dict[str, list[Tensor]], Tensor, list[int]]:
    cuts, results, sent = _cuts(world_size), {}, []

    def counted(collective: Any, *args: Any, **kwargs: Any) -> Any:
        sent.append(args[-1].numel())
        return collective(*args, **kwargs)

    for name in ("all_gather", "all_reduce"):
        setattr(dist, name, partial(counted, getattr(dist, name)))
    for kind in MODELS:
        model, x, rows, dz, visible = _case(kind, history_group=dist.group.WORLD)
        begin, end = cuts[rank], cuts[rank + 1]
        own = torch.cat([torch.arange(int(f + b), int(f + e)) for f, b, e in zip(ROWS[:-1], begin, end, strict=True)])
        of_target = torch.repeat_interleave(torch.arange(len(LENGTHS)), TARGETS.diff())
        low, high = begin[of_target][:, None], end[of_target][:, None]
        part = (visible.clamp(min=low, max=high) - low).contiguous()
        results[kind] = _results(model, x, rows[own], offsets((end - begin).tolist()), part, dz)
    return results, own, sent


@pytest.mark.parametrize("world_size", [2, 4])
def test_parts_of_histories_on_several_ranks(world_size: int, tmp_path: Path) -> None:
    ranks = run_ranks(_worker, world_size, tmp_path, world_size)
    for kind in MODELS:
        model, x, rows, dz, visible = _case(kind)
        z, dx, drows, *dweights = _results(model, x, rows, ROWS, visible, dz)
        for results, own, _ in ranks:
            of_rank = results[kind]
            for actual, expected in zip(of_rank, (z, dx, drows[own], *dweights), strict=True):
                torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)
    for *_, sent in ranks:
        assert sent
        assert max(sent) <= max(T * H * D, 2 * D * D)  # queries and weights, never rows
