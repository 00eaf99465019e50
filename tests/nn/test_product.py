"""Products of 16-bit numbers in float32 where torch would multiply them one by one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import stca
from stca.nn import product
from stca.nn.order import Order
from stca.nn.product import einsum, matmul, project_history

NARROW = (torch.bfloat16, torch.float16)
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": matmul,
    "project_history": lambda x, w: project_history(x, w.detach(), w)[1],
    "einsum": lambda x, w: einsum("nd,df->nf", x, w),
}


@pytest.fixture(autouse=True)
def _slow_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "SLOW_ON_CPU", frozenset(NARROW))


def _drawn(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return tuple(torch.randn(*shape).to(dtype).requires_grad_() for shape in ((70, 300), (300, 40)))  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", PRODUCTS)
def test_results_and_gradients_are_those_of_float32_rounded_once(name: str, dtype: torch.dtype) -> None:
    x, w = _drawn(dtype)
    y = PRODUCTS[name](x, w)
    dy = torch.randn(y.shape).to(dtype)
    y.backward(dy)  # type: ignore[no-untyped-call]
    assert torch.equal(y, (x.detach().float() @ w.detach().float()).to(dtype))
    for found, expected in ((x.grad, dy.float() @ w.float().T), (w.grad, x.float().T @ dy.float())):
        assert found is not None
        torch.testing.assert_close(found, expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-4)


@pytest.mark.parametrize("dtype", NARROW)
def test_autocast_rounds_operands_and_result(dtype: torch.dtype) -> None:
    x, w = _drawn(torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        y = matmul(x, w)
    assert torch.equal(y, (x.to(dtype).float() @ w.to(dtype).float()).to(dtype))


def test_other_dtypes_are_as_torch_has_them() -> None:
    x, w = _drawn(torch.float64)
    assert torch.equal(matmul(x, w), x @ w)
    with pytest.raises(RuntimeError, match="same dtype"):
        matmul(x, w.float())
    with pytest.raises(RuntimeError, match="same dtype"):
        matmul(x.bfloat16(), w.float())


def test_compiled_whole() -> None:
    x, w = _drawn(torch.bfloat16)
    whole = torch.compile(matmul, fullgraph=True, backend="eager")
    assert torch.equal(whole(x, w), matmul(x, w))


@pytest.mark.parametrize("order", ["reordered", "projected"])
@pytest.mark.parametrize("dtype", NARROW)
def test_attention_in_16_bits(order: Order, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    offsets = torch.tensor([0, 3, 8]), torch.tensor([0, 50, 90])
    exact = stca.nn.TargetAttention(64, 4, order=order, bias=True, dtype=torch.float64)
    module = stca.nn.TargetAttention(64, 4, order=order, bias=True, dtype=dtype)
    module.load_state_dict(exact.state_dict())
    x, rows = torch.randn(8, 64).to(dtype), torch.randn(90, 64).to(dtype)
    y, expected = module(x, rows, *offsets), exact(x.double(), rows.double(), *offsets)
    assert y.dtype == dtype
    assert (y.double() - expected).norm() < 4 * torch.finfo(dtype).eps * expected.norm()
