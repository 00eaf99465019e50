"""The cases of compare.py --quick for pytest-benchmark: one test per case, direction and way of computing it."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
from compare import LIMITS
from grid import all_cases
from problem import Case, Direction, Runner, check


@lru_cache(maxsize=1)
def runners(case: Case, direction: Direction) -> tuple[dict[str, Runner], dict[str, str]]:
    """Every way of a case after its result was checked, and why the others do not run."""
    return check(case.build(), direction, LIMITS[case.dtype])


def cases_of(op: str) -> Callable[[Callable[..., None]], Any]:
    """Parametrizes a test by everything there is of an operator."""
    cases = [
        pytest.param(case, direction, way, id=f"{case.name}, {case.dtype}, {direction}, {way}".replace("torch.", ""))
        for case in all_cases(quick=True)
        if case.op == op
        for direction in case.directions
        for problem in [case.build()]
        for way in [*problem.ways, *problem.cannot]
    ]
    return pytest.mark.parametrize(("case", "direction", "way"), cases)


def run(benchmark: Any, case: Case, direction: Direction, way: str) -> None:
    """Times one way; one that cannot do it is skipped, with the reason."""
    able, cannot = runners(case, direction)
    if way in cannot:
        pytest.skip(f"{way}: {cannot[way]}")
    benchmark.group = f"{case.op}, {case.name}, {case.dtype}, {direction}"
    benchmark.name = way
    benchmark(able[way].call(direction))
