"""torch.func and `__torch_function__` keep gradients; an operator without forward mode says so, not a gradient of 0."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from cases import offsets
from registered import OPS, assert_has_each
from torch import Tensor
from torch.autograd import forward_ad

import stca

TARGETS, HISTORY = offsets([2, 1]), offsets([3, 1])
FUNCTIONS: dict[str, Callable[[Tensor], object]] = {  # of x [4, 1, 4]
    "target_attention": lambda x: stca.ops.target_attention(torch.ones(3, 1, 4), x, None, TARGETS, HISTORY),
    "swiglu_ffn_norm": lambda x: stca.ops.swiglu_ffn_norm(x[:, 0], torch.eye(4), torch.eye(4), torch.eye(4)),
    "request_gather": lambda x: stca.ops.request_gather([torch.ones(4), x], offsets([1, 0, 2, 3])),
    "request_reduce": lambda x: stca.ops.request_reduce(x, HISTORY),
    "jagged_select": lambda x: stca.ops.jagged_select(x, HISTORY, torch.tensor([1, 0])),
}


def test_every_operator_is_transformed() -> None:
    assert_has_each(FUNCTIONS, OPS, "tests/ops/test_transforms.py: FUNCTIONS")


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("op", FUNCTIONS)
def test_tangents_are_refused(op: str, requires_grad: bool) -> None:
    x = torch.randn(4, 1, 4, requires_grad=requires_grad)
    message = f"{op}: forward-mode derivatives are not supported, got a tangent of "
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=message):
        FUNCTIONS[op](forward_ad.make_dual(x, torch.ones_like(x)))  # type: ignore[no-untyped-call]
    with pytest.raises(NotImplementedError, match=message):
        torch.func.jvp(FUNCTIONS[op], (x.detach(),), (torch.ones_like(x),))
    with forward_ad.dual_level():
        FUNCTIONS[op](x)  # no tangent, no complaint


@pytest.mark.parametrize("op", FUNCTIONS)
def test_torch_func_grad(op: str) -> None:
    def loss(x: Tensor) -> Tensor:
        leaves = torch.utils._pytree.tree_leaves(FUNCTIONS[op](x))
        return torch.stack([y.square().sum() for y in leaves if y.is_floating_point()]).sum()

    x = torch.randn(4, 1, 4, requires_grad=True)
    (expected,) = torch.autograd.grad(loss(x), x)
    assert bool(expected.any())
    assert torch.equal(torch.func.grad(loss)(x.detach()), expected)
    pull_back = torch.func.vjp(loss, x.detach())[1]
    assert torch.equal(pull_back(torch.tensor(1.0))[0], expected)


def test_torch_func_grad_of_a_stack() -> None:
    model = stca.nn.STCA(dim=16, num_layers=2, num_heads=2)
    targets, history = torch.randn(3, 16), torch.randn(4, 16)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        y: Tensor = torch.func.functional_call(model, parameters, (targets, history, TARGETS, HISTORY))
        return y.square().sum()

    names, parameters = zip(*model.named_parameters(), strict=True)
    expected = torch.autograd.grad(loss(dict(model.named_parameters())), parameters)
    actual = torch.func.grad(loss)({name: p.detach() for name, p in model.named_parameters()})
    for name, gradient in zip(names, expected, strict=True):
        assert torch.equal(actual[name], gradient), name


class Wrapped:
    """No tensor: what `__torch_function__` is for."""

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def unwrapped(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return type(value)(map(unwrapped, value))
            return value.inner if isinstance(value, Wrapped) else value

        return function(*unwrapped(args), **(kwargs or {}))


@pytest.mark.parametrize("query_requires_grad", [False, True])
def test_a_torch_function_handler_keeps_gradients(query_requires_grad: bool) -> None:
    q, history = torch.randn(3, 1, 4, requires_grad=query_requires_grad), torch.randn(4, 1, 4, requires_grad=True)
    leaves = [q, history] if query_requires_grad else [history]
    plain = stca.ops.target_attention(q, history, None, TARGETS, HISTORY)
    wrapped = stca.ops.target_attention(q, cast("Tensor", Wrapped(history)), None, TARGETS, HISTORY)
    expected = torch.autograd.grad(plain.square().sum(), leaves)
    actual = torch.autograd.grad(wrapped.square().sum(), leaves)
    assert torch.equal(wrapped, plain)
    assert all(bool(gradient.any()) for gradient in expected)
    assert all(map(torch.equal, actual, expected))
