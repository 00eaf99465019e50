"""Hopper's kernels of target_attention with v given, as PTX in the machine of tests/ptx, agree with the oracle."""

import pytest
import torch
from accuracy import assert_all_as_accurate, assert_bitwise_equal
from cases import NAN_AND_INFINITIES, TargetAttentionCase, TargetAttentionInputs
from cuda_devices import needs_gpu, target_attention_on
from emulated import emulated_target_attention, launched_kernels
from plain import target_attention_references
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16)
# Up to 64 query rows of a request and history head, on average, and more.
SOME = [
    TargetAttentionCase("some", [(70, 140), (2, 300)], 2, 2, 64, 64, "random"),
    TargetAttentionCase("some-wide", [(40, 140), (3, 0), (0, 30), (70, 20)], 4, 2, 128, 128, "suffix"),
    TargetAttentionCase("some-split", [(20, 2000)], 1, 1, 40, 72),
    TargetAttentionCase("some-empty", [(60, 150), (1, 0), (0, 5), (40, 64)], 2, 2, 64, 64),
]
MANY = [
    TargetAttentionCase("many", [(150, 140), (2, 300)], 2, 2, 64, 64, "random"),
    TargetAttentionCase("many-wide", [(140, 140)], 1, 1, 128, 128),
    TargetAttentionCase("many-grouped", [(40, 1000), (3, 90), (30, 0)], 4, 1, 64, 72, "random"),
    TargetAttentionCase("many-grouped-narrow", [(40, 300), (3, 90), (0, 200)], 8, 1, 64, 64, "prefix"),
]


def on_hopper(inputs: TargetAttentionInputs, seed: int = 1, rough: bool = False) -> dict[str, Tensor]:
    """The results, which Hopper's kernels have made."""
    results = emulated_target_attention(inputs, seed, rough, hopper=True)
    assert sum("projected" in name and "sm90" in name for name in launched_kernels()) == 3
    return results


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SOME + MANY, ids=str)
def test_forward_and_backward(case: TargetAttentionCase, dtype: torch.dtype) -> None:
    inputs = case.build(dtype)
    assert_all_as_accurate(on_hopper(inputs), target_attention_references(inputs))


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SOME + MANY, ids=str)
def test_on_a_gpu(case: TargetAttentionCase, dtype: torch.dtype) -> None:
    """By whichever kernels are on there."""
    inputs = case.build(dtype)
    assert_all_as_accurate(target_attention_on("gpu", inputs), target_attention_references(inputs))


@pytest.mark.parametrize("case", [SOME[1], MANY[0]], ids=str)
def test_the_same_bits_on_every_run(case: TargetAttentionCase) -> None:
    """Warps take turns, and copies and products land, in another order each time."""
    inputs = case.build(torch.bfloat16)
    expected = on_hopper(inputs)
    for seed in (2, 3):
        assert_bitwise_equal(on_hopper(inputs, seed), expected)


@pytest.mark.parametrize("targets", [40, 110])
@pytest.mark.parametrize("value", NAN_AND_INFINITIES)
def test_other_requests_do_not_matter(value: float, targets: int) -> None:
    """Tiles reach into the rows of the next request, which are cleared before they meet a weight of 0."""
    inputs = TargetAttentionCase("", [(targets, 70), (2, 90), (targets, 10)], 2, 1, 64, 64).build(torch.bfloat16)
    bad = inputs.map(lambda x: x.clone())
    own = slice(targets, targets + 2)
    for tensor in (bad.q, bad.dout, bad.dlse):
        tensor[own] = value
    assert bad.v is not None
    bad.k[70:160] = bad.v[70:160] = value
    expected, actual = on_hopper(inputs), on_hopper(bad)
    for name in ("out", "lse", "dq"):
        for rows in (slice(own.start), slice(own.stop, None)):
            assert_bitwise_equal({name: actual[name][rows]}, {name: expected[name][rows]})
    for name in ("dk", "dv"):
        for rows in (slice(70), slice(160, None)):
            assert_bitwise_equal({name: actual[name][rows]}, {name: expected[name][rows]})


@pytest.mark.parametrize("targets", [40, 110])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_scores(dtype: torch.dtype, targets: int) -> None:
    """The two passes must turn the same score into the same weight."""
    inputs = TargetAttentionCase("", [(targets, 150), (1, 40)], 2, 1, 64, 64).build(dtype)
    inputs = inputs.but(scale=1e4 / float(inputs.q.double().norm(dim=2).max()))
    assert_all_as_accurate(on_hopper(inputs), target_attention_references(inputs), sensitivity=4)


@pytest.mark.parametrize("case", [SOME[0], MANY[1]], ids=str)
def test_where_the_hardware_rounds_freely(case: TargetAttentionCase) -> None:
    inputs = case.build(torch.bfloat16)
    assert_all_as_accurate(on_hopper(inputs, rough=True), target_attention_references(inputs))


OTHERS = [
    TargetAttentionCase("few", [(16, 70)], 2, 2, 64, 64),
    TargetAttentionCase("index", [(20, 70)], 2, 1, 64, 64, pool=50),
    TargetAttentionCase("narrow", [(20, 70)], 2, 1, 32, 32),
    TargetAttentionCase("unaligned", [(20, 70)], 2, 1, 68, 64),
    TargetAttentionCase("wide", [(20, 70)], 2, 1, 136, 64),
]


@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_the_common_kernels_take_the_others(case: TargetAttentionCase) -> None:
    inputs = case.build(torch.bfloat16)
    assert_bitwise_equal(emulated_target_attention(inputs, hopper=True), emulated_target_attention(inputs))
    emulated_target_attention(inputs, hopper=True)
    assert not any("sm90" in name for name in launched_kernels())
