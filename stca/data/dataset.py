"""A stream of request-level batches from Parquet files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import IterableDataset, get_worker_info

from stca.batch import RequestBatch
from stca.data.columns import REQUESTS, VISIBLE, is_ours
from stca.data.read import open_file, read_row_group
from stca.lengths import TokenBudgetSampler


class RequestDataset(IterableDataset[RequestBatch]):
    """Batches by a budget of tokens from files that `write_requests` made, one row group in memory at a time.

    Row groups are shuffled and dealt out over ranks and the workers of a DataLoader (`batch_size=None`), so each comes
    exactly once; within a row group batches are `TokenBudgetSampler`'s. Iterating again is the next epoch; of workers
    that end with their epoch it is not: call `set_epoch`, or use `persistent_workers=True`. Ranks may get different
    numbers of batches: a loop over several ranks must stop when the first has none left.

    Args:
        paths: one file or several.
        budget: history rows of a batch at most, except for a longer history alone.
        seed: of all shuffles.
        rank: of this process.
        world_size: processes.
        shuffle: False: files and row groups in their order, batches of a row group by falling tokens.

    Raises:
        ValueError: a file that is not whole, is no Parquet, is damaged or has other columns, by file and column.
    """

    def __init__(
        self,
        paths: Path | str | Sequence[Path | str],
        budget: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"RequestDataset: rank must be in [0, world_size = {world_size}), got {rank}")
        self.paths = [Path(path) for path in ([paths] if isinstance(paths, Path | str) else paths)]
        self.budget, self.seed, self.rank, self.world_size, self.shuffle = budget, seed, rank, world_size, shuffle
        self.row_groups: list[tuple[Path, int]] = []
        schema: pa.Schema | None = None
        for path in self.paths:
            with open_file(path) as file:
                self._check_columns(path, file.schema_arrow, schema or file.schema_arrow)
                schema = schema or file.schema_arrow
                self.row_groups += [(path, number) for number in range(file.num_row_groups)]
        self.epoch = self._done_groups = self._done_batches = 0

    def state_dict(self) -> dict[str, int]:
        """Where this process, or this worker, stands: epoch, whole row groups done, batches done of the next."""
        return {"epoch": self.epoch, "row_groups": self._done_groups, "batches": self._done_batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on behind the last batch that was handed out before `state_dict`."""
        self.epoch, self._done_groups, self._done_batches = state["epoch"], state["row_groups"], state["batches"]

    def set_epoch(self, epoch: int) -> None:
        """Starts that epoch from its first batch."""
        self.load_state_dict({"epoch": epoch, "row_groups": 0, "batches": 0})

    def __iter__(self) -> Iterator[RequestBatch]:
        """The batches of this rank and worker that the epoch has left."""
        worker = get_worker_info()
        workers, own = (1, 0) if worker is None else (worker.num_workers, worker.id)
        order = np.arange(len(self.row_groups))
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(order)
        mine = order[self.rank * workers + own :: self.world_size * workers].tolist()
        while self._done_groups < len(mine):
            number = mine[self._done_groups]
            histories = read_row_group(*self.row_groups[number])
            sampler = TokenBudgetSampler(
                list(histories.history_lengths), self.budget, seed=self.seed + 1_000_003 * number, shuffle=self.shuffle
            )
            sampler.load_state_dict({"epoch": self.epoch, "step": self._done_batches})
            for chosen in sampler:
                self._done_batches += 1
                yield histories.select(torch.tensor(chosen))
            self._done_groups, self._done_batches = self._done_groups + 1, 0
        self.set_epoch(self.epoch + 1)

    def _check_columns(self, path: Path, schema: pa.Schema, first: pa.Schema) -> None:
        for name in (REQUESTS, *VISIBLE):
            if name not in schema.names:
                raise ValueError(f"{path}: column {name} is missing, so write_requests did not write this file")
        for name in filter(is_ours, schema.names):
            kind = schema.field(name).type
            index = name in (REQUESTS, *VISIBLE)
            if not pa.types.is_large_list(kind) or not _fits(kind.value_type, index):
                wanted = "integers" if index else "numbers, or of fixed-size lists of them"
                raise ValueError(f"{path}: column {name} must be a large_list of {wanted}, got {kind}")
        for name in filter(is_ours, first.names):
            if name not in schema.names:
                raise ValueError(f"{path}: column {name} of {self.paths[0]} is missing, got {schema.names}")
            if schema.field(name).type != first.field(name).type:
                raise ValueError(
                    f"{path}: column {name} must be {first.field(name).type} as in {self.paths[0]}, got "
                    f"{schema.field(name).type}"
                )


def _fits(value: pa.DataType, index: bool) -> bool:
    """Whether a tensor, or one that is an index, can be made of such values."""
    if index:
        return bool(pa.types.is_integer(value))
    number = value.value_type if pa.types.is_fixed_size_list(value) else value
    return bool(pa.types.is_integer(number) or pa.types.is_floating(number) or pa.types.is_boolean(number))
