"""dq is made of ds that the kernel of dk and dv keeps: five products, and seven only where query rows are very many."""

import pytest
import torch
from accuracy import assert_all_as_accurate, assert_bitwise_equal
from cases import NAN_AND_INFINITIES, TargetAttentionCase
from cuda_devices import DTYPES
from emulated import emulated_target_attention, launched_kernels
from plain import target_attention_references

# At width 1024 a chunk, of which ds is kept, is 128 rows at the least (64 of float32), and 256 query rows are the most.
CHUNKS = [
    TargetAttentionCase("cut", [(2, 700), (1, 0), (1, 33)], 4, 1, 1024),
    TargetAttentionCase("whole", [(1, 290), (2, 150), (0, 40), (1, 310), (1, 140)], 2, 1, 1000, None, "random"),
    TargetAttentionCase("indexed", [(3, 300), (1, 260)], 4, 2, 520, None, "suffix", 90),
    TargetAttentionCase("given", [(40, 5000), (3, 300)], 2, 1, 24, 16),
    # A block of the history of many query rows takes longer than a range would be of equal ones.
    TargetAttentionCase("unequal", [(1, 3), (16, 66), (1, 254)], 32, 1, 256),
]
MANY = TargetAttentionCase("many", [(33, 40), (2, 150), (65, 5)], 8, 1, 1024)  # 264, 16 and 520 query rows


def _dq_kernel_ran() -> bool:
    names = launched_kernels()
    assert any("bwd_dkv_kernel" in name for name in names)
    return any("bwd_dq_kernel" in name for name in names)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CHUNKS, ids=str)
def test_histories_of_several_chunks(case: TargetAttentionCase, dtype: torch.dtype) -> None:
    """Chunks that a range begins and ends within, and histories that lie within one, add up their dq."""
    inputs = case.build(dtype)
    actual = emulated_target_attention(inputs)
    assert not _dq_kernel_ran()
    assert_all_as_accurate(actual, target_attention_references(inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_more_query_rows_than_ds_is_kept_of(dtype: torch.dtype) -> None:
    """Only the requests that have so many are left to the other kernel."""
    inputs = MANY.build(dtype)
    actual = emulated_target_attention(inputs)
    assert _dq_kernel_ran()
    assert_all_as_accurate(actual, target_attention_references(inputs))


@pytest.mark.parametrize("case", [CHUNKS[1], CHUNKS[3]], ids=str)
def test_the_same_bits_on_every_run(case: TargetAttentionCase) -> None:
    """Warps take turns, and copies land, in another order each time."""
    inputs = case.build(torch.bfloat16)
    expected = emulated_target_attention(inputs)
    for seed in (2, 3):
        assert_bitwise_equal(emulated_target_attention(inputs, seed), expected)


@pytest.mark.parametrize("poison", NAN_AND_INFINITIES)
def test_rows_that_nobody_sees_do_not_matter(poison: float) -> None:
    """What is seen begins and ends within a step of a product, some chunks after the first and before the last."""
    visible = torch.tensor([[203, 437], [219, 501]])
    clean, dirty = (TargetAttentionCase("", [(2, 700)], 2, 1, 1024).build().but(visible=visible) for _ in range(2))
    dirty.k[:203] = dirty.k[501:] = poison
    assert_bitwise_equal(emulated_target_attention(dirty), emulated_target_attention(clean))
