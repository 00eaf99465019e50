"""request_gather and its gradient: a row per request, repeated for its targets."""

import pytest
import torch
from cases import DTYPES, offsets

import stca
from stca.ops import request_gather

COUNTS = [3, 0, 0, 1, 250, 2, 0]
OFFSETS = offsets(COUNTS)


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("shape", [(), (1,), (13,), (64,), (3, 5), (0,)])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64, torch.int32, torch.bool, torch.uint8])
def test_is_the_oracle(isa: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.randint(0, 2, (len(COUNTS), *shape)).to(dtype)
    for each in (OFFSETS, OFFSETS.int()):
        y = request_gather(x, each)
        assert torch.equal(y, stca.reference.request_gather(x, each))  # type: ignore[arg-type]
        assert torch.equal(request_gather(x, each, total=sum(COUNTS)), y)


def test_several_tensors_in_one_call() -> None:
    xs = [
        torch.randn(7, 4, dtype=torch.float64, requires_grad=True),
        torch.randn(7, dtype=torch.float64, requires_grad=True),
    ]
    ys = request_gather(xs, OFFSETS)
    assert [y.shape for y in ys] == [(256, 4), (256,)]
    small = offsets([2, 0, 1, 0, 0, 3, 1])
    assert torch.autograd.gradcheck(lambda *xs: tuple(request_gather(xs, small)), xs)
    assert torch.autograd.gradgradcheck(lambda *xs: tuple(request_gather(xs, small)), xs)
    (grad,) = torch.autograd.grad(request_gather(xs, OFFSETS)[1].sum(), xs[1])
    assert grad.tolist() == COUNTS


def test_features_of_several_dtypes_in_one_call() -> None:
    """Integers, and what needs no gradient, go along; only what needs one gets one."""
    x, frozen, ids = torch.randn(7, 4, requires_grad=True), torch.randn(7, 2), torch.arange(7)
    y, frozen_y, ids_y = request_gather([x, frozen, ids], OFFSETS)
    assert torch.equal(ids_y, torch.repeat_interleave(ids, OFFSETS.diff()))
    (y.sum() + frozen_y.sum()).backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert torch.equal(x.grad, OFFSETS.diff().float()[:, None].expand(7, 4))
    assert frozen.grad is None


def test_gradient_of_many_targets_is_not_rounded_on_the_way() -> None:
    x = torch.ones(1, 3, dtype=torch.bfloat16, requires_grad=True)
    request_gather(x, offsets([1000])).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.tolist() == [[1000.0] * 3]


def test_strides_and_empty() -> None:
    x = torch.randn(5, 7).T
    assert torch.equal(request_gather(x, OFFSETS), request_gather(x.contiguous(), OFFSETS))
    assert request_gather(torch.zeros(0, 3), offsets([])).shape == (0, 3)
    assert request_gather(torch.zeros(2, 3), offsets([0, 0])).shape == (0, 3)
    assert request_gather([], OFFSETS) == []


def test_in_torch() -> None:
    x = torch.randn(7, 4, requires_grad=True)
    torch.library.opcheck(torch.ops.stca.request_gather, ([x, x.detach()], OFFSETS, None))
    torch.library.opcheck(torch.ops.stca.request_gather, ([x], OFFSETS, 256))
    torch.compiler.reset()
    compiled = torch.compile(lambda x: request_gather(x.sin(), OFFSETS, total=256).square(), fullgraph=True)
    torch.testing.assert_close(compiled(x), request_gather(x.sin(), OFFSETS).square())


def test_bad_calls() -> None:
    bad = [
        ((torch.zeros(6, 2), OFFSETS), r"x must be \[R, \.\.\.\] with R = 7, got \[6, 2\]"),
        ((torch.zeros(()), OFFSETS), r"x must be \[R, \.\.\.\]"),
        ((torch.zeros(2), torch.tensor([1, 2, 3])), "target_offsets must start at 0, got 1"),
        ((torch.zeros(2), torch.tensor([0, 3, 2])), "target_offsets must not decrease, got 3 then 2 at index 2"),
        ((torch.zeros(2), torch.tensor([0.0, 1, 2])), "target_offsets must be int32 or int64, got Float"),
        ((torch.zeros(2), torch.zeros(0, dtype=torch.int64)), r"target_offsets must be \[R \+ 1\], got \[0\]"),
    ]
    for args, message in bad:
        with pytest.raises(ValueError, match=f"request_gather: {message}"):
            request_gather(*args)
    with pytest.raises(ValueError, match=r"target_offsets must end at .* 9, got 256"):
        request_gather(torch.zeros(7), OFFSETS, total=9)
