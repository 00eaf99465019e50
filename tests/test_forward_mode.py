"""Forward-mode differentiation: an operator that has none must say so, not return a gradient of 0."""

from collections.abc import Callable

import pytest
import torch
from cases import offsets
from test_layering import OPS
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


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_tangents_are_refused(op: str, requires_grad: bool) -> None:
    x = torch.randn(4, 1, 4, requires_grad=requires_grad)
    message = f"{op}: forward-mode derivatives are not supported, got a tangent of "
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=message):
        FUNCTIONS[op](forward_ad.make_dual(x, torch.ones_like(x)))  # type: ignore[no-untyped-call]
    with pytest.raises(NotImplementedError, match=message):
        torch.func.jvp(FUNCTIONS[op], (x.detach(),), (torch.ones_like(x),))
    with forward_ad.dual_level():
        FUNCTIONS[op](x)  # no tangent, no complaint
