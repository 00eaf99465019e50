"""target_attention reads inputs and incoming gradients of any strides."""

import pytest
import torch
from accuracy import assert_bitwise_equal
from cases import DTYPES, TargetAttentionCase
from layouts import LAYOUTS
from torch import Tensor

import stca

CASES = [
    TargetAttentionCase("reordered", [(3, 37), (1, 300)], 4, 1, 8),
    TargetAttentionCase("grouped", [(2, 40), (2, 65)], 4, 2, 5, 6, "random"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layouts(case: TargetAttentionCase, layout: str, dtype: torch.dtype) -> None:
    """Every floating-point tensor, the incoming gradients too, lies in memory in an unusual way."""
    inputs = case.build(dtype)
    strided = inputs.map(lambda x: LAYOUTS[layout](x) if x.dim() == 3 else x.t().contiguous().t())
    assert not strided.q.is_contiguous()
    assert not strided.dlse.is_contiguous()
    assert_bitwise_equal(strided.results(), inputs.results())


@pytest.mark.parametrize("dims", [(0,), (1,), (2,), (0, 1), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_expanded_inputs(case: TargetAttentionCase, dims: tuple[int, ...]) -> None:
    """Stride 0: one row, head or element for all."""

    def expand(x: Tensor) -> Tensor:
        one = x[tuple(slice(1) if d in dims else slice(None) for d in range(x.dim()))]
        return one.expand_as(x)

    expanded = case.build().map(expand)
    assert 0 in expanded.q.stride()
    assert_bitwise_equal(expanded.results(), expanded.map(Tensor.contiguous).results())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_of_a_plain_sum(case: TargetAttentionCase) -> None:
    """sum() sends back one number, expanded to the shape of out."""
    inputs = case.build()
    q = inputs.q.requires_grad_()
    out, lse = inputs.call(stca.ops.target_attention)
    (actual,) = torch.autograd.grad(out.sum() + lse.sum(), q)
    ones = inputs.but(q=q.detach(), dout=torch.ones_like(out), dlse=torch.ones_like(lse))
    assert torch.equal(actual, ones.results()["dq"])


def test_strided_and_overlapping_integers() -> None:
    case = TargetAttentionCase("", [(2, 3), (2, 3), (2, 3)], visible="random")
    inputs = case.build()
    assert inputs.visible is not None
    expected = inputs.results()
    inputs.visible = inputs.visible.t().contiguous().t()
    inputs.target_offsets = inputs.target_offsets.repeat_interleave(2)[::2]
    inputs.history_offsets = inputs.history_offsets.flip(0).flip(0).expand(2, -1)[1]
    assert_bitwise_equal(inputs.results(), expected)
    inputs.visible = torch.tensor([1, 3]).expand(6, 2)
    contiguous = inputs.but(visible=inputs.visible.contiguous())
    assert_bitwise_equal(inputs.results(), contiguous.results())
