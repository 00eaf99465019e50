"""Ragged requests and the forms that peers need them in: padded, repeated for every target, nested."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import stca


def beta_lengths(count: int, most: int) -> list[int]:
    """Lengths with a mean of a fifth of `most`: the distribution that STCA trains with."""
    lengths: list[int] = stca.lengths.BetaLengths(most // 20, most, most // 5).sample(count, seed=1).tolist()
    return lengths


def uniform_lengths(count: int, most: int) -> list[int]:
    """Lengths spread evenly over [most / 2, most]; a single one is `most`."""
    return [most - (most // 2) * i // max(count, 1) for i in range(count)]


@dataclass
class Requests:
    """m targets each, histories of the given lengths."""

    m: int
    lengths: Sequence[int]

    @property
    def R(self) -> int:  # noqa: N802
        """Number of requests."""
        return len(self.lengths)

    @property
    def T(self) -> int:  # noqa: N802
        """Number of targets."""
        return self.R * self.m

    @property
    def N(self) -> int:  # noqa: N802
        """Number of history rows."""
        return sum(self.lengths)

    @cached_property
    def target_offsets(self) -> Tensor:
        """[R + 1]."""
        return torch.arange(self.R + 1) * self.m

    @cached_property
    def history_offsets(self) -> Tensor:
        """[R + 1]."""
        return torch.tensor([0, *self.lengths]).cumsum(0)

    @cached_property
    def mask(self) -> Tensor:
        """[R, L] which rows of the padded history are rows."""
        return torch.arange(max(self.lengths)) < torch.tensor(self.lengths)[:, None]

    @cached_property
    def _row_of_slot(self) -> Tensor:
        slots = self.history_offsets[:-1, None] + torch.arange(max(self.lengths))
        return torch.where(self.mask, slots, self.N)

    def ragged(self) -> bool:
        """Whether padding is needed at all."""
        return len(set(self.lengths)) > 1

    def pad(self, x: Tensor) -> Tensor:
        """History rows [N, ...] -> [R, L, ...]."""
        return torch.cat([x, x.new_zeros(1, *x.shape[1:])])[self._row_of_slot]

    def repeat(self, x: Tensor) -> Tensor:
        """History rows [N, ...] -> a padded copy for every target [T, L, ...]."""
        return self.pad(x).repeat_interleave(self.m, dim=0)

    def nest(self, x: Tensor) -> Tensor:
        """History rows [N, ...] -> nested [R, j, ...]."""
        return torch.nested.nested_tensor_from_jagged(x, self.history_offsets)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """History rows of each request."""
        return torch.split(x, list(self.lengths))

    def attention_mask(self) -> Tensor | None:
        """[R, 1, 1, L] for scaled_dot_product_attention, where it needs one."""
        return self.mask[:, None, None] if self.ragged() else None

    def cannot_repeat(self, width: int, itemsize: int, most: float = 0.5) -> dict[str, str]:
        """Why rows of that width cannot be repeated for every target, if they would need more than `most` GB."""
        gigabytes = self.T * max(self.lengths) * width * itemsize / 2**30
        return {"sdpa pointwise": f"would need {gigabytes:.1f} GB for its copies"} if gigabytes > most else {}
