"""The CUDA kernels of request_gather, request_reduce and jagged_select agree with their oracles."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accuracy import assert_as_accurate, assert_bitwise_equal
from cases import offsets
from cuda_devices import DEVICES, DTYPES, call_on
from torch import Tensor

import stca

LENGTHS = [[3, 0, 1, 200, 7], [0, 0], [], [1] * 40, [70, 300]]
SHAPES = [(), (1,), (5,), (64,), (3, 24), (300,), (0,)]

pytestmark = pytest.mark.parametrize("device", DEVICES)


def _rows(count: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(count, *shape, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64, torch.int64, torch.uint8], ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_request_gather(lengths: list[int], dtype: torch.dtype, device: str) -> None:
    xs = [(10 * _rows(len(lengths), shape, torch.float64)).to(dtype) for shape in SHAPES]
    at = offsets(lengths)
    expected = stca.reference.request_gather(xs, at)
    for total in (None, sum(lengths)):
        actual = call_on(device, "request_gather", xs, at, total)
        assert_bitwise_equal(dict(zip("abcdefg", actual, strict=True)), dict(zip("abcdefg", expected, strict=True)))


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_request_reduce(lengths: list[int], dtype: torch.dtype, mean: bool, device: str) -> None:
    reduce: Any = "mean" if mean else "sum"
    for shape in SHAPES:
        x, at = _rows(sum(lengths), shape, dtype), offsets(lengths)
        actual = call_on(device, "request_reduce", x, at, mean)
        exact, plain = (stca.reference.request_reduce(each, at, reduce) for each in (x.double(), x))
        assert_as_accurate(actual, exact, plain)
        assert_bitwise_equal({"again": call_on(device, "request_reduce", x, at, mean, seed=3)}, {"again": actual})


def test_a_sum_of_many_rows_loses_nothing(device: str) -> None:
    ones = torch.ones(1000, 9, dtype=torch.bfloat16)
    assert torch.equal(call_on(device, "request_reduce", ones, offsets([1000]), False), torch.full_like(ones[:1], 1000))
    x = torch.full((20_000, 1), 0.1)
    expected = x.double().sum(dim=0, keepdim=True).float()
    actual = call_on(device, "request_reduce", x, offsets([len(x)]), False)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)  # one long chain errs 1e-4


def test_infinite_rows_give_infinite_sums(device: str) -> None:
    x = torch.ones(300, 4)
    x[200, 1], x[7, 2], x[8, 2], x[5, 3] = torch.inf, torch.inf, -torch.inf, torch.nan
    actual = call_on(device, "request_reduce", x, offsets([300]), False)
    assert torch.equal(actual.nan_to_num(nan=-1.0), torch.tensor([[300.0, torch.inf, -1.0, -1.0]]).nan_to_num(nan=-1.0))


@pytest.mark.parametrize("keep", [None, [2, 0, 100, 3, 1, 5]])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_jagged_select(shape: tuple[int, ...], dtype: torch.dtype, keep: list[int] | None, device: str) -> None:
    lengths, index = [3, 0, 1, 90, 7], torch.tensor([3, 1, 3, 0, 4, 3])
    values, at = _rows(sum(lengths), shape, dtype), offsets(lengths, torch.int32)
    kept = None if keep is None else torch.tensor(keep)
    expected = stca.reference.jagged_select(values, at, index, kept)
    for total in (None, len(expected[0])):
        actual = call_on(device, "jagged_select", values, at, index, kept, total)
        assert_bitwise_equal({"values": actual[0]}, {"values": expected[0]})
        assert torch.equal(actual[1], expected[1])
    grad = _rows(len(expected[0]), shape, dtype)

    def gradient(dtype: torch.dtype) -> Tensor:
        leaf = values.to(dtype).requires_grad_()
        selected = stca.reference.jagged_select(leaf, at, index, kept)[0]
        return torch.autograd.grad(selected, leaf, grad.to(dtype))[0]

    actual = call_on(device, "jagged_select_backward", grad, at, index, kept, len(values))
    assert_as_accurate(actual, gradient(torch.float64), gradient(dtype))


@pytest.mark.parametrize("width", [1, 24, 4096, 10_000])
def test_request_gather_of_any_width(width: int, device: str) -> None:
    """Rows end inside of the run of words that a block copies, and runs inside of rows."""
    x, at = torch.randint(0, 255, (4, width)).to(torch.uint8), offsets([3, 0, 1, 5])
    (actual,) = call_on(device, "request_gather", [x], at, 9)
    assert torch.equal(actual, x.repeat_interleave(at.diff(), dim=0))


def test_nothing_selected(device: str) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    values, at = call_on(device, "jagged_select", torch.ones(4, 2), offsets([4]), none, None, None)
    assert values.shape == (0, 2)
    assert at.tolist() == [0]
    first, keep = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    grad = call_on(device, "jagged_select_backward", torch.ones(0, 8), offsets([5]), first, keep, 5)
    assert torch.equal(grad, torch.zeros(5, 8))


BAD: list[tuple[str, Callable[[], tuple[Any, ...]], str]] = [
    (
        "request_reduce",
        lambda: (torch.ones(3, 2), torch.tensor([0, 2, 1, 3]), False),
        "target_offsets must not decrease, got 2 then 1 at index 2",
    ),
    (
        "jagged_select",
        lambda: (torch.ones(3, 2), torch.tensor([0, 3]), torch.tensor([0, 1]), None, 3),
        "index[1] must be a request in [0, 1), got 1",
    ),
    (
        "jagged_select",
        lambda: (torch.ones(3, 2), torch.tensor([0, 3]), torch.tensor([0]), torch.tensor([-2]), 3),
        "keep[0] must be a number of rows, at least 0, got -2",
    ),
    (
        "jagged_select",
        lambda: (torch.ones(3, 2), torch.tensor([0, 3]), torch.tensor([0]), None, 4),
        "total must be the number of rows selected, 3, got 4",
    ),
]


@pytest.mark.parametrize(("op", "arguments", "message"), BAD)
def test_values_are_checked_where_asked(
    op: str, arguments: Callable[[], tuple[Any, ...]], message: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STCA_DEBUG", "1")
    with pytest.raises(ValueError, match=f"^{op}: {re.escape(message)}"):
        call_on(device, op, *arguments())
