"""Hopper's kernels of target_attention with v agree with the oracle: their PTX in the machine of tests/ptx, a GPU."""

from itertools import product

import pytest
import torch
from accuracy import assert_all_as_accurate, assert_bitwise_equal
from cases import NAN_AND_INFINITIES, TargetAttentionCase
from cuda_devices import HOPPERS, hopper_kernels, needs_gpu, target_attention_on
from emulated import emulated_target_attention, launched_kernels
from plain import target_attention_references

on_hoppers = pytest.mark.parametrize("device", HOPPERS)

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
# So long that blocks on all multiprocessors of a GPU go round their stages again and again.
LONG = [
    TargetAttentionCase(f"long-{D}-{m}", [(m, rows)] * 4, 2, 2, D, D, "random")
    for D in (64, 128)
    for m, rows in ((20, 9000), (90, 2000))
]


@pytest.mark.exhaustive
@on_hoppers
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SOME + MANY, ids=str)
def test_forward_and_backward(case: TargetAttentionCase, dtype: torch.dtype, device: str) -> None:
    inputs = case.build(dtype)
    actual = target_attention_on(device, inputs)
    assert device != "hopper" or sum("sm90" in name for name in launched_kernels()) == 3
    assert_all_as_accurate(actual, target_attention_references(inputs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("device", "case"), [("hopper", SOME[0]), *product(HOPPERS[1:], SOME + MANY)], ids=str)
def test_hoppers_kernels_run(case: TargetAttentionCase, dtype: torch.dtype, device: str) -> None:
    """Forward, for gradients of the history and for those of queries."""
    inputs = case.build(dtype)
    assert len(set(hopper_kernels(device, lambda: target_attention_on(device, inputs)))) == 3


@needs_gpu
@pytest.mark.parametrize("device", ["hopper-gpu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LONG, ids=str)
def test_long_histories(case: TargetAttentionCase, dtype: torch.dtype, device: str) -> None:
    inputs = case.build(dtype)
    assert_all_as_accurate(target_attention_on(device, inputs), target_attention_references(inputs))


@on_hoppers
@pytest.mark.parametrize("case", [SOME[1], MANY[0]], ids=str)
def test_the_same_bits_on_every_run(case: TargetAttentionCase, device: str) -> None:
    """Warps take turns, and copies and products land, in another order each time."""
    inputs = case.build(torch.bfloat16)
    expected = target_attention_on(device, inputs)
    for seed in (2, 3):
        assert_bitwise_equal(target_attention_on(device, inputs, seed), expected)


@on_hoppers
@pytest.mark.parametrize("targets", [40, 110])
@pytest.mark.parametrize("value", NAN_AND_INFINITIES)
def test_other_requests_do_not_matter(value: float, targets: int, device: str) -> None:
    """Tiles reach into the rows of the next request, which are cleared before they meet a weight of 0."""
    inputs = TargetAttentionCase("", [(targets, 70), (2, 90), (targets, 10)], 2, 1, 64, 64).build(torch.bfloat16)
    bad = inputs.map(lambda x: x.clone())
    own = slice(targets, targets + 2)
    for tensor in (bad.q, bad.dout, bad.dlse):
        tensor[own] = value
    assert bad.v is not None
    bad.k[70:160] = bad.v[70:160] = value
    expected, actual = target_attention_on(device, inputs), target_attention_on(device, bad)
    for name in ("out", "lse", "dq"):
        for rows in (slice(own.start), slice(own.stop, None)):
            assert_bitwise_equal({name: actual[name][rows]}, {name: expected[name][rows]})
    for name in ("dk", "dv"):
        for rows in (slice(70), slice(160, None)):
            assert_bitwise_equal({name: actual[name][rows]}, {name: expected[name][rows]})


@on_hoppers
@pytest.mark.parametrize("targets", [40, 110])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_scores(dtype: torch.dtype, targets: int, device: str) -> None:
    """The two passes must turn the same score into the same weight."""
    inputs = TargetAttentionCase("", [(targets, 150), (1, 40)], 2, 1, 64, 64).build(dtype)
    inputs = inputs.but(scale=1e4 / float(inputs.q.double().norm(dim=2).max()))
    assert_all_as_accurate(target_attention_on(device, inputs), target_attention_references(inputs), sensitivity=4)


@pytest.mark.parametrize("case", [SOME[0], MANY[1]], ids=str)
def test_where_the_hardware_rounds_freely(case: TargetAttentionCase) -> None:
    inputs = case.build(torch.bfloat16)
    assert_all_as_accurate(target_attention_on("hopper", inputs, rough=True), target_attention_references(inputs))


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
