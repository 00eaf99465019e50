"""request_reduce: sums and means over each request's targets."""

from typing import Any

import pytest
import torch
from accuracy import assert_as_accurate
from cases import DTYPES, offsets

import stca
from stca.ops import request_reduce

OFFSETS = offsets([3, 0, 0, 1, 250, 2, 0])
T = 256


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("shape", [(), (1,), (13,), (700,), (3, 5), (0,)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_accuracy(isa: str, dtype: torch.dtype, shape: tuple[int, ...], reduce: Any) -> None:
    x = torch.randn(T, *shape).to(dtype)
    exact = stca.reference.request_reduce(x.double(), OFFSETS, reduce)
    plain = stca.reference.request_reduce(x, OFFSETS, reduce)
    ours = request_reduce(x, OFFSETS, reduce)
    assert ours.dtype == dtype
    assert ours.shape == exact.shape
    if ours.numel():
        assert_as_accurate(ours, exact, plain)
    assert torch.equal(ours, request_reduce(x, OFFSETS.int(), reduce))
    assert torch.equal(ours[1:3], torch.zeros_like(ours[1:3]))


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_gradients(reduce: Any) -> None:
    small = offsets([2, 0, 3])
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    for f in (request_reduce, stca.reference.request_reduce):
        assert torch.autograd.gradcheck(lambda x, f=f: f(x, small, reduce), x)
    assert torch.autograd.gradgradcheck(lambda x: request_reduce(x, small, reduce), x)


def test_a_thousand_ones() -> None:
    for dtype in DTYPES:
        assert request_reduce(torch.ones(1000, dtype=dtype), offsets([1000])).item() == 1000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_million_equal_rows(isa: str, dtype: torch.dtype) -> None:
    """One after the other they would round a million times in the same direction."""
    x = torch.full((1_000_001, 9), 0.1, dtype=dtype)
    exact = 1_000_001 * x[0, 0].item()  # rounds once
    total = request_reduce(x, offsets([1_000_001]))
    assert (total - exact).abs().max().item() <= 8 * torch.finfo(dtype).eps * exact


def test_infinities_add_up() -> None:
    inf = float("inf")
    x = torch.tensor([[1, 1, inf], [inf, -inf, -inf], [2, 2, 2], [3, 3, 3], [4, 4, 4], [-inf, -inf, 1]])
    sums = request_reduce(x, offsets([5, 1]))
    assert sums[0, :2].tolist() == [inf, -inf]
    assert sums[0, 2].isnan()
    assert sums[1].tolist() == [-inf, -inf, 1]


def test_strides_empty_and_poison() -> None:
    x = torch.randn(6, T).T
    assert torch.equal(request_reduce(x, OFFSETS), request_reduce(x.contiguous(), OFFSETS))
    assert request_reduce(torch.zeros(0, 3), offsets([])).shape == (0, 3)
    assert torch.equal(request_reduce(torch.zeros(0, 3), offsets([0, 0])), torch.zeros(2, 3))
    poisoned = x.clone()
    poisoned[4:254] = float("nan")
    sums, others = request_reduce(poisoned, OFFSETS), torch.arange(7) != 4
    assert torch.equal(sums[others], request_reduce(x, OFFSETS)[others])
    assert sums[4].isnan().all()


def test_one_long_request_is_bitwise_repeatable() -> None:
    x = torch.randn(5000, 700)
    assert torch.equal(request_reduce(x, offsets([5000])), request_reduce(x, offsets([5000])))


def test_in_torch() -> None:
    x = torch.randn(T, 4, requires_grad=True)
    for mean in (False, True):
        torch.library.opcheck(torch.ops.stca.request_reduce, (x, OFFSETS, mean))
    torch.compiler.reset()
    compiled = torch.compile(lambda x: request_reduce(x.sin(), OFFSETS, "mean"), fullgraph=True)
    torch.testing.assert_close(compiled(x), request_reduce(x.sin(), OFFSETS, "mean"))


def test_bad_calls() -> None:
    bad: list[tuple[tuple[Any, ...], str]] = [
        ((torch.zeros(T), OFFSETS, "max"), "reduce must be 'sum' or 'mean', got 'max'"),
        ((torch.zeros(T - 1), OFFSETS), "target_offsets must end at the number of rows of x, 255, got 256"),
        ((torch.zeros(T, dtype=torch.int64), OFFSETS), "x must be float64, float32, bfloat16 or float16, got Long"),
        ((torch.zeros(()), OFFSETS), r"x must be \[T, \.\.\.\], got \[\]"),
    ]
    for args, message in bad:
        with pytest.raises(ValueError, match=f"request_reduce: {message}"):
            request_reduce(*args)
