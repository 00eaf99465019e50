"""Histories cut over ranks give what one process gives: results, gradients, and little on the wire."""

from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import offsets
from processes import run_ranks
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stca.nn import STCA, TargetAttention

D, H = 16, 4
M_TARGETS, LENGTHS = [3, 0, 2, 4, 1], [50, 4, 0, 33, 1]
TARGETS, ROWS = offsets(M_TARGETS), offsets(LENGTHS)
T, N = sum(M_TARGETS), sum(LENGTHS)
MODELS: dict[str, Any] = {
    "reordered": lambda **group: TargetAttention(D, H, order="reordered", dtype=torch.float64, **group),
    "projected": lambda **group: TargetAttention(D, H, order="projected", bias=True, dtype=torch.float64, **group),
    "auto": lambda **group: TargetAttention(D, H, dtype=torch.float64, **group),
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


class _Collectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that this rank hands to collectives, whichever they are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            self.bytes[str(func)] += sum(x.nbytes for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        return func(*args, **(kwargs or {}))


def _traffic(kind: str, length: int) -> tuple[Counter[str], Counter[str]]:
    """What travels forward, and forward and backward, where two histories have `length` rows on every rank.

    By FLOPs alone, the order for so many targets would be another at 4096 rows than at 64.
    """
    model = MODELS[kind](history_group=dist.group.WORLD)
    x, rows = (torch.randn(n, D, dtype=torch.float64, requires_grad=True) for n in (10, 2 * length))
    with _Collectives() as collectives:
        z = model(x, rows, offsets([5, 5]), offsets([length, length]))
        forward = collectives.bytes.copy()
        z.sum().backward()
    return forward, collectives.bytes


def _worker(rank: int, world_size: int) -> dict[str, Any]:
    cuts, results = _cuts(world_size), {}
    begin, end = cuts[rank], cuts[rank + 1]
    own = torch.cat([torch.arange(int(f + b), int(f + e)) for f, b, e in zip(ROWS[:-1], begin, end, strict=True)])
    for kind in MODELS:
        model, x, rows, dz, visible = _case(kind, history_group=dist.group.WORLD)
        of_target = torch.repeat_interleave(torch.arange(len(LENGTHS)), TARGETS.diff())
        low, high = begin[of_target][:, None], end[of_target][:, None]
        part = (visible.clamp(min=low, max=high) - low).contiguous()
        results[kind] = _results(model, x, rows[own], offsets((end - begin).tolist()), part, dz)
    traffic = {kind: {length: _traffic(kind, length) for length in (64, 4096)} for kind in MODELS}
    return {"own": own, "results": results, "traffic": traffic}


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of several ranks found."""
    return run_ranks(_worker, request.param, tmp_path_factory.mktemp("ranks"), request.param)


def test_parts_of_histories_on_several_ranks(ranks: list[dict[str, Any]]) -> None:
    for kind in MODELS:
        model, x, rows, dz, visible = _case(kind)
        z, dx, drows, *dweights = _results(model, x, rows, ROWS, visible, dz)
        for rank in ranks:
            expected = z, dx, drows[rank["own"]], *dweights
            for actual, wanted in zip(rank["results"][kind], expected, strict=True):
                torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-10)


def test_what_travels_does_not_depend_on_the_length(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for kind, by_length in rank["traffic"].items():
            assert by_length[64] == by_length[4096], kind
            forward, both = by_length[64]
            assert 0 < forward.total() < both.total(), kind
