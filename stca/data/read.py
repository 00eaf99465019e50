"""Row groups of Parquet to request-level batches."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from stca.batch import RequestBatch
from stca.data.columns import KINDS, REQUESTS, VISIBLE, is_ours


def open_file(path: Path) -> pq.ParquetFile:
    """A Parquet file, or an error that names it."""
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: must be a whole Parquet file: {error}") from error


def read_row_group(path: Path, number: int) -> RequestBatch:
    """A row group's histories as one batch."""
    with open_file(path) as file:
        try:
            table = file.read_row_group(number)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path}: row group {number} cannot be read: {error}") from error
    columns = {name: _tensor(path, name, table[name]) for name in filter(is_ours, table.column_names)}
    features: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
    offsets = {"targets": columns[VISIBLE[0]][1]}
    for name, (x, ends) in columns.items():
        for kind, prefix in KINDS.items():
            if name.startswith(prefix):
                features[kind][name.removeprefix(prefix)] = x
                if not torch.equal(offsets.setdefault("history" if kind == "history" else "targets", ends), ends):
                    raise ValueError(f"{path}: column {name} must have lists as long as the other {prefix} columns")
    sizes, _ = columns[REQUESTS]
    begin, end = (columns[name][0] for name in VISIBLE)
    batch = RequestBatch(
        history=features["history"],
        targets=features["targets"],
        labels=features["labels"],
        history_offsets=offsets.get("history", torch.zeros(table.num_rows + 1, dtype=torch.int64)),
        target_offsets=offsets["targets"],
        visible=torch.stack([begin, end], dim=1),
        request_offsets=torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]),
    )
    try:
        return batch.validate()
    except ValueError as error:
        raise ValueError(f"{path}: row group {number}: {error}") from error


def _tensor(path: Path, name: str, column: pa.ChunkedArray) -> tuple[Tensor, Tensor]:
    """Values [rows, ...] and offsets of a list column."""
    array: Any = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if array.null_count or array.flatten().null_count:
        raise ValueError(f"{path}: column {name} must not have empty values")
    offsets = array.offsets.to_numpy()
    values, width = array.flatten(), None
    if pa.types.is_fixed_size_list(values.type):
        width, values = values.type.list_size, values.flatten()
    if values.null_count:
        raise ValueError(f"{path}: column {name} must not have empty values")
    x = torch.from_numpy(np.array(values.to_numpy(zero_copy_only=False)))
    return x if width is None else x.reshape(-1, width), torch.from_numpy(offsets - offsets[0]).long()
