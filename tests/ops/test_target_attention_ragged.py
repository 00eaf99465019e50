"""target_attention for drawn ragged shapes: 0 to 300 requests, 0 to 2,000 history rows each."""

import torch
from accuracy import assert_all_as_accurate, assert_bitwise_equal
from cases import DTYPES, ISAS, TargetAttentionCase
from hypothesis import example, given
from hypothesis import strategies as st
from plain import plain_target_attention, target_attention_references

import stca

# Of all requests together, so that no example takes much longer than a second.
_MOST_ROWS, _MOST_SCORES = 20_000, 50_000

# Mostly short, as logs are, with every length up to the longest.
_targets = st.one_of(st.integers(0, 3), st.integers(0, 40), st.integers(0, 300))
_rows = st.one_of(st.integers(0, 4), st.integers(0, 70), st.integers(0, 2000))
_widths = st.one_of(st.integers(1, 9), st.integers(1, 70))


def _affordable(requests: list[tuple[int, int]], heads: int) -> list[tuple[int, int]]:
    """Shortens what comes once the rows or the scores of the earlier requests are enough."""
    rows_left, scores_left, kept = _MOST_ROWS, _MOST_SCORES, []
    for targets, rows in requests:
        rows = min(rows, rows_left)
        targets = min(targets, scores_left // max(1, rows * heads))
        rows_left -= rows
        scores_left -= targets * rows * heads
        kept.append((targets, rows))
    return kept


@st.composite
def _cases(draw: st.DrawFn) -> TargetAttentionCase:
    kv_heads, group = draw(st.tuples(st.integers(1, 3), st.integers(1, 4)))
    heads = kv_heads * group
    count = draw(st.one_of(st.integers(0, 5), st.integers(0, 40), st.integers(0, 300)))
    requests = draw(st.lists(st.tuples(_targets, _rows), min_size=count, max_size=count))
    return TargetAttentionCase(
        name="drawn",
        requests=_affordable(requests, heads),
        heads=heads,
        kv_heads=kv_heads,
        key_dim=draw(_widths),
        value_dim=draw(st.none() | _widths),
        visible=draw(st.sampled_from(["all", "random", "prefix", "suffix", "shared", "none"])),
        # Not fewer rows: gradients of a history of equal rows cancel to 0, and what is left of them is rounding.
        pool=draw(st.none() | st.integers(50, 500)),
        index=draw(st.sampled_from([torch.int32, torch.int64])),
    )


_MANY_REQUESTS = TargetAttentionCase("", [(i % 4, i * i % 23) for i in range(300)], 2, 1, 4, 3, "random")
_LONG_REQUESTS = TargetAttentionCase("", [(2, 2000), (0, 2000), (7, 1999), (1, 0)], 3, 3, 4, 70, "shared")


@given(case=_cases(), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**31), isa=st.sampled_from(ISAS))
@example(case=_MANY_REQUESTS, dtype=torch.float32, seed=0, isa=ISAS[-1])
@example(case=_LONG_REQUESTS, dtype=torch.float64, seed=0, isa=ISAS[0])
def test_ragged_shapes(case: TargetAttentionCase, dtype: torch.dtype, seed: int, isa: str) -> None:
    before = stca.cpu_isa()
    stca.set_cpu_isa(isa)
    try:
        inputs = case.build(dtype, seed)
        actual = inputs.results()
        assert_bitwise_equal(inputs.results(), actual)
    finally:
        stca.set_cpu_isa(before)
    references = target_attention_references(inputs, plain_target_attention)
    # A score has an error of some ulp of itself, which the exponential makes a relative error of its weight.
    largest_score = float(references["lse"][0].amax()) if len(references["lse"][0]) else 1.0
    assert_all_as_accurate(actual, references, sensitivity=max(1.0, largest_score))
