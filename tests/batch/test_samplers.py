"""Samplers and lengths: every request once whatever was interrupted, targets within their budget, no overflow."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stca.lengths import TokenBudgetSampler, oldest_prefix, random_window, recent_suffix


@given(
    lengths=st.lists(st.integers(0, 300), min_size=1, max_size=80),
    stop=st.integers(0, 30),
    shuffle=st.booleans(),
    many=st.booleans(),
)
def test_samplers_go_on_or_refuse(lengths: list[int], stop: int, shuffle: bool, many: bool) -> None:
    budgets: Any = {"targets": [7] * len(lengths), "target_budget": 20} if many else {}

    def sampler(**options: Any) -> TokenBudgetSampler:
        return TokenBudgetSampler(lengths, **{"budget": 400, "shuffle": shuffle, **budgets, **options})

    whole = list(sampler())
    begun = sampler()
    stream = iter(begun)
    done = [batch for _, batch in zip(range(stop), stream, strict=False)]
    assert [*done, *list(stream)] == list(sampler()) == whole
    begun.set_epoch(0, len(done))
    resumed = sampler()
    resumed.load_state_dict(begun.state_dict())
    if len(done) < len(whole):
        assert next(iter(resumed)) == whole[len(done)]
    assert done + list(resumed) == whole
    assert sorted(request for batch in whole for request in batch) == list(range(len(lengths)))
    for other in (sampler(seed=1), sampler(budget=401), TokenBudgetSampler([*lengths, 1], 400, shuffle=shuffle)):
        with pytest.raises(ValueError, match="TokenBudgetSampler: the state must be of "):
            other.load_state_dict(begun.state_dict())
    if done:
        with pytest.raises(ValueError, match="the state must be of world_size = 3, got one of world_size = 1"):
            sampler(world_size=3).load_state_dict(begun.state_dict())


@given(
    sizes=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=150),
    world_size=st.integers(1, 3),
    shuffle=st.booleans(),
)
def test_targets_have_a_budget_too(sizes: list[tuple[int, int]], world_size: int, shuffle: bool) -> None:
    sizes = sizes + [(1, 1)] * 40
    lengths, targets = (list(each) for each in zip(*sizes, strict=True))
    ranks = [
        TokenBudgetSampler(
            lengths, 40, targets=targets, target_budget=30, rank=rank, world_size=world_size, shuffle=shuffle
        )
        for rank in range(world_size)
    ]
    batches = [batch for sampler in ranks for batch in sampler]
    assert sorted(request for batch in batches for request in batch) == list(range(len(sizes)))
    assert len({len(sampler) for sampler in ranks}) == 1
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[i] for i in batch) <= 40
        assert len(batch) == 1 or sum(targets[i] for i in batch) <= 30


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("keep", [2**31 - 1, 2**40, 2**63 - 1, torch.tensor(2**63 - 1)])
def test_any_number_of_rows_may_be_kept(dtype: torch.dtype, keep: int | torch.Tensor) -> None:
    visible = torch.tensor([[5, 9], [0, 100], [7, 7]], dtype=dtype)
    for part in (recent_suffix, oldest_prefix, random_window):
        assert torch.equal(part(visible, keep), visible)
        assert part(visible, keep).dtype == dtype
        assert not part(visible, -3).diff(dim=1).any()


def test_lengths_must_be_whole_numbers() -> None:
    for wrong, message in (([1.5], "whole numbers, got 1.5"), ([np.nan], "whole numbers, got nan"), ([-1], "negative")):
        with pytest.raises(ValueError, match=f"TokenBudgetSampler: lengths must .*{message}"):
            TokenBudgetSampler(wrong, 3)  # type: ignore[arg-type]
    assert list(TokenBudgetSampler(torch.tensor([1.0, 2.0]), 3)) == [[1, 0]]
    for options, message in (
        ({"targets": [1]}, "targets and target_budget must be given both or neither"),
        ({"targets": [1, 2], "target_budget": 3}, r"targets must be \[requests = 1\], got 2"),
        ({"targets": [1], "target_budget": 0}, "target_budget must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=f"TokenBudgetSampler: {message}"):
            TokenBudgetSampler([1], 3, **options)
