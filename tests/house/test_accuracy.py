"""The judge itself: it accepts plain PyTorch's own rounding and nothing much larger."""

import pytest
import torch
from accuracy import assert_as_accurate, assert_bitwise_equal
from cases import DTYPES, TARGET_ATTENTION_SMALL, TargetAttentionCase
from plain import plain_target_attention

import stca

EPS_FACTORS = {torch.float64: 500, torch.float32: 50, torch.bfloat16: 30, torch.float16: 30}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", TARGET_ATTENTION_SMALL, ids=str)
def test_rejects_a_perturbed_result(case: TargetAttentionCase, dtype: torch.dtype) -> None:
    inputs = case.build(dtype)
    oracle = inputs.to(torch.float64).results(stca.reference.target_attention)
    plain = inputs.results(plain_target_attention)
    for name in ("out", "dq", "dk"):
        assert_as_accurate(plain[name], oracle[name], plain[name], name)
        one_element = plain[name].clone()
        step = EPS_FACTORS[dtype] * torch.finfo(dtype).eps * float(oracle[name].abs().max())
        one_element.view(-1)[one_element.numel() // 2] += step
        with pytest.raises(AssertionError, match=f"{name}: largest error"):
            assert_as_accurate(one_element, oracle[name], plain[name], name)


def test_rejects_many_small_errors_under_one_outlier() -> None:
    oracle = torch.ones(1000, dtype=torch.float64)
    plain = torch.ones(1000)
    plain[0] = 1.1
    with pytest.raises(AssertionError, match="root mean square"):
        assert_as_accurate(torch.full((1000,), 1.02), oracle, plain)


@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
def test_rejects_misplaced_specials(special: float) -> None:
    oracle = torch.tensor([1.0, special], dtype=torch.float64)
    plain = oracle.float()
    assert_as_accurate(plain, oracle, plain)
    for wrong in ([1.0, 1.0], [special, special], [1.0, -special if special == special else torch.inf]):
        with pytest.raises(AssertionError, match=r"not finite|infinities"):
            assert_as_accurate(torch.tensor(wrong), oracle, plain)


def test_rejects_other_shapes_and_dtypes() -> None:
    oracle, plain = torch.ones(3, dtype=torch.float64), torch.ones(3)
    for wrong in (torch.ones(2), torch.ones(3, dtype=torch.float64), torch.ones(3, 1)):
        with pytest.raises(AssertionError):
            assert_as_accurate(wrong, oracle, plain)


def test_bitwise_equality_tells_zeros_apart() -> None:
    nan = torch.tensor([torch.nan, 0.0])
    assert_bitwise_equal({"x": nan}, {"x": nan.clone()})
    with pytest.raises(AssertionError):
        assert_bitwise_equal({"x": torch.tensor([0.0])}, {"x": torch.tensor([-0.0])})
