"""`swiglu_ffn_norm`, for pytest-benchmark: `make bench`."""

from typing import Any

from bench_cases import cases_of, run
from problem import Case, Direction


@cases_of("swiglu_ffn_norm")
def test_swiglu_ffn_norm(benchmark: Any, case: Case, direction: Direction, way: str) -> None:
    run(benchmark, case, direction, way)
