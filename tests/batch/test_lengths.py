"""stca.lengths: averages as asked for, ranges that never grow, batches within the budget and alike on all ranks."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stca.lengths import BetaLengths, TokenBudgetSampler, oldest_prefix, random_window, recent_suffix


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0, 5.0])
@pytest.mark.parametrize(("minimum", "maximum", "average"), [(64, 10_000, 2_000), (0, 4096, 512), (8, 128, 100)])
def test_beta_lengths(minimum: int, maximum: int, average: int, alpha: float) -> None:
    lengths = BetaLengths(minimum, maximum, average, alpha)
    sample = lengths.sample(200_000, seed=1)
    deviation = sample.double().std().item()
    assert abs(sample.double().mean().item() - average) < 5 * deviation / 200_000**0.5 + 0.1
    variance = alpha * lengths.beta / ((alpha + lengths.beta) ** 2 * (alpha + lengths.beta + 1))
    assert deviation == pytest.approx(variance**0.5 * (maximum - minimum), rel=0.02)
    assert (sample.min() >= minimum) & (sample.max() <= maximum)
    assert not (sample % 8).any()
    assert torch.equal(sample, lengths.sample(200_000, seed=1))
    assert not torch.equal(sample, lengths.sample(200_000, seed=(1, 2)))


def test_small_alpha_is_u_shaped() -> None:
    sample = BetaLengths(64, 10_000, 2_000, 0.1).sample(10_000, seed=0)
    ends = ((sample < 300) | (sample > 9_700)).double().mean()
    assert ends > 0.6


def test_a_fixed_length() -> None:
    assert BetaLengths(7, 7, 7).sample(3, seed=0).tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            (10, 100, 10),
            "average must lie between minimum and maximum, or all three be equal, got average 10, minimum 10, ",
        ),
        ((10, 100, 200), "average must lie between"),
        ((-1, 100, 20), "average must lie between"),
        ((0, 100, 20, 0.0), "alpha and multiple must be positive, got 0.0 and 8"),
        ((0, 100, 20, 1.0, 0), "alpha and multiple must be positive, got 1.0 and 0"),
    ],
)
def test_bad_beta_lengths(args: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"BetaLengths: {message}"):
        BetaLengths(*args)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_parts_of_a_visible_range(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    begin = torch.randint(0, 50, (4000,), generator=generator)
    length, keep = (torch.randint(0, 40, (4000,), generator=generator) for _ in range(2))
    visible, keep = torch.stack([begin, begin + length], dim=1).to(dtype), keep.to(dtype)
    kept = torch.minimum(length, keep)
    for part in (recent_suffix, oldest_prefix, random_window):
        for ranges in (part(visible, keep), part(visible, int(keep[0]))):
            assert ranges.dtype == dtype
            assert (ranges[:, 0] >= visible[:, 0]).all()
            assert (ranges[:, 1] <= visible[:, 1]).all()
        assert torch.equal(part(visible, keep).diff(dim=1)[:, 0], kept.to(dtype))
    assert torch.equal(recent_suffix(visible, keep)[:, 1], visible[:, 1])
    assert torch.equal(oldest_prefix(visible, keep)[:, 0], visible[:, 0])
    starts = random_window(torch.tensor([[10, 20]]).expand(4000, 2), 7, generator)[:, 0]
    assert torch.bincount(starts - 10, minlength=4).min() > 900  # each of the 4 places about a quarter


@given(
    lengths=st.lists(st.integers(0, 3000), max_size=300),
    world_size=st.integers(1, 5),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
)
def test_every_request_comes_once_and_no_batch_is_too_large(
    lengths: list[int], world_size: int, epoch: int, shuffle: bool
) -> None:
    # Enough short requests for every rank to have a batch in every step.
    lengths = lengths + [10] * 10 * world_size if lengths else []
    ranks = [
        TokenBudgetSampler(lengths, 2000, seed=3, rank=rank, world_size=world_size, shuffle=shuffle)
        for rank in range(world_size)
    ]
    for sampler in ranks:
        sampler.set_epoch(epoch)
    steps = [len(sampler) for sampler in ranks]
    batches = [list(sampler) for sampler in ranks]
    assert steps == [len(of_rank) for of_rank in batches] == [steps[0]] * world_size
    everything = [batch for of_rank in batches for batch in of_rank]
    assert sorted(request for batch in everything for request in batch) == list(range(len(lengths)))
    for batch in everything:
        assert batch
        assert len(batch) == 1 or sum(lengths[request] for request in batch) <= 2000


@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_batches_and_ranks_are_balanced(world_size: int) -> None:
    lengths = BetaLengths(64, 10_000, 2_000).sample(20_000, seed=0)
    ranks = [TokenBudgetSampler(lengths, 30_000, rank=rank, world_size=world_size) for rank in range(world_size)]
    tokens = np.array([[lengths[batch].sum().item() for batch in sampler] for sampler in ranks])  # [ranks, steps]
    assert tokens.sum(axis=1).max() <= 1.001 * tokens.sum(axis=1).min()
    assert (tokens.max(axis=0) <= 1.05 * tokens.min(axis=0)).all()
    assert tokens.sum() >= 0.95 * 30_000 * tokens.size
    assert 0.5 < ranks[0].padded_share() < 1


def test_epochs_differ_and_repeat() -> None:
    lengths = BetaLengths(64, 1000, 200).sample(500, seed=0)
    sampler, again = TokenBudgetSampler(lengths, 2000), TokenBudgetSampler(lengths, 2000)
    first, second = list(sampler), list(sampler)
    assert first != second
    assert [list(again), list(again)] == [first, second]
    in_order = TokenBudgetSampler(lengths, 2000, shuffle=False)
    assert list(in_order) == list(in_order)


def test_an_interrupted_epoch_goes_on() -> None:
    lengths = BetaLengths(64, 1000, 200).sample(500, seed=0)
    undisturbed = TokenBudgetSampler(lengths, 2000)
    undisturbed.set_epoch(4)
    expected = list(undisturbed)
    sampler, resumed = TokenBudgetSampler(lengths, 2000), TokenBudgetSampler(lengths, 2000)
    sampler.set_epoch(4)
    batches = iter(sampler)
    done = [next(batches) for _ in range(5)]
    resumed.load_state_dict(sampler.state_dict())
    assert done + list(resumed) == expected
    assert {name: resumed.state_dict()[name] for name in ("epoch", "step")} == {"epoch": 5, "step": 0}


def test_in_a_data_loader() -> None:
    lengths = BetaLengths(64, 1000, 200).sample(50, seed=0)
    dataset = torch.utils.data.TensorDataset(lengths)
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=TokenBudgetSampler(lengths, 2000))
    assert sum(int(batch.sum()) for (batch,) in loader) == lengths.sum()


@pytest.mark.parametrize(
    ("lengths", "options", "message"),
    [
        ([1], {"budget": 0}, "budget must be at least 1, got 0"),
        ([1], {"budget": 9, "rank": 2, "world_size": 2}, r"rank must be in \[0, world_size = 2\), got 2"),
        ([3, -1], {"budget": 9}, "lengths must not be negative, got -1"),
        (
            [1],
            {"budget": 9, "world_size": 2},
            "2 ranks need 2 batches beside 0 requests .* got 1 requests for them",
        ),
        (
            [99],
            {"budget": 9, "world_size": 2},
            "2 ranks need 1 batches beside 1 requests .* got 0 requests for them",
        ),
    ],
)
def test_bad_samplers(lengths: list[int], options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"TokenBudgetSampler: {message}"):
        list(TokenBudgetSampler(lengths, **options))  # type: ignore[arg-type]


def test_keep_on_another_device() -> None:
    visible, keep = torch.tensor([[0, 9], [4, 6]], device="meta"), torch.tensor([3, 1])
    assert (recent_suffix(visible, keep).device.type, recent_suffix(visible, keep).shape) == ("meta", (2, 2))
