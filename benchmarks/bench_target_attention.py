"""`target_attention` in both forms, and the whole layer, for pytest-benchmark: `make bench`."""

from typing import Any

from bench_cases import cases_of, run
from problem import Case, Direction


@cases_of("target_attention reordered")
def test_reordered(benchmark: Any, case: Case, direction: Direction, way: str) -> None:
    run(benchmark, case, direction, way)


@cases_of("target_attention projected")
def test_projected(benchmark: Any, case: Case, direction: Direction, way: str) -> None:
    run(benchmark, case, direction, way)


@cases_of("TargetAttention")
def test_layer(benchmark: Any, case: Case, direction: Direction, way: str) -> None:
    run(benchmark, case, direction, way)
