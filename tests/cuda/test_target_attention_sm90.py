"""Hopper's kernels of target_attention agree with the oracle: their PTX in the machine of tests/ptx, and on a GPU."""

from itertools import product

import pytest
import torch
from accuracy import assert_all_as_accurate, assert_bitwise_equal
from cases import NAN_AND_INFINITIES, TargetAttentionCase, TargetAttentionInputs
from cuda_devices import HOPPERS, hopper_kernels, needs_gpu, target_attention_on
from emulated import launched_kernels
from plain import target_attention_references

on_hoppers = pytest.mark.parametrize("device", HOPPERS)

DTYPES = (torch.bfloat16, torch.float16)
CASES = [
    TargetAttentionCase("one-slab-more", [(2, 70), (1, 3)], 4, 1, 136),
    TargetAttentionCase("one-block", [(3, 130), (1, 0), (2, 64)], 8, 1, 512),
    TargetAttentionCase("cluster", [(6, 100), (2, 33)], 8, 1, 1024),
    TargetAttentionCase("cluster-odd", [(1, 65), (40, 20)], 2, 1, 520),
    TargetAttentionCase("visible", [(6, 150), (3, 40)], 4, 1, 256, None, "random"),
    TargetAttentionCase("split", [(2, 900), (1, 1)], 2, 1, 256),
    TargetAttentionCase("many-queries", [(70, 90)], 2, 1, 256, None, "suffix"),
    # Of 256 history rows here dS is kept at a time; ranges begin and end within histories, and between them.
    TargetAttentionCase("chunks", [(1, 290), (2, 1150), (0, 40), (1, 610)], 2, 1, 512, None, "random"),
    TargetAttentionCase("cluster-chunks", [(1, 700), (1, 0), (1, 33)], 32, 1, 1000),
    # A block of the history of many query rows takes longer than a range would be of equal ones.
    TargetAttentionCase("unequal", [(1, 3), (16, 66), (1, 254)], 32, 1, 256),
    # dS is kept of the second request alone.
    TargetAttentionCase("more-queries", [(65, 150), (3, 70)], 8, 1, 136, None, "prefix"),
]
# So long that blocks on all multiprocessors of a GPU go round their stages again and again.
LONG = [
    TargetAttentionCase("long-256", [(2, 9000)] * 8, 2, 1, 256, None, "random"),
    TargetAttentionCase("long-512", [(2, 9000)] * 8, 1, 1, 512),
    TargetAttentionCase("long-cluster", [(1, 9000)] * 8, 1, 1, 1024),
    TargetAttentionCase("long-cluster-many", [(2, 6000)] * 4, 16, 1, 1024, None, "suffix"),
]


def _kernels(inputs: TargetAttentionInputs) -> int:
    """Forward and gradients; those of q are another kernel where a request may have more rows than dS is kept of."""
    rows, heads, _ = inputs.q.shape
    return 2 if rows * heads <= 512 else 3


@pytest.mark.exhaustive
@on_hoppers
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_backward(case: TargetAttentionCase, dtype: torch.dtype, device: str) -> None:
    inputs = case.build(dtype)
    actual = target_attention_on(device, inputs)
    assert device != "hopper" or sum("sm90" in name for name in launched_kernels()) == _kernels(inputs)
    assert_all_as_accurate(actual, target_attention_references(inputs))


@pytest.mark.slow
@on_hoppers
def test_as_many_query_rows_as_ds_is_kept_of(device: str) -> None:
    """In more than one chunk."""
    inputs = TargetAttentionCase("", [(32, 700)], 16, 1, 520).build(torch.bfloat16)
    assert _kernels(inputs) == 2
    assert_all_as_accurate(target_attention_on(device, inputs), target_attention_references(inputs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("device", "case"), [("hopper", CASES[0]), *product(HOPPERS[1:], CASES)], ids=str)
def test_hoppers_kernels_run(case: TargetAttentionCase, dtype: torch.dtype, device: str) -> None:
    inputs = case.build(dtype)
    assert len(set(hopper_kernels(device, lambda: target_attention_on(device, inputs)))) == _kernels(inputs)


@needs_gpu
@pytest.mark.parametrize("device", ["hopper-gpu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LONG, ids=str)
def test_long_histories(case: TargetAttentionCase, dtype: torch.dtype, device: str) -> None:
    inputs = case.build(dtype)
    assert_all_as_accurate(target_attention_on(device, inputs), target_attention_references(inputs))


@on_hoppers
@pytest.mark.parametrize("case", [CASES[2], CASES[4], *CASES[7:]], ids=str)
def test_the_same_bits_on_every_run(case: TargetAttentionCase, device: str) -> None:
    """Warps take turns, and copies and products land, in another order each time."""
    inputs = case.build(torch.bfloat16)
    expected = target_attention_on(device, inputs)
    for seed in (2, 3):
        assert_bitwise_equal(target_attention_on(device, inputs, seed), expected)


@on_hoppers
@pytest.mark.parametrize("value", NAN_AND_INFINITIES)
def test_other_requests_do_not_matter(value: float, device: str) -> None:
    """Tiles reach into the rows of the next request, which are cleared before they meet a weight of 0."""
    inputs = TargetAttentionCase("", [(2, 70), (1, 90), (2, 10)], 4, 1, 256).build(torch.bfloat16)
    expected = target_attention_on(device, inputs)
    k = inputs.k.clone()
    k[70:160] = value
    actual = target_attention_on(device, inputs.but(k=k))
    rows = torch.tensor([0, 1, 3, 4])
    assert_bitwise_equal({"out": actual["out"][rows]}, {"out": expected["out"][rows]})
    assert_bitwise_equal({"dk": actual["dk"][:70]}, {"dk": expected["dk"][:70]})


@on_hoppers
@pytest.mark.parametrize("value", NAN_AND_INFINITIES)
def test_rows_that_nobody_sees_do_not_matter(value: float, device: str) -> None:
    """What is seen begins and ends within tiles, and in other items: dS of the others is 0."""
    visible = torch.tensor([[303, 837], [319, 801]])
    inputs = TargetAttentionCase("", [(2, 1100)], 2, 1, 512).build(torch.bfloat16).but(visible=visible)
    expected = target_attention_on(device, inputs)
    k = inputs.k.clone()
    k[:303] = k[837:] = value
    assert_bitwise_equal(target_attention_on(device, inputs.but(k=k)), expected)


@on_hoppers
@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_scores(dtype: torch.dtype, kv_heads: int, device: str) -> None:
    """With two history heads the common kernels make the gradients, from scores that they add up in another order."""
    inputs = TargetAttentionCase("", [(2, 150), (1, 40)], 4, kv_heads, 256).build(dtype)
    inputs = inputs.but(scale=1e4 / float(inputs.q.double().norm(dim=2).max()))
    actual = target_attention_on(device, inputs)
    assert_all_as_accurate(actual, target_attention_references(inputs), sensitivity=4)


def test_where_the_hardware_rounds_freely() -> None:
    inputs = CASES[2].build(torch.bfloat16)
    assert_all_as_accurate(target_attention_on("hopper", inputs, rough=True), target_attention_references(inputs))
