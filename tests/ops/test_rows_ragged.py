"""request_gather, request_reduce and jagged_select for drawn ragged shapes, with gradients, against their oracles."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accuracy import assert_as_accurate, assert_bitwise_equal
from cases import DTYPES, ISAS, NAN_AND_INFINITIES, offsets
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import stca

_counts = st.one_of(st.lists(st.integers(0, 3), max_size=300), st.lists(st.integers(0, 400), max_size=12))
_widths = st.one_of(st.just(()), st.tuples(st.integers(0, 70)), st.tuples(st.integers(1, 5), st.integers(1, 30)))
_settings: dict[str, Any] = {
    "dtype": st.sampled_from(DTYPES),
    "isa": st.sampled_from(ISAS),
    "threads": st.sampled_from([1, 2, 3]),
    "index": st.sampled_from([torch.int32, torch.int64]),
}
Results = dict[str, Tensor]


@contextmanager
def _chosen(isa: str, threads: int) -> Iterator[None]:
    before = stca.cpu_isa(), torch.get_num_threads()
    stca.set_cpu_isa(isa)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        stca.set_cpu_isa(before[0])
        torch.set_num_threads(before[1])


def _results(f: Callable[[Tensor], Tensor], x: Tensor) -> Results:
    """f(x) and the gradient of x for a drawn gradient of f(x)."""
    leaf = x.detach().requires_grad_()
    y = f(leaf)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(x.dtype).to(y.dtype)
    (dx,) = torch.autograd.grad(y, leaf, dy) if y.requires_grad else (torch.zeros_like(x),)
    return {"y": y.detach(), "dx": dx}


def _judge(op: Callable[[Tensor], Tensor], oracle: Callable[[Tensor], Tensor], x: Tensor) -> None:
    actual, exact, plain = _results(op, x), _results(oracle, x.double()), _results(oracle, x)
    for name in actual:
        assert_as_accurate(actual[name], exact[name], plain[name], name)
    assert_bitwise_equal(_results(op, x), actual)


@given(counts=_counts, width=_widths, **_settings)
def test_request_gather(
    counts: list[int], width: tuple[int, ...], dtype: torch.dtype, isa: str, threads: int, index: torch.dtype
) -> None:
    ends, x = offsets(counts, index), torch.randn(len(counts), *width).to(dtype)
    with _chosen(isa, threads):
        _judge(
            lambda x: stca.ops.request_gather([x], ends)[0],
            lambda x: stca.reference.request_gather([x], ends)[0],
            x,
        )


@given(counts=_counts, width=_widths, mean=st.booleans(), **_settings)
def test_request_reduce(
    counts: list[int],
    width: tuple[int, ...],
    mean: bool,
    dtype: torch.dtype,
    isa: str,
    threads: int,
    index: torch.dtype,
) -> None:
    ends, x, how = offsets(counts, index), torch.randn(sum(counts), *width).to(dtype), "mean" if mean else "sum"
    with _chosen(isa, threads):
        _judge(
            lambda x: stca.ops.request_reduce(x, ends, how),  # type: ignore[arg-type]
            lambda x: stca.reference.request_reduce(x, ends, how),  # type: ignore[arg-type]
            x,
        )


@given(counts=_counts, width=_widths, data=st.data(), **_settings)
def test_jagged_select(
    counts: list[int],
    width: tuple[int, ...],
    data: st.DataObject,
    dtype: torch.dtype,
    isa: str,
    threads: int,
    index: torch.dtype,
) -> None:
    ends, x = offsets(counts, index), torch.randn(sum(counts), *width).to(dtype)
    chosen = data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=20)) if counts else []
    keep = data.draw(st.none() | st.lists(st.integers(0, 450), min_size=len(chosen), max_size=len(chosen)))
    which = torch.tensor(chosen, dtype=index), None if keep is None else torch.tensor(keep, dtype=index)
    with _chosen(isa, threads):
        _judge(
            lambda x: stca.ops.jagged_select(x, ends, *which)[0],
            lambda x: stca.reference.jagged_select(x, ends, *which)[0],
            x,
        )
        assert torch.equal(stca.ops.jagged_select(x, ends, *which)[1], stca.reference.jagged_select(x, ends, *which)[1])


COUNTS = [3, 0, 700, 2]
ENDS, TIMES = offsets(COUNTS), torch.tensor([2, 0, 2, 3, 2])
FUNCTIONS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {  # rows of x, and f(x)
    "request_gather": (len(COUNTS), lambda x: stca.ops.request_gather(x, ENDS)),
    "request_reduce": (sum(COUNTS), lambda x: stca.ops.request_reduce(x, ENDS, "mean")),
    "jagged_select": (sum(COUNTS), lambda x: stca.ops.jagged_select(x, ENDS, TIMES)[0]),
}


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", FUNCTIONS)
def test_any_thread_count_gives_the_same_bits(
    op: str, dtype: torch.dtype, isa: str, threads: Callable[[int], None]
) -> None:
    """One request has nearly all rows: its columns are shared out, and every sum keeps its order."""
    rows, f = FUNCTIONS[op]
    x = torch.randn(rows, 700).to(dtype)
    threads(1)
    expected = _results(f, x)
    for count in (2, 3, 5, 2):
        threads(count)
        assert_bitwise_equal(_results(f, x), expected)


@pytest.mark.parametrize("poison", NAN_AND_INFINITIES)
@pytest.mark.parametrize("op", FUNCTIONS)
@pytest.mark.usefixtures("uninitialized_is_nan")
def test_the_gradient_of_a_request_is_its_own(op: str, poison: float, isa: str) -> None:
    """Poison in what comes back for the long request stays in its rows; memory that nobody wrote is not read."""
    rows, f = FUNCTIONS[op]
    x = torch.randn(rows, 9, requires_grad=True)
    request = torch.arange(rows) if op == "request_gather" else torch.repeat_interleave(torch.arange(4), ENDS.diff())
    y = f(x)
    of_output = f(request.float()[:, None].expand(-1, 9)) if op != "request_reduce" else torch.arange(4.0)[:, None]
    dy = torch.randn_like(y)
    (clean,) = torch.autograd.grad(y, x, dy, retain_graph=True)
    (dx,) = torch.autograd.grad(y, x, torch.where(of_output == 2, poison, dy))
    assert clean.isfinite().all()
    assert torch.equal(dx[request != 2], clean[request != 2])
    assert not dx[request == 2].isfinite().any()


@pytest.mark.parametrize("op", FUNCTIONS)
def test_compiled_gradients(op: str) -> None:
    rows, f = FUNCTIONS[op]
    x = torch.randn(rows, 6)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: f(x.sin()).square(), fullgraph=True, backend="aot_eager")
    expected = _results(lambda x: f(x.sin()).square(), x)
    for name, actual in _results(compiled, x).items():
        torch.testing.assert_close(actual, expected[name])


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("width", [1024, 1000])
def test_results_that_no_cache_holds(isa: str, width: int, offset: int) -> None:
    """Written past the caches where rows are whole vectors; read by the thread that did not write them."""
    rows = 9_000
    x = torch.randn(3, width + offset)[:, offset:]
    ends = offsets([rows // 2, 0, rows - rows // 2])
    y = stca.ops.request_gather(x, ends)
    assert y.numel() * 4 > 2**25
    assert torch.equal(y, x.repeat_interleave(ends.diff(), dim=0))
    index, keep = torch.tensor([2, 0, 2]), torch.tensor([rows, rows // 3, 7])
    values, chosen = stca.ops.jagged_select(torch.cat([y, y]), ends * 2, index, keep)
    expected = [
        torch.cat([y, y])[ends[i + 1] * 2 - n : ends[i + 1] * 2] for i, n in zip(index, chosen.diff(), strict=True)
    ]
    assert torch.equal(values, torch.cat(expected))
