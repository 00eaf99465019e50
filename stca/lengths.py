"""History lengths for training short and serving long, and batches of about equal numbers of tokens."""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

_STEPS_OF_A_WINDOW = 32


@dataclass(frozen=True)
class BetaLengths:
    r"""Random history lengths with a given average, U-shaped for small alpha: many short, a few in full.

    .. math::
        L = L_{min} + s \, (L_{max} - L_{min}), \qquad s \sim \mathrm{Beta}(\alpha, \beta), \qquad
        \beta = \alpha \, \frac{L_{max} - L_{avg}}{L_{avg} - L_{min}}

    rounded to the nearest multiple, within [minimum, maximum].

    Args:
        minimum: history rows at least.
        maximum: history rows at most; all lengths are this where minimum equals maximum.
        average: expected history rows.
        alpha: of the Beta distribution; below 1 for the U shape.
        multiple: to which lengths are rounded.

    Raises:
        ValueError: an average not strictly between minimum and maximum, or alpha or multiple that is not positive.

    Source:
        arXiv 2511.06077, section 3.4 (training sparsely, inferring densely).

    Example:
        >>> lengths = stca.lengths.BetaLengths(minimum=64, maximum=10_000, average=2_000)
        >>> abs(lengths.sample(100_000, seed=0).double().mean().item() - 2_000) < 50
        True
    """

    minimum: int
    maximum: int
    average: float
    alpha: float = 0.3
    multiple: int = 8

    def __post_init__(self) -> None:
        if not (0 <= self.minimum < self.average < self.maximum or self.minimum == self.average == self.maximum >= 0):
            raise ValueError(
                "BetaLengths: average must lie between minimum and maximum, or all three be equal, got "
                f"average {self.average}, minimum {self.minimum}, maximum {self.maximum}"
            )
        if not (self.alpha > 0 and self.multiple > 0):
            raise ValueError(f"BetaLengths: alpha and multiple must be positive, got {self.alpha} and {self.multiple}")

    @property
    def beta(self) -> float:
        """The second parameter of the Beta distribution, by which the average comes out."""
        return self.alpha * (self.maximum - self.average) / (self.average - self.minimum)

    def sample(self, count: int, seed: int | tuple[int, ...]) -> Tensor:
        """Lengths, int64 [count]: a function of the arguments alone. A tuple is a seed too: (seed, epoch, rank)."""
        if self.minimum == self.maximum:
            return torch.full((count,), self.maximum)
        share = np.random.default_rng(seed).beta(self.alpha, self.beta, count)
        lengths = self.minimum + share * (self.maximum - self.minimum)
        rounded = np.round(lengths / self.multiple) * self.multiple
        return torch.from_numpy(np.clip(rounded, self.minimum, self.maximum).astype(np.int64))


def recent_suffix(visible: Tensor, keep: Tensor | int) -> Tensor:
    """The last `keep` rows of each target's visible range: what to train on.

    Args:
        visible: [T, 2], rows [begin, end) that each target sees.
        keep: rows to keep, one number or [T]; a shorter range stays as it is.

    Returns:
        [T, 2], for `visible` of `stca.nn.STCA`: nothing is copied.

    Example:
        >>> stca.lengths.recent_suffix(torch.tensor([[0, 9], [4, 6]]), 3).tolist()
        [[6, 9], [4, 6]]
    """
    begin, end = visible.unbind(dim=1)
    return torch.stack([torch.maximum(begin, end - keep), end], dim=1)


def oldest_prefix(visible: Tensor, keep: Tensor | int) -> Tensor:
    """The first `keep` rows of each target's visible range, to compare with `recent_suffix`; same arguments."""
    begin, end = visible.unbind(dim=1)
    return torch.stack([begin, torch.minimum(end, begin + keep)], dim=1)


def random_window(visible: Tensor, keep: Tensor | int, generator: torch.Generator | None = None) -> Tensor:
    """`keep` neighbouring rows anywhere in each target's visible range, to compare with `recent_suffix`."""
    begin, end = visible.unbind(dim=1)
    spare = (end - begin - keep).clamp(min=0)
    share = torch.rand(spare.shape, generator=generator, dtype=torch.float64, device=visible.device)
    start = begin + torch.minimum((share * (spare + 1)).to(begin.dtype), spare)
    return torch.stack([start, torch.minimum(end, start + keep)], dim=1)


class TokenBudgetSampler(Sampler[list[int]]):
    """Batches by a budget of tokens instead of a count of requests, the same number of steps on every rank.

    Requests are shuffled, then packed in windows of some steps: the longest first, each into the batch that has the
    fewest tokens so far. So short requests fill the room beside long ones, and batches come out nearly equal. No batch
    has more than the budget, except that a request which alone has more goes alone. Steps of a window are dealt to
    ranks such that the batches of a step, and the ranks' totals, are nearly equal.

    An epoch's batches are a function of the lengths, the seed, the epoch and the number of ranks.

    Args:
        lengths: [requests], history tokens of each, as a tensor, an array or a list.
        budget: tokens of a batch at most.
        seed: of the shuffle.
        rank: of this process.
        world_size: processes.
        shuffle: False: windows of requests in their order, the batches of a window by falling tokens.

    Raises:
        ValueError: a budget below 1, a negative length, a rank that is none, or too few requests within the budget to
            give every rank a batch in every step.

    Source:
        arXiv 2511.06077, section 3.4 (load balance over ranks).

    Example:
        >>> sampler = stca.lengths.TokenBudgetSampler([900, 100, 500, 400, 2000], budget=1000)
        >>> sorted(sorted(batch) for batch in sampler)
        [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        lengths: Tensor | NDArray[np.int64] | list[int],
        budget: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ) -> None:
        self.lengths: NDArray[np.int64] = np.asarray(lengths, dtype=np.int64).reshape(-1)
        if budget < 1:
            raise ValueError(f"TokenBudgetSampler: budget must be at least 1, got {budget}")
        if not 0 <= rank < world_size:
            raise ValueError(f"TokenBudgetSampler: rank must be in [0, world_size = {world_size}), got {rank}")
        if self.lengths.size and self.lengths.min() < 0:
            raise ValueError(f"TokenBudgetSampler: lengths must not be negative, got {self.lengths.min()}")
        self.budget, self.seed, self.rank, self.world_size, self.shuffle = budget, seed, rank, world_size, shuffle
        self.epoch = self.step = 0
        self._plan: tuple[int, list[list[int]]] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Starts that epoch from its first step."""
        self.epoch, self.step = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Epoch and number of batches handed out: with a DataLoader's workers they run ahead of the training."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on behind batch `step` of that epoch."""
        self.epoch, self.step = state["epoch"], state["step"]

    def __len__(self) -> int:
        """Steps of the epoch, those already done included."""
        return len(self._batches())

    def __iter__(self) -> Iterator[list[int]]:
        """The epoch's batches that are left; afterwards the sampler stands at the start of the next epoch."""
        batches = self._batches()
        while self.step < len(batches):
            self.step += 1
            yield batches[self.step - 1]
        self.set_epoch(self.epoch + 1)

    def padded_share(self) -> float:
        """Share of padding that as many batches of equal request counts would have: this sampler has none."""
        order = self._order()
        count = max(1, math.ceil(len(order) / max(1, len(self) * self.world_size)))
        batches = [self.lengths[order[i : i + count]] for i in range(0, len(order), count)]
        room = sum(int(batch.max()) * len(batch) for batch in batches)
        return 1 - int(self.lengths.sum()) / room if room else 0.0

    def _order(self) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(len(self.lengths))
        return np.random.default_rng((self.seed, self.epoch)).permutation(len(self.lengths))

    def _batches(self) -> list[list[int]]:
        if self._plan is None or self._plan[0] != self.epoch:
            rng = np.random.default_rng((self.seed, self.epoch, 1))
            steps = [step for window in self._windows() for step in self._steps(window, rng)]
            self._plan = self.epoch, [step[self.rank] for step in steps]
        return self._plan[1]

    def _windows(self) -> Iterator[NDArray[np.int64]]:
        """Pieces of the order with the tokens of some steps of all ranks; the last piece has up to twice as many."""
        order = self._order()
        size = _STEPS_OF_A_WINDOW * self.world_size * self.budget
        tokens = np.cumsum(self.lengths[order])
        pieces = max(1, int(tokens[-1]) // size) if len(order) else 0
        for piece in range(pieces):
            bounds = [np.searchsorted(tokens, i * size, side="right") if i else 0 for i in (piece, piece + 1)]
            yield order[bounds[0] : bounds[1] if piece + 1 < pieces else len(order)]

    def _steps(self, window: NDArray[np.int64], rng: np.random.Generator) -> list[list[list[int]]]:
        """One list of batches, one a rank, for each step of a window."""
        lengths = self.lengths[window]
        alone = [[int(i)] for i in window[lengths > self.budget]]
        rest = window[lengths <= self.budget]
        rest = rest[np.argsort(-self.lengths[rest], kind="stable")]
        count = max(math.ceil(int(self.lengths[rest].sum()) / self.budget), int(len(rest) > 0))
        while True:
            count += -(count + len(alone)) % self.world_size
            if count > len(rest):
                raise ValueError(
                    f"TokenBudgetSampler: {self.world_size} ranks need {count} batches beside {len(alone)} requests of "
                    f"more than budget = {self.budget} tokens, got {len(rest)} requests for them"
                )
            batches = self._pack(rest, count)
            if batches is not None:
                break
            count += 1
        batches = sorted(batches + alone, key=lambda batch: -int(self.lengths[batch].sum()))
        steps = [batches[i : i + self.world_size] for i in range(0, len(batches), self.world_size)]
        steps = [step[:: -1 if i % 2 else 1] for i, step in enumerate(steps)]
        return [steps[i] for i in rng.permutation(len(steps))] if self.shuffle else steps

    def _pack(self, requests: NDArray[np.int64], count: int) -> list[list[int]] | None:
        """`count` batches of requests that come longest first, none empty; None if one would pass the budget."""
        batches: list[list[int]] = [[] for _ in range(count)]
        heap = [(0, 0, i) for i in range(count)]  # tokens, requests, batch
        for request in requests.tolist():
            tokens, members, batch = heapq.heappop(heap)
            tokens += int(self.lengths[request])
            if tokens > self.budget:
                return None
            batches[batch].append(request)
            heapq.heappush(heap, (tokens, members + 1, batch))
        return batches
