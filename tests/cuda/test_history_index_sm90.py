"""Hopper's kernels with v None and an index: tiles come as boxes where rows follow each other, else row by row."""

import pytest
import torch
from accuracy import assert_all_as_accurate, assert_bitwise_equal
from cases import NAN_AND_INFINITIES, TargetAttentionCase
from cuda_devices import HOPPERS, hopper_kernels, target_attention_on
from emulated import launched_kernels
from plain import target_attention_references

pytestmark = pytest.mark.parametrize("device", HOPPERS)

PAGE = 64
CASES = [
    TargetAttentionCase("shared", [(3, 130), (1, 0), (2, 70)], 4, 1, 200, None, "random", pool=4 * PAGE),
    TargetAttentionCase("shared-cluster", [(6, 100), (2, 33)], 8, 1, 520, pool=4 * PAGE),
]


def _pages(rows: int) -> torch.Tensor:
    return (torch.tensor([2, 0, 3, 1])[:, None] * PAGE + torch.arange(PAGE)).flatten()[:rows]


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("paged", [True, False], ids=["pages", "scattered"])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_same_as_rows_in_order(case: TargetAttentionCase, paged: bool, dtype: torch.dtype, device: str) -> None:
    inputs = case.build(dtype)
    assert inputs.history_index is not None
    index = _pages(len(inputs.history_index)) if paged else inputs.history_index
    inputs = inputs.but(history_index=index)
    actual = target_attention_on(device, inputs)
    assert device != "hopper" or sum("sm90" in name for name in launched_kernels()) == 2
    assert_all_as_accurate(actual, target_attention_references(inputs))
    in_order = inputs.but(k=inputs.k[index], history_index=None)
    expected = target_attention_on(device, in_order, seed=2)
    for name in ("out", "lse", "dq"):
        assert_bitwise_equal({name: actual[name]}, {name: expected[name]})


@pytest.mark.parametrize("case", CASES, ids=str)
def test_hoppers_kernels_run(case: TargetAttentionCase, device: str) -> None:
    """Forward and for all gradients: dS is kept of requests of so few rows."""
    inputs = case.build(torch.bfloat16)
    assert len(set(hopper_kernels(device, lambda: target_attention_on(device, inputs)))) == 2


@pytest.mark.parametrize("value", NAN_AND_INFINITIES)
def test_rows_that_no_index_names_do_not_matter(value: float, device: str) -> None:
    """Tiles that reach beyond the history hold its last row once more, and no row of the pool."""
    inputs = CASES[0].build(torch.bfloat16)
    assert inputs.history_index is not None
    inputs = inputs.but(history_index=inputs.history_index.remainder(100))
    expected = target_attention_on(device, inputs)
    k = inputs.k.clone()
    k[100:] = value
    actual = target_attention_on(device, inputs.but(k=k))
    assert_bitwise_equal(actual, expected)
