"""Row groups of Parquet to request-level batches."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from stca.batch import RequestBatch
from stca.data.columns import KINDS, REQUESTS, VISIBLE, is_ours

UNREADABLE = (pa.ArrowException, OSError)  # what Arrow raises where a file is broken, and where it has no code for it


def open_file(path: Path) -> pq.ParquetFile:
    """A Parquet file, whose pages are held against their checksums where it has any, or an error that names it."""
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except UNREADABLE as error:
        raise ValueError(f"{path}: must be a whole Parquet file: {error}") from error


def broken_part(file: pq.ParquetFile, row_groups: Iterable[int], columns: Iterable[str] | None = None) -> str:
    """The first column that cannot be read, for an error: Arrow's own does not name it."""
    for number in row_groups:
        for name in file.schema_arrow.names if columns is None else columns:
            try:
                whole = len(file.read_row_group(number, [name])) == file.metadata.row_group(number).num_rows
            except UNREADABLE:
                whole = False
            if not whole:
                return f"column {name} of row group {number}"
    return "the table"


def read_row_group(path: Path, number: int) -> RequestBatch:
    """A row group's histories as one batch."""
    with open_file(path) as file:
        try:
            table = file.read_row_group(number)
        except UNREADABLE as error:
            raise ValueError(f"{path}: {broken_part(file, [number])} cannot be read: {error}") from error
    columns = {name: _tensor(path, name, table[name]) for name in filter(is_ours, table.column_names)}
    features: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
    offsets = {"targets": columns[VISIBLE[0]][1]}
    if not torch.equal(columns[VISIBLE[1]][1], offsets["targets"]):
        raise ValueError(f"{path}: column {VISIBLE[1]} must have lists as long as {VISIBLE[0]}")
    for name, (x, ends) in columns.items():
        for kind, prefix in KINDS.items():
            if name.startswith(prefix):
                features[kind][name.removeprefix(prefix)] = x
                if not torch.equal(offsets.setdefault("history" if kind == "history" else "targets", ends), ends):
                    raise ValueError(f"{path}: column {name} must have lists as long as the other {prefix} columns")
    sizes, ends = columns[REQUESTS][0].long(), columns[REQUESTS][1]
    requests = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    if (sizes < 0).any() or not torch.equal(requests[ends], offsets["targets"]):
        raise ValueError(f"{path}: column {REQUESTS} of row group {number} must add up to the targets of every row")
    begin, end = (columns[name][0].long() for name in VISIBLE)
    batch = RequestBatch(
        history=features["history"],
        targets=features["targets"],
        labels=features["labels"],
        history_offsets=offsets.get("history", torch.zeros(table.num_rows + 1, dtype=torch.int64)),
        target_offsets=offsets["targets"],
        visible=torch.stack([begin, end], dim=1),
        request_offsets=requests,
    )
    try:
        return batch.validate()
    except ValueError as error:
        raise ValueError(f"{path}: columns {' and '.join(VISIBLE)} of row group {number}: {error}") from error


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
