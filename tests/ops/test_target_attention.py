"""target_attention agrees with its oracle, forward and backward, for every dtype and instruction set."""

from dataclasses import replace

import pytest
import torch
from accuracy import assert_all_as_accurate, assert_bitwise_equal
from cases import DTYPES, TARGET_ATTENTION, TARGET_ATTENTION_SMALL, TargetAttentionCase
from plain import references_of_case, target_attention_references
from torch import Tensor

import stca


def largest_lse(results: dict[str, Tensor]) -> float:
    return float(results["lse"].masked_fill(~results["lse"].isfinite(), 0).abs().max())


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", TARGET_ATTENTION, ids=str)
def test_forward_and_backward(case: TargetAttentionCase, dtype: torch.dtype, isa: str) -> None:
    assert_all_as_accurate(case.build(dtype).results(), references_of_case(case.name, dtype))


@pytest.mark.parametrize("scale", [0.0, 1.0, -0.7, 3.5])
@pytest.mark.parametrize("case", TARGET_ATTENTION_SMALL, ids=str)
def test_scale(case: TargetAttentionCase, scale: float, isa: str) -> None:
    inputs = replace(case.build(), scale=scale)
    assert_all_as_accurate(inputs.results(), target_attention_references(inputs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", TARGET_ATTENTION_SMALL, ids=str)
def test_large_scores(case: TargetAttentionCase, dtype: torch.dtype, isa: str) -> None:
    """Scores of about 1e4 would overflow any exponential taken before the maximum is subtracted."""
    inputs = case.build(dtype)
    inputs = inputs.but(scale=1e4 / float(inputs.q.double().norm(dim=2).max()))
    actual = inputs.results()
    assert largest_lse(actual) > 3e3
    # exp() turns the scores' own rounding, about 1e4 eps here, into the error of both, and luck into their ratio; in
    # float64 into that of the oracle too.
    assert_all_as_accurate(actual, target_attention_references(inputs), sensitivity=40 if dtype == torch.float64 else 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_far_apart(dtype: torch.dtype, isa: str) -> None:
    """Weights of exp(-200) are nothing beside 1, whichever piece of the history has the largest score."""
    inputs = TargetAttentionCase("", [(2, 4000)], 1, 1, 4, 3).build(dtype)
    q, k = torch.ones_like(inputs.q), torch.full_like(inputs.k, -50)
    for top in (0, 31, 1999, 3999):
        k[:] = -50
        k[top] = 0
        actual = inputs.but(q=q, k=k, scale=1.0).results()
        assert inputs.v is not None
        assert torch.equal(actual["out"], inputs.v[top].expand(2, 1, 3))
        assert torch.equal(actual["lse"], torch.zeros_like(actual["lse"]))
        assert (actual["dv"].abs().amax(dim=(1, 2)) > 1e-80).nonzero().tolist() == [[top]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights_of_a_single_row_have_no_gradient(dtype: torch.dtype, isa: str) -> None:
    """The softmax of one score is 1 whatever the score: dq is exactly 0, not what rounding leaves of a difference."""
    for value_dim in (70, 300, 900):
        inputs = TargetAttentionCase("", [(3, 1), (40, 1), (1, 1)], 6, 2, 70, value_dim).build(dtype)
        results = inputs.but(dlse=torch.zeros_like(inputs.dlse)).results()
        assert not results["dq"].any()
        assert not results["dk"].any()
        assert results["dv"].any()


@pytest.mark.parametrize("case", TARGET_ATTENTION_SMALL, ids=str)
def test_gradient_through_one_output_only(case: TargetAttentionCase, isa: str) -> None:
    inputs = case.build(torch.float64)
    for unused in ("dout", "dlse"):
        zeroed = inputs.but(**{unused: torch.zeros_like(getattr(inputs, unused))})
        q = inputs.q.clone().requires_grad_()
        out, lse = inputs.but(q=q).call(stca.ops.target_attention)
        used, incoming = (lse, inputs.dlse) if unused == "dout" else (out, inputs.dout)
        (dq,) = torch.autograd.grad(used, q, incoming)
        torch.testing.assert_close(dq, zeroed.results()["dq"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", TARGET_ATTENTION_SMALL, ids=str)
def test_gradcheck(case: TargetAttentionCase, isa: str) -> None:
    torch.set_num_threads(1)  # many small operations
    inputs = replace(case, requests=[(2, 5), (1, 0), (0, 3), (3, 4)]).build(torch.float64)
    leaves = [x.requires_grad_() for x in (inputs.q, inputs.k, inputs.v) if x is not None]

    def f(q: Tensor, k: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
        out, lse = inputs.but(q=q, k=k, v=v).call(stca.ops.target_attention)
        return out, lse.nan_to_num(neginf=0.0)

    assert torch.autograd.gradcheck(f, leaves, fast_mode=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_converts_the_inputs(dtype: torch.dtype) -> None:
    inputs = TARGET_ATTENTION_SMALL[0].build()
    with torch.autocast("cpu", dtype):
        out, lse = inputs.call(stca.ops.target_attention)
    converted_out, converted_lse = inputs.to(dtype).call(stca.ops.target_attention)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    assert torch.equal(out, converted_out)
    assert torch.equal(lse, converted_lse)


def test_autocast_leaves_float64_alone() -> None:
    inputs = TARGET_ATTENTION_SMALL[1].build(torch.float64)
    expected = inputs.results()
    with torch.autocast("cpu", torch.bfloat16):
        assert_bitwise_equal(inputs.results(), expected)
        integers = inputs.but(q=inputs.q.long())
        with pytest.raises(ValueError, match=r"target_attention: q must be float64, .* got Long"):
            integers.call(stca.ops.target_attention)


def test_out_alone_is_returned_unless_lse_is_asked_for() -> None:
    x = TARGET_ATTENTION_SMALL[0].build()
    alone = stca.ops.target_attention(x.q, x.k, x.v, x.target_offsets, x.history_offsets)
    assert torch.equal(alone, x.call(stca.ops.target_attention)[0])
