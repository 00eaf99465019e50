"""Calls that once went wrong, and the first of the random ones; faults are seen by the judge."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))

import operators_planted
import torch
from operators_calls import random_call
from operators_judge import judge
from operators_rounding import worst_of_draws

import stca

CORPUS = sorted((Path(__file__).parent / "operators_corpus").glob("*.json"))


def _check_that_it_is_found(faulty: Callable[..., Any], name: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of the corpus whose operator, handed to `faulty` as it is, has a fault."""
    recipe = json.loads((Path(__file__).parent / "operators_corpus" / f"{name}.json").read_text())
    monkeypatch.setattr(stca.ops, recipe["op"], partial(faulty, getattr(stca.ops, recipe["op"])))
    with pytest.raises(AssertionError, match=says):
        judge(recipe)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_corpus(path: Path) -> None:
    recipe = json.loads(path.read_text())
    assert judge(recipe) in ("equal", "refused", "huge")


def test_first_calls() -> None:
    outcomes = [judge(random_call(seed)) for seed in range(60)]
    assert {"equal", "refused"} <= {*outcomes}


@pytest.mark.parametrize(("fault", "says"), [("wrong value", "error"), ("no check", "wrong"), ("wrong error", "must")])
def test_faults_are_seen(fault: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for op in stca.ops.__all__:  # as they are, afterwards
        monkeypatch.setattr(stca.ops, op, getattr(stca.ops, op))
    operators_planted.plant(fault)
    with pytest.raises((AssertionError, KeyError), match=says):
        list(map(judge, map(random_call, range(300))))


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("sum_of_terms_that_cancel", 2**-16),
        ("gradients_that_cancel", 2**-16),
        ("gradients_that_cancel_in_float64", 2**-42),
        ("sums_among_denormals", 1e-42),
        ("scores_of_10_to_the_19", 2**-4),
        ("one_row_700_times_in_float64", 2**-36),
    ],
)
def test_rounding_excuses_no_error(name: str, step: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(right: Callable[..., Any], *args: Any, **options: Any) -> Any:
        results = right(*args, **options)
        return results + step if isinstance(results, torch.Tensor) else (results[0] + step, *results[1:])

    _check_that_it_is_found(faulty, name, "error", monkeypatch)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("gradients_that_cancel", 2**-16),
        ("gradients_that_cancel_in_float64", 2**-46),
        ("one_row_700_times_in_float64", 2**-38),
        ("gradients_beyond_float16", 2**-12),
    ],
)
def test_rounding_excuses_no_error_of_a_gradient(name: str, step: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(right: Callable[..., Any], *args: Any, **options: Any) -> Any:
        for x in [*args, *options.values()]:
            if isinstance(x, torch.Tensor) and x.requires_grad:
                x.register_hook(lambda gradient: gradient + step)  # type: ignore[no-untyped-call]
        return right(*args, **options)

    _check_that_it_is_found(faulty, name, r"^d\w+: .* error", monkeypatch)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1.0, 0.0])
def test_draws_are_as_wide_as_rounding(size: float, dtype: torch.dtype) -> None:
    """Of a sum: each term, and the sum, is moved by an ulp at most."""
    x, limits = size * torch.randn(99, 1, dtype=torch.float64), torch.finfo(dtype)
    exact = {"sum": x.sum(dim=0)}
    drawn = worst_of_draws(exact, lambda of: {"sum": of(x).sum(dim=0)}, dtype)
    distance = float((drawn["sum"] - exact["sum"]).abs())
    terms = float(x.abs().sum()) * limits.eps + 99 * limits.smallest_normal * limits.eps
    assert terms / 99 < distance < 2 * terms
