"""jagged_select: chosen histories, each cut to its last rows."""

from typing import Any

import pytest
import torch
from cases import DTYPES, offsets

import stca
from stca.ops import jagged_select

OFFSETS = offsets([3, 0, 40, 1, 12])
N = 56
INDEX = torch.tensor([2, 0, 2, 1, 4, 4, 0, 2])
KEEP = torch.tensor([40, 2, 7, 5, 0, 99, 3, 1])


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("keep", [None, KEEP])
@pytest.mark.parametrize("shape", [(), (13,), (64,), (3, 5), (0,)])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64, torch.bool])
def test_is_the_oracle(isa: str, dtype: torch.dtype, shape: tuple[int, ...], keep: torch.Tensor | None) -> None:
    values = torch.randint(0, 2, (N, *shape)).to(dtype)
    for width in (torch.int64, torch.int32):
        args = values, OFFSETS.to(width), INDEX.to(width), None if keep is None else keep.to(width)
        rows, ends = jagged_select(*args)
        expected_rows, expected_ends = stca.reference.jagged_select(*args)
        assert torch.equal(rows, expected_rows)
        assert torch.equal(ends, expected_ends)
        assert ends.dtype == width
        assert torch.equal(jagged_select(*args, total=len(rows))[0], rows)


def test_gradients() -> None:
    values = torch.randn(N, 2, dtype=torch.float64, requires_grad=True)
    for f in (jagged_select, stca.reference.jagged_select):
        assert torch.autograd.gradcheck(lambda x, f=f: f(x, OFFSETS, INDEX, KEEP)[0], values)
    assert torch.autograd.gradgradcheck(lambda x: jagged_select(x, OFFSETS, INDEX, KEEP)[0], values)


def test_a_row_taken_often_is_summed_without_rounding_on_the_way() -> None:
    values = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    jagged_select(values, offsets([1, 1]), torch.zeros(1000, dtype=torch.int64))[0].sum().backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    assert values.grad.tolist() == [[1000.0] * 3, [0.0] * 3]


def test_strides_empty_and_poison() -> None:
    values = torch.randn(6, N).T
    assert torch.equal(jagged_select(values, OFFSETS, INDEX)[0], jagged_select(values.contiguous(), OFFSETS, INDEX)[0])
    rows, ends = jagged_select(values, OFFSETS, INDEX[:0])
    assert rows.shape == (0, 6)
    assert ends.tolist() == [0]
    assert jagged_select(torch.zeros(0, 6), offsets([0, 0]), torch.tensor([1, 0, 1]))[1].tolist() == [0] * 4
    poisoned = values.clone()
    poisoned[OFFSETS[2] : OFFSETS[3] - 7] = float("nan")
    chosen, kept = torch.tensor([2, 0]), torch.tensor([7, 3])
    assert torch.equal(
        jagged_select(poisoned, OFFSETS, chosen, kept)[0], jagged_select(values, OFFSETS, chosen, kept)[0]
    )


def test_in_torch() -> None:
    values = torch.randn(N, 4, requires_grad=True)
    total = int(jagged_select(values, OFFSETS, INDEX, KEEP)[1][-1])
    for size in (None, total):
        torch.library.opcheck(torch.ops.stca.jagged_select, (values, OFFSETS, INDEX, KEEP, size))
    grad = torch.randn(total, 4, requires_grad=True)
    torch.library.opcheck(torch.ops.stca.jagged_select_backward, (grad, OFFSETS, INDEX, KEEP, N))
    torch.compiler.reset()
    compiled = torch.compile(lambda x: jagged_select(x.sin(), OFFSETS, INDEX, KEEP, total)[0], fullgraph=True)
    torch.testing.assert_close(compiled(values), jagged_select(values.sin(), OFFSETS, INDEX, KEEP)[0])


def test_bad_calls() -> None:
    values = torch.zeros(N, 2)
    bad: list[tuple[tuple[Any, ...], str]] = [
        ((values[:50], OFFSETS, INDEX), "offsets must end at the number of rows of values, 50, got 56"),
        ((values, OFFSETS, torch.tensor([5])), r"index\[0\] must be a request in \[0, 5\), got 5"),
        ((values, OFFSETS, torch.tensor([0, -1])), r"index\[1\] must be a request in \[0, 5\), got -1"),
        ((values, OFFSETS, INDEX.double()), "index must be int32 or int64, got Double"),
        ((values, OFFSETS, INDEX, KEEP[:3]), r"keep must be \[S\] like index, got \[3\]"),
        ((values, OFFSETS, INDEX[:1], torch.tensor([-2])), r"keep\[0\] must be a number of rows, at least 0, got -2"),
        ((values, OFFSETS, INDEX, KEEP, 7), "total must be the number of rows selected, 65, got 7"),
    ]
    for args, message in bad:
        with pytest.raises(ValueError, match=f"jagged_select: {message}"):
            jagged_select(*args)
