"""`request_gather` and its gradient, `request_reduce`, for pytest-benchmark: `make bench`."""

from typing import Any

from bench_cases import cases_of, run
from problem import Case, Direction


@cases_of("request_gather")
def test_request_gather(benchmark: Any, case: Case, direction: Direction, way: str) -> None:
    run(benchmark, case, direction, way)
