"""A training step of the whole stack, and serving, for pytest-benchmark: `make bench`."""

from typing import Any

from bench_cases import cases_of, run
from problem import Case, Direction


@cases_of("STCA")
def test_stca(benchmark: Any, case: Case, direction: Direction, way: str) -> None:
    run(benchmark, case, direction, way)
