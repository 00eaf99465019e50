"""`jagged_select`, for pytest-benchmark: `make bench`."""

from typing import Any

from bench_cases import cases_of, run
from problem import Case, Direction


@cases_of("jagged_select")
def test_jagged_select(benchmark: Any, case: Case, direction: Direction, way: str) -> None:
    run(benchmark, case, direction, way)
