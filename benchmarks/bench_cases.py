"""The cases of compare.py --quick for pytest-benchmark: one test per case, direction and way of computing it."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
from compare import LIMITS
from grid import all_cases
from measure import keep_freed_memory
from problem import Case, Direction, Runner, check

_SECONDS, _LONG = 0.1, 0.5
_MOST = 1000  # rounds


@lru_cache(maxsize=1)
def runners(case: Case, direction: Direction) -> tuple[dict[str, Runner], dict[str, str]]:
    """Every way of a case after its result was checked, and why the others do not run."""
    keep_freed_memory()
    return check(case.build(), direction, LIMITS[case.dtype])


def cases_of(op: str) -> Callable[[Callable[..., None]], Any]:
    """Parametrizes a test by everything there is of an operator."""
    cases = [
        pytest.param(case, direction, way, id=f"{case.name}, {case.dtype}, {direction}, {way}".replace("torch.", ""))
        for case in all_cases(quick=True)
        if case.op == op
        for problem in [case.build()]
        for direction in case.directions
        for way in [*problem.ways, *problem.cannot]
    ]
    return pytest.mark.parametrize(("case", "direction", "way"), cases)


def run(benchmark: Any, case: Case, direction: Direction, way: str) -> None:
    """Times one way; one that cannot do it is skipped, with the reason.

    As many rounds as fit into _SECONDS, but 3, or 1 of a call that takes long: its check was the warm-up.
    """
    able, cannot = runners(case, direction)
    if way in cannot:
        pytest.skip(f"{way}: {cannot[way]}")
    benchmark.group = f"{case.op}, {case.name}, {case.dtype}, {direction}"
    benchmark.name = way
    least = 3 if able[way].checked_s < _LONG else 1
    rounds = min(max(int(_SECONDS / able[way].checked_s), least), _MOST)
    benchmark.pedantic(able[way].call(direction), rounds=rounds)
