"""A stream of request-level batches from Parquet files."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from stca.batch import RequestBatch
from stca.data.columns import check_alike
from stca.data.read import Widths, add_widths, identity_of, read_row_group, types_of
from stca.lengths import TokenBudgetSampler
from stca.token_budget import check_state


@dataclass
class _Place:
    """Where an iterator stands: row groups of its share done, batches done of the next."""

    epoch: int
    row_groups: int = 0
    batches: int = 0
    workers: int = 1
    worker: int = 0

    @property
    def begun(self) -> bool:
        return self.row_groups > 0 or self.batches > 0


class RequestDataset(IterableDataset[RequestBatch]):
    """Batches by a budget of tokens from files that `write_requests` made, one row group in memory at a time.

    Row groups are shuffled and dealt out over ranks and the workers of a DataLoader (`batch_size=None`), so each comes
    exactly once; within a row group batches are `TokenBudgetSampler`'s. Ranks may get different numbers of batches: a
    loop over several ranks must stop when the first has none left.

    Every iterator begins where `set_epoch` or `load_state_dict` said last, so one that is left early takes nothing from
    the next; one that comes to its end moves on to the next epoch. Workers that end with their epoch do not: call
    `set_epoch`, or use `persistent_workers=True` and read every epoch to its end.

    A rank that comes to its end before the others stands in the next epoch then, and reads other row groups than they
    leave: evaluate on a dataset of its own, and not on the one that trains.

    Args:
        paths: one file or several.
        budget: history rows of a batch at most, except for a longer history alone.
        target_budget: targets of a batch at most, except for a history alone that has more. None: as many as `budget`,
            for a target goes through as many layers as a history row.
        seed: of all shuffles.
        rank: of this process.
        world_size: processes.
        shuffle: False: files and row groups in their order, batches of a row group by falling tokens.

    Raises:
        ValueError: no file; one that is not whole, is no Parquet, is damaged, has other columns, or changes while it is
            read, by file and column; a budget below 1.

    Warns:
        UserWarning: fewer row groups than ranks, or than workers of all ranks: some get nothing.
    """

    def __init__(
        self,
        paths: Path | str | Sequence[Path | str],
        budget: int,
        *,
        target_budget: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"RequestDataset: rank must be in [0, world_size = {world_size}), got {rank}")
        self.paths = [Path(path) for path in ([paths] if isinstance(paths, Path | str) else paths)]
        if not self.paths:
            raise ValueError("RequestDataset: paths must hold at least one file, got none")
        self.budget, self.target_budget = budget, budget if target_budget is None else target_budget
        if min(self.budget, self.target_budget) < 1:
            raise ValueError(f"RequestDataset: budgets must be at least 1, got {budget} and {target_budget}")
        self.seed, self.rank, self.world_size, self.shuffle = seed, rank, world_size, shuffle
        self._widths: Widths = {}
        first = types_of(self.paths[0])
        for path in self.paths:
            check_alike(self.paths[0], first, path, types_of(path))
            add_widths(self._widths, path)
        self._files = [identity_of(path) for path in self.paths]
        self.row_groups = [
            (file, number) for file, (_, _, count, _) in enumerate(self._files) for number in range(count)
        ]
        self._start = self._place = _Place(epoch=0)  # of the next iterator, and of the one made last
        self._warn(1)

    @property
    def epoch(self) -> int:
        """The epoch of the next iterator."""
        return self._start.epoch

    def state_dict(self) -> dict[str, Any]:
        """Where the iterator made last stands in this process, or this worker, and whose place that is.

        The place is the epoch, whole row groups done, and batches done of the next; each rank and worker has its own.
        """
        return {**self._identity(), **asdict(self._place), "rank": self.rank, "world_size": self.world_size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Iterators begin behind the last batch that was handed out before `state_dict`.

        In the midst of an epoch as many ranks and workers must go on, each with its own state; at its start there may
        be others.

        Raises:
            ValueError: a state of other files, budgets, seed or order, or of another rank or number of ranks. Another
                worker, or number of them, is refused when the iterator begins.
        """
        begun = state.get("row_groups") or state.get("batches")
        ranks = {"world_size": self.world_size, "rank": self.rank} if begun else {}
        check_state("RequestDataset", state, {**self._identity(), **ranks}, asdict(self._start))
        self._start = self._place = _Place(**{name: state[name] for name in asdict(self._start)})

    def set_epoch(self, epoch: int) -> None:
        """Iterators begin at that epoch's first batch."""
        self._start = self._place = _Place(epoch)

    def __iter__(self) -> Iterator[RequestBatch]:
        """The batches of this rank and worker that the epoch has left."""
        worker = get_worker_info()
        own = {"workers": 1, "worker": 0} if worker is None else {"workers": worker.num_workers, "worker": worker.id}
        if self._start.begun:
            check_state("RequestDataset", asdict(self._start), own)
        if worker is not None and worker.id == 0:
            self._warn(worker.num_workers)
        self._place = replace(self._start, **own)
        return self._stream(self._place)

    def _stream(self, place: _Place) -> Iterator[RequestBatch]:
        order = np.arange(len(self.row_groups))
        if self.shuffle:
            order = np.random.default_rng((self.seed, place.epoch)).permutation(order)
        mine = order[self.rank * place.workers + place.worker :: self.world_size * place.workers].tolist()
        for number in mine[place.row_groups :]:
            histories = self._read(*self.row_groups[number])
            sampler = TokenBudgetSampler(
                list(histories.history_lengths),
                self.budget,
                targets=list(histories.target_lengths),
                target_budget=self.target_budget,
                seed=self.seed + 1_000_003 * number,
                shuffle=self.shuffle,
            )
            sampler.set_epoch(place.epoch, place.batches)
            for chosen in sampler:
                place.batches += 1
                yield histories.select(torch.tensor(chosen))
            place.row_groups, place.batches = place.row_groups + 1, 0
        if place is self._place:
            self.set_epoch(place.epoch + 1)

    def _read(self, file: int, number: int) -> RequestBatch:
        path = self.paths[file]
        if identity_of(path) != self._files[file]:
            raise ValueError(f"{path}: must stay as it is while it is read, got one that has changed")
        return read_row_group(path, number, self._widths)

    def _identity(self) -> dict[str, Any]:
        return {
            "files": self._files,
            "seed": self.seed,
            "budget": self.budget,
            "target_budget": self.target_budget,
            "shuffle": self.shuffle,
        }

    def _warn(self, workers: int) -> None:
        readers = self.world_size * workers
        if len(self.row_groups) < readers:
            warnings.warn(
                f"RequestDataset: {len(self.row_groups)} row groups for {readers} readers ({self.world_size} ranks of "
                f"{workers} workers): some get no batch at all. write_requests makes smaller row groups with tokens=, "
                "or nbytes=",
                stacklevel=3,
            )
