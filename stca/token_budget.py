"""Batches of about equal numbers of tokens, and what a state must agree with."""

import heapq
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

_STEPS_OF_A_WINDOW = 32
Integers = NDArray[np.int64]


class TokenBudgetSampler(Sampler[list[int]]):
    """Batches by a budget of tokens instead of a count of requests, the same number of steps on every rank.

    Requests are shuffled, then packed in windows of some steps: the longest first, each into the batch that has the
    fewest tokens so far. So short requests fill the room beside long ones, and batches come out nearly equal. No batch
    has more than the budget, except that a request which alone has more goes alone. Steps of a window are dealt to
    ranks such that the batches of a step, and the ranks' totals, are nearly equal.

    An epoch's batches are a function of the lengths, the seed, the epoch and the number of ranks. Every iterator begins
    where `set_epoch` or `load_state_dict` said last; one that comes to its end moves on to the next epoch.

    Args:
        lengths: [requests], history tokens of each, as a tensor, an array or a list.
        budget: tokens of a batch at most.
        targets: [requests], targets of each, where these have a budget too; a request's share of the larger of both
            budgets then says how long it is.
        target_budget: targets of a batch at most, with `targets`.
        seed: of the shuffle.
        rank: of this process.
        world_size: processes.
        shuffle: False: windows of requests in their order, the batches of a window by falling tokens.

    Raises:
        ValueError: a budget below 1, lengths or targets that are negative or no whole numbers, a rank that is none, or
            too few requests within the budget to give every rank a batch in every step.

    Source:
        arXiv 2511.06077, section 3.4 (load balance over ranks).

    Example:
        >>> sampler = stca.lengths.TokenBudgetSampler([900, 100, 500, 400, 2000], budget=1000)
        >>> sorted(sorted(batch) for batch in sampler)
        [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        lengths: Tensor | Integers | list[int],
        budget: int,
        *,
        targets: Tensor | Integers | list[int] | None = None,
        target_budget: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ) -> None:
        self.lengths = _counts("lengths", lengths)
        for name, value in (("budget", budget), ("target_budget", target_budget)):
            if value is not None and value < 1:
                raise ValueError(f"TokenBudgetSampler: {name} must be at least 1, got {value}")
        if not 0 <= rank < world_size:
            raise ValueError(f"TokenBudgetSampler: rank must be in [0, world_size = {world_size}), got {rank}")
        if (targets is None) != (target_budget is None):
            raise ValueError("TokenBudgetSampler: targets and target_budget must be given both or neither")
        self.targets = np.zeros_like(self.lengths) if targets is None else _counts("targets", targets)
        if len(self.targets) != len(self.lengths):
            raise ValueError(
                f"TokenBudgetSampler: targets must be [requests = {len(self.lengths)}], got {len(self.targets)}"
            )
        self._most_targets = math.inf if target_budget is None else target_budget
        self._per_target = budget / self._most_targets  # in tokens
        self._load = np.maximum(self.lengths, self.targets * self._per_target)  # so too; as exact as int64 to 2^53
        self.budget, self.target_budget = budget, target_budget
        self.seed, self.rank, self.world_size, self.shuffle = seed, rank, world_size, shuffle
        self._start = self._place = [0, 0]  # epoch and steps done: of the next iterator, of the one made last
        self._plan: tuple[int, list[list[int]]] | None = None

    @property
    def epoch(self) -> int:
        """The epoch of the next iterator."""
        return self._start[0]

    def set_epoch(self, epoch: int, step: int = 0) -> None:
        """Iterators begin at that epoch, behind so many of its steps."""
        self._start = self._place = [epoch, step]

    def state_dict(self) -> dict[str, Any]:
        """Epoch and batches that the iterator made last has handed out, and what they are batches of.

        With a DataLoader's workers the batches run ahead of the training. All ranks have as many steps, so the state
        of one is that of all.
        """
        epoch, step = self._place
        return {**self._identity(), "epoch": epoch, "step": step, "world_size": self.world_size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Iterators begin behind batch `step` of that epoch; at the start of an epoch the number of ranks may change.

        Raises:
            ValueError: a state of other lengths, budgets, seed or order; in the midst of an epoch, of other ranks.
        """
        ranks = {} if state.get("step") == 0 else {"world_size": self.world_size}
        check_state("TokenBudgetSampler", state, {**self._identity(), **ranks}, ("epoch", "step"))
        self.set_epoch(state["epoch"], state["step"])

    def _identity(self) -> dict[str, Any]:
        return {
            "requests": len(self.lengths),
            "checksum": zlib.crc32(self.targets.tobytes(), zlib.crc32(self.lengths.tobytes())),
            "budget": self.budget,
            "target_budget": self.target_budget,
            "seed": self.seed,
            "shuffle": self.shuffle,
        }

    def __len__(self) -> int:
        """Steps of the epoch, those already done included."""
        return len(self._batches())

    def __iter__(self) -> Iterator[list[int]]:
        """The epoch's batches that are left."""
        self._place = self._start.copy()
        return self._stream(self._place, self._batches())

    def _stream(self, place: list[int], batches: list[list[int]]) -> Iterator[list[int]]:
        for batch in batches[place[1] :]:
            place[1] += 1
            yield batch
        if place is self._place:
            self.set_epoch(place[0] + 1)

    def padded_share(self) -> float:
        """Share of padding that as many batches of equal request counts would have: this sampler has none."""
        order = self._order()
        count = max(1, math.ceil(len(order) / max(1, len(self) * self.world_size)))
        batches = [self.lengths[order[i : i + count]] for i in range(0, len(order), count)]
        room = sum(int(batch.max()) * len(batch) for batch in batches)
        return 1 - int(self.lengths.sum()) / room if room else 0.0

    def _order(self) -> Integers:
        if not self.shuffle:
            return np.arange(len(self.lengths))
        return np.random.default_rng((self.seed, self.epoch)).permutation(len(self.lengths))

    def _batches(self) -> list[list[int]]:
        if self._plan is None or self._plan[0] != self.epoch:
            rng = np.random.default_rng((self.seed, self.epoch, 1))
            steps = [step for window in self._windows() for step in self._steps(window, rng)]
            self._plan = self.epoch, [step[self.rank] for step in steps]
        return self._plan[1]

    def _windows(self) -> Iterator[Integers]:
        """Pieces of the order with the tokens of some steps of all ranks; the last piece has up to twice as many."""
        order = self._order()
        size = _STEPS_OF_A_WINDOW * self.world_size * self.budget
        tokens = np.cumsum(self._load[order])
        pieces = max(1, int(tokens[-1] // size)) if len(order) else 0
        for piece in range(pieces):
            bounds = [np.searchsorted(tokens, i * size, side="right") if i else 0 for i in (piece, piece + 1)]
            yield order[bounds[0] : bounds[1] if piece + 1 < pieces else len(order)]

    def _steps(self, window: Integers, rng: np.random.Generator) -> list[list[list[int]]]:
        """One list of batches, one a rank, for each step of a window."""
        fits = (self.lengths[window] <= self.budget) & (self.targets[window] <= self._most_targets)
        alone, rest = [[int(i)] for i in window[~fits]], window[fits]
        rest = rest[np.argsort(-self._load[rest], kind="stable")]
        tokens, targets = int(self.lengths[rest].sum()), int(self.targets[rest].sum())
        count = max(math.ceil(tokens / self.budget), math.ceil(targets / self._most_targets), int(len(rest) > 0))
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
        batches = sorted(batches + alone, key=lambda batch: -float(self._load[batch].sum()))
        steps = [batches[i : i + self.world_size] for i in range(0, len(batches), self.world_size)]
        steps = [step[:: -1 if i % 2 else 1] for i, step in enumerate(steps)]
        return [steps[i] for i in rng.permutation(len(steps))] if self.shuffle else steps

    def _pack(self, requests: Integers, count: int) -> list[list[int]] | None:
        """`count` batches of requests that come longest first, none empty; None if one would pass a budget."""
        batches: list[list[int]] = [[] for _ in range(count)]
        tokens, targets = [0] * count, [0] * count  # of each batch
        heap = [(0.0, 0, i) for i in range(count)]  # load, requests, batch
        sizes = self.lengths[requests].tolist(), self.targets[requests].tolist()
        for request, own_tokens, own_targets in zip(requests.tolist(), *sizes, strict=True):
            _, members, batch = heap[0]
            tokens[batch] += own_tokens
            targets[batch] += own_targets
            if tokens[batch] > self.budget or targets[batch] > self._most_targets:
                return None
            batches[batch].append(request)
            load = max(tokens[batch], targets[batch] * self._per_target)
            heapq.heapreplace(heap, (load, members + 1, batch))
        return batches


def check_state(op: str, state: Mapping[str, Any], own: Mapping[str, Any], place: Iterable[str] = ()) -> None:
    """Refuses a state that differs from `own`, by what differs and both values, or whose place is none."""
    place = list(place)
    for name in (*own, *place):
        if name not in state:
            raise ValueError(f"{op}: the state must tell its {name}, got {sorted(state)} (set_epoch needs no state)")
    for name in place:
        if type(state[name]) is not int or not 0 <= state[name] < 2**63:
            raise ValueError(f"{op}: the state's {name} must be an integer of at least 0, got {state[name]!r}")
    for name, value in own.items():
        if state[name] != value:
            raise ValueError(f"{op}: the state must be of {name} = {value}, got one of {name} = {state[name]}")


def _counts(name: str, values: Tensor | Integers | list[int]) -> Integers:
    given = np.asarray(values).reshape(-1)
    with np.errstate(invalid="ignore"):  # NaN becomes a number, which it then differs from
        counts: Integers = given.astype(np.int64)
    for what, wrong in (("be whole numbers", counts != given), ("not be negative", counts < 0)):
        if wrong.any():
            raise ValueError(f"TokenBudgetSampler: {name} must {what}, got {given[wrong][0]}")
    return counts
