"""What no target sees, whatever it holds, leaves no trace: not in a result, and not in any gradient."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import NAN_AND_INFINITIES, offsets
from processes import run_ranks
from torch import Tensor, nn

from stca.nn import STCA, TargetAttention

POISON = (*NAN_AND_INFINITIES, 1e30)
MODELS: dict[str, Callable[..., Any]] = {
    "reordered": lambda **kind: TargetAttention(16, 4, bias=True, order="reordered", **kind),
    "projected": lambda **kind: TargetAttention(16, 4, bias=True, order="projected", **kind),
    "stca reordered": lambda **kind: STCA(16, 2, 4, use_lse=True, order="reordered", **kind),
    "stca projected": lambda **kind: STCA(16, 2, 4, share_ffn=True, order="projected", **kind),
    "stca checkpoint": lambda **kind: STCA(16, 2, 4, checkpoint=True, order="projected", **kind),
}
TARGETS, ROWS, LENGTHS = offsets([2, 0, 1]), offsets([5, 4, 3]), torch.tensor([3, 6])

# What is called, and the rows of its history that somebody sees.
FLAT: dict[str, Any] = {"target_offsets": TARGETS, "history_offsets": ROWS}
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], list[Any]]] = {
    "no targets": ((3, 16), (12, 16), FLAT, [range(5), range(9, 12)]),
    "visible": (
        (3, 16),
        (12, 16),
        {**FLAT, "visible": torch.tensor([[1, 3], [2, 2], [0, 2]])},
        [range(1, 3), range(9, 11)],
    ),
    "index": (
        (3, 16),
        (9, 16),
        {**FLAT, "history_index": torch.tensor([1, 1, 4, 6, 1, *[0] * 4, 4, 2, 1])},
        [1, 2, 4, 6],
    ),
    "padding": ((2, 2, 16), (2, 6, 16), {"history_lengths": LENGTHS}, [range(3), range(6, 12)]),
}


Args = tuple[Tensor, Tensor, dict[str, Any]]


def _inputs(case: str, dtype: torch.dtype, poison: float) -> tuple[Args, Tensor]:
    """Targets, history with poison in what is not seen, options; and which rows are seen."""
    x_shape, rows_shape, options, places = CASES[case]
    torch.manual_seed(1)
    x, rows = torch.randn(x_shape).to(dtype), torch.randn(rows_shape).to(dtype)
    seen = torch.zeros(rows.numel() // 16, dtype=torch.bool)
    for place in places:
        seen[list(place) if isinstance(place, range) else [place]] = True
    rows = rows.view(-1, 16).masked_fill(~seen[:, None], poison).view(rows_shape)
    return (x.requires_grad_(), rows.requires_grad_(), options), seen


def _results(model: nn.Module, args: Args, call: Callable[..., Tensor] | None = None) -> list[Tensor]:
    x, rows, options = args
    z = (model if call is None else call)(x, rows, **options)
    loss = z.to(torch.promote_types(z.dtype, torch.float32)).square().sum()
    return [z.detach(), *torch.autograd.grad(loss, [x, rows, *model.parameters()])]


def _same(actual: list[Tensor], expected: list[Tensor], seen: Tensor, **tolerance: Any) -> None:
    assert all(each.isfinite().all() for each in expected)
    torch.testing.assert_close(actual, expected, **tolerance)
    assert not bool(actual[2].reshape(-1, 16)[~seen].any())  # exactly 0


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", MODELS)
def test_unseen_rows_are_in_no_gradient(kind: str, case: str, poison: float) -> None:
    model = MODELS[kind](dtype=torch.float64)
    args, seen = _inputs(case, torch.float64, 0.0)
    expected = _results(model, args)
    args, seen = _inputs(case, torch.float64, poison)
    _same(_results(model, args), expected, seen, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", MODELS)
def test_unseen_rows_in_fewer_bits(kind: str, case: str, dtype: torch.dtype) -> None:
    model = MODELS[kind](dtype=dtype)
    args, seen = _inputs(case, dtype, 0.0)
    expected = _results(model, args)
    args, seen = _inputs(case, dtype, torch.nan)
    _same(_results(model, args), expected, seen)


@pytest.mark.parametrize("kind", MODELS)
def test_unseen_rows_under_autocast_and_with_its_backward_pass_there(kind: str) -> None:
    model = MODELS[kind]()
    with torch.autocast("cpu", torch.bfloat16):
        args, seen = _inputs("visible", torch.float32, 0.0)
        expected = _results(model, args)
        args, seen = _inputs("visible", torch.float32, torch.inf)
        _same(_results(model, args), expected, seen)


@pytest.mark.parametrize("kind", ["projected", "reordered", "stca projected"])
def test_unseen_rows_compiled(kind: str) -> None:
    model = MODELS[kind](dtype=torch.float64)
    args, seen = _inputs("visible", torch.float64, 0.0)
    expected = _results(model, args)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    args, seen = _inputs("visible", torch.float64, torch.nan)
    _same(_results(model, args, compiled), expected, seen)


@pytest.mark.parametrize("kind", ["projected", "reordered", "stca projected"])
def test_unseen_rows_in_a_transform(kind: str) -> None:
    model = MODELS[kind](dtype=torch.float64)
    (x, rows, options), seen = _inputs("index", torch.float64, torch.nan)

    def loss(parameters: dict[str, Tensor], x: Tensor, rows: Tensor) -> Tensor:
        z: Tensor = torch.func.functional_call(model, parameters, (x, rows), options)
        return z.square().sum()

    expected = _results(model, (x, rows, options))[1:]
    weights = {name: p.detach() for name, p in model.named_parameters()}
    dweights, dx, drows = torch.func.grad(loss, argnums=(0, 1, 2))(weights, x.detach(), rows.detach())
    _same([dx, dx, drows, *dweights.values()], [expected[0], *expected], seen)


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_seen_is_not_hidden(kind: str) -> None:
    model = MODELS[kind]()
    (x, rows, options), _ = _inputs("visible", torch.float32, 0.0)
    with torch.no_grad():
        rows[1] = torch.nan
    weights = _results(model, (x, rows, options))[3:]
    assert any(each.isnan().any() for each in weights)


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("kind", MODELS)
def test_padding_of_targets_and_what_it_alone_would_see(kind: str, poison: float) -> None:
    """The same requests without padding are 2 and 0 targets, and 3 rows."""
    model = MODELS[kind](dtype=torch.float64)
    torch.manual_seed(1)
    x, rows = (torch.randn(2, n, 16, dtype=torch.float64) for n in (4, 6))
    flat = x[0, :2].clone().requires_grad_(), rows[0, :3].clone().requires_grad_()
    expected = _results(model, (*flat, {"target_offsets": offsets([2]), "history_offsets": offsets([3])}))
    x[0, 2:] = x[1] = rows[0, 3:] = rows[1] = poison
    lengths = {"target_lengths": torch.tensor([2, 0]), "history_lengths": torch.tensor([3, 6])}
    z, dx, drows, *dweights = _results(model, (x.requires_grad_(), rows.requires_grad_(), lengths))
    found = z[0, :2], dx[0, :2], drows[0, :3], *dweights
    torch.testing.assert_close(found, tuple(expected), rtol=1e-10, atol=1e-11)
    for padding in (z[0, 2:], z[1], dx[0, 2:], dx[1], drows[0, 3:], drows[1]):
        assert not bool(padding.any())


def _of_rank(rank: int, kind: str) -> list[list[Tensor]]:
    results = []
    for poison in (0.0, torch.nan):
        torch.manual_seed(0)
        model = MODELS[kind](history_group=dist.group.WORLD, dtype=torch.float64)
        results.append(_results(model, _inputs("visible", torch.float64, poison)[0]))
    return results


@pytest.mark.parametrize("kind", ["projected", "stca projected"])
def test_parts_of_histories_on_two_ranks(kind: str, tmp_path: Path) -> None:
    seen = _inputs("visible", torch.float64, 0.0)[1]
    for expected, actual in run_ranks(_of_rank, 2, tmp_path, kind):
        _same(actual, expected, seen)
