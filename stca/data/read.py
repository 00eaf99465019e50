"""Row groups of Parquet to request-level batches."""

import zlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from stca.batch import RequestBatch
from stca.data.columns import KINDS, REQUESTS, VISIBLE, check_columns, is_ours, layout_of

Widths = dict[str, tuple[int, Path]]  # of the columns that hold vectors, and the file that told; 0: none has yet
# What Arrow raises where a file is broken, where it has no code for it, and where a name in it is no text.
UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)


def open_file(path: Path) -> pq.ParquetFile:
    """A Parquet file, whose pages are held against their checksums where it has any, or an error that names it."""
    try:
        return pq.ParquetFile(
            path,
            metadata=_footer(*_version(path))[0],
            page_checksum_verification=True,
            coerce_int96_timestamp_unit="us",  # nanoseconds, Arrow's own choice, wrap before 1677 and after 2262
        )
    except UNREADABLE as error:
        raise ValueError(f"{path}: must be a whole Parquet file: {error}") from error


def identity_of(path: Path) -> list[Any]:
    """[name, bytes, row groups, checksum of the footer]: another file, or another version of it, has others."""
    try:
        version = _version(path)
        metadata, checksum = _footer(*version)
    except UNREADABLE as error:
        raise ValueError(f"{path}: must be a whole Parquet file: {error}") from error
    return [path.name, version[1], metadata.num_row_groups, checksum]


def _version(path: Path) -> tuple[Path, int, int]:
    about = path.stat()
    return path, about.st_size, about.st_mtime_ns


@lru_cache(maxsize=16)
def _footer(path: Path, size: int, time: int) -> tuple[pq.FileMetaData, int]:
    """What a file's end tells, and its checksum: to parse it takes as long as thousands of row groups are many."""
    metadata = pq.read_metadata(path)
    with path.open("rb") as file:
        file.seek(size - 8)
        length = int.from_bytes(file.read(4), "little")
        file.seek(size - 8 - length)
        return metadata, zlib.crc32(file.read(length))


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


def _read(path: Path, file: pq.ParquetFile, number: int, columns: list[str] | None = None) -> pa.Table:
    try:
        return file.read_row_group(number, columns)
    except UNREADABLE as error:
        raise ValueError(f"{path}: {broken_part(file, [number], columns)} cannot be read: {error}") from error


def read_row_group(path: Path, number: int, widths: Widths) -> RequestBatch:
    """A row group's histories as one batch; `widths` as `add_widths` fills them."""
    with open_file(path) as file:
        table = _read(path, file, number)
    columns = {}
    for name in filter(is_ours, table.column_names):
        try:
            columns[name] = _tensor(table[name], widths.get(name))
        except ValueError as error:
            raise ValueError(f"{path}: column {name} {error} of row group {number}") from error
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


def types_of(path: Path) -> dict[str, pa.DataType]:
    """Of the columns that are ours, or an error where they cannot be."""
    with open_file(path) as file:
        schema = file.schema_arrow
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise ValueError(f"{path}: column {name} must be there once, got {schema.names.count(name)} of that name")
    types = {field.name: field.type for field in schema if is_ours(field.name)}
    check_columns(path, types)
    return types


def add_widths(widths: Widths, path: Path) -> None:
    """Numbers in a vector, where no earlier file tells: by the type, or by the first vector that the column holds."""
    for name, kind in types_of(path).items():
        width = layout_of(name, kind).width
        if width is not None and not widths.get(name, (0, path))[0]:
            widths[name] = width or _width_of_first(path, name), path


def _width_of_first(path: Path, name: str) -> int:
    with open_file(path) as file:
        for number in range(file.num_row_groups):
            vectors = _array(_read(path, file, number, [name])[name]).flatten().drop_null()
            if len(vectors):
                return int(pc.list_value_length(vectors)[0].as_py())
    return 0


def _array(column: pa.ChunkedArray) -> Any:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _tensor(column: pa.ChunkedArray, vectors: tuple[int, Path] | None) -> tuple[Tensor, Tensor]:
    """Values [rows, ...] and offsets of a list column; an error says what is wrong, and ends in the row."""
    array = _array(column)
    if array.null_count:
        raise ValueError(f"must not have empty values, got one in row {_first(array.is_null())}")
    offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(array).to_numpy(), dtype=np.int64)])
    values = array.flatten()
    _refuse_nulls(values, 1, offsets)
    width = None
    if vectors is not None:
        (width, origin), widths = vectors, pc.list_value_length(values)
        wrong = pc.not_equal(widths, width)
        if pc.any(wrong).as_py():
            at = _first(wrong)
            raise ValueError(
                f"must hold vectors of {width} numbers, as in {origin}, got one of {widths[at]} "
                f"in row {_row(at, offsets)}"
            )
        values = values.flatten()
        _refuse_nulls(values, width, offsets)
    x = torch.from_numpy(np.array(values.to_numpy(zero_copy_only=False)))
    return x if width is None else x.reshape(int(offsets[-1]), width), torch.from_numpy(offsets)


def _refuse_nulls(values: pa.Array, width: int, offsets: np.ndarray[Any, Any]) -> None:
    if values.null_count:
        at = _first(values.is_null()) // width
        raise ValueError(f"must not have empty values, got one in row {_row(at, offsets)}")


def _first(true: pa.Array) -> int:
    return int(pc.index(true, True).as_py())


def _row(value: int, offsets: np.ndarray[Any, Any]) -> int:
    return int(np.searchsorted(offsets, value, side="right")) - 1
