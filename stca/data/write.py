"""Request-level batches to Parquet."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from stca.batch import RequestBatch
from stca.data.columns import KINDS, REQUESTS, VISIBLE
from stca.files import whole_file

Integers = NDArray[np.int64]
_DTYPES = (
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64),
)


def write_requests(
    batches: RequestBatch | Iterable[RequestBatch],
    path: Path | str,
    *,
    tokens: int = 1_000_000,
    nbytes: int = 64 << 20,
    metadata: Callable[[], Mapping[str, str]] = dict,
) -> int:
    """Writes batches as one Parquet file (zstd, checksums) that any reader of Parquet understands.

    A row is one history with everything that looks at it, in list columns: `history_<feature>`, `target_<feature>`,
    `label_<name>`, `visible_begin` and `visible_end` of each target, and `request_targets`, the targets of each of its
    requests. Memory is bounded by a batch and a row group, whatever the file's size.

    A row group is what a reader holds at a time, and what ranks and workers divide: give smaller bounds where they are
    many and the log is small. A history that alone passes a bound is a row group of its own.

    Args:
        batches: one batch, or any number of them with the same features.
        path: the file, written under another name until it is whole (`stca.files.whole_file`), so it may be read
            meanwhile.
        tokens: history rows of a row group at most, and targets at most.
        nbytes: bytes of a row group in memory at most.
        metadata: gives what else the file keeps, once all batches are written. Tables of ids that are texts are not
            written here: `Names.known` has them, and `python -m stca.data.convert` writes them beside the file.

    Returns:
        Histories written.

    Raises:
        ValueError: what `RequestBatch.validate` refuses, features that differ between batches, a dtype that Parquet
            does not have, history rows without a feature, or, before anything is read, a path that cannot be written.
        FileExistsError: another process has written `path` meanwhile: its file stays.

    Example:
        >>> import tempfile, stca.data
        >>> items, offsets = {"item_id": torch.tensor([3, 4, 5])}, torch.tensor([0, 2, 3])
        >>> batch = stca.batch.RequestBatch(items, offsets, items, offsets)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rows = stca.data.write_requests(batch, f"{folder}/log.parquet")
        ...     [read] = stca.data.RequestDataset(f"{folder}/log.parquet", budget=100)
        >>> rows, read.history["item_id"].tolist()
        (2, [3, 4, 5])
    """
    if min(tokens, nbytes) < 1:
        raise ValueError(f"write_requests: tokens and nbytes must be at least 1, got {tokens} and {nbytes}")
    limits = np.array([tokens, tokens, nbytes])
    written = 0
    with whole_file(path) as part, ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for table in _row_groups([batches] if isinstance(batches, RequestBatch) else batches, limits):
            if writer is None:
                # Without checksums most flipped bits are read as other numbers, and trained on.
                writer = pq.ParquetWriter(part, table.schema, compression="zstd", write_page_checksum=True)
                stack.enter_context(writer)
            writer.write_table(table, row_group_size=max(1, len(table)))
            written += len(table)
        if writer is None:
            raise ValueError("write_requests: batches must hold at least one batch, got none")
        writer.add_key_value_metadata(metadata())
    return written


def _row_groups(batches: Iterable[RequestBatch], limits: Integers) -> Iterator[pa.Table]:
    """Histories one after the other, cut where more would pass a limit of `_sizes`; one beyond that goes alone."""
    group: list[pa.Table] = []
    schema: pa.Schema | None = None
    held, groups = np.zeros_like(limits), 0  # in `group`
    for batch in batches:
        if not isinstance(batch, RequestBatch):
            raise TypeError(
                f"write_requests: batches must give RequestBatch, as stca.data.group_log does of a log, got "
                f"{type(batch).__name__}"
            )
        batch = batch.validate().expand()
        table = _to_table(batch)
        schema = schema or table.schema
        _check_schema(schema, table.schema)
        ends, begin = np.concatenate([np.zeros_like(limits)[None], np.cumsum(_sizes(batch), axis=0)]), 0
        while True:
            room = limits - held + ends[begin]
            fits = min(int(np.searchsorted(ends[:, i], room[i], side="right")) for i in range(len(limits))) - 1
            stop = max(fits, begin if held.any() else begin + 1)
            if stop >= batch.R:
                break
            yield pa.concat_tables([*group, table.slice(begin, stop - begin)])
            group, begin, held, groups = [], stop, np.zeros_like(limits), groups + 1
        group.append(table.slice(begin))
        held = held + ends[-1] - ends[begin]
    if group and (groups == 0 or any(len(table) for table in group)):
        yield pa.concat_tables(group)


def _sizes(batch: RequestBatch) -> Integers:
    """History rows, targets and bytes of every history, [R, 3]."""
    rows, targets = (np.array(lengths, dtype=np.int64) for lengths in (batch.history_lengths, batch.target_lengths))
    row, target = (sum(x.nbytes // max(1, len(x)) for x in features.values()) for features in _kinds(batch))
    lists = len(batch.history) + len(batch.targets) + len(batch.labels) + len((*VISIBLE, REQUESTS))
    # Every target has its range, and at most a request; every list an offset.
    return np.stack([rows, targets, rows * row + targets * (target + 24) + 8 * lists], axis=1)


def _kinds(batch: RequestBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Columns with history rows, and with targets, by name."""
    history = {KINDS["history"] + name: x for name, x in batch.history.items()}
    targets = {KINDS[kind] + name: x for kind in ("targets", "labels") for name, x in getattr(batch, kind).items()}
    return history, targets


def _check_schema(first: pa.Schema, schema: pa.Schema) -> None:
    if schema == first:
        return
    expected, got = first.names, schema.names
    if expected == got:
        name = next(name for name in got if schema.field(name) != first.field(name))
        expected, got = (f"{name} of {each.field(name).type}" for each in (first, schema))
    raise ValueError(f"write_requests: every batch must have the columns of the first, {expected}, got {got}")


def _to_table(batch: RequestBatch) -> pa.Table:
    history, targets = _kinds(batch)
    if batch.N and not history:
        raise ValueError(f"write_requests: {batch.N} history rows must have a feature, got none")
    columns = {name: _list_column(name, batch.history_offsets, x) for name, x in history.items()}
    columns |= {name: _list_column(name, batch.target_offsets, x) for name, x in targets.items()}
    for name, x in zip(VISIBLE, batch.ranges().unbind(dim=1), strict=True):
        columns[name] = _list_column(name, batch.target_offsets, x)
    sizes, of_history = batch.requests()
    columns[REQUESTS] = _list_column(REQUESTS, of_history, sizes)
    return pa.table(columns)


def _list_column(name: str, offsets: Tensor, x: Tensor) -> pa.Array:
    if x.dtype not in _DTYPES or x.dim() > 2 or 0 in x.shape[1:]:
        raise ValueError(
            f"write_requests: column {name} must be [rows] or [rows, width] of a dtype that Parquet has, got {x.dtype} "
            f"{list(x.shape)}"
        )
    values = pa.array(x.detach().cpu().reshape(-1).numpy())
    if x.dim() > 1:
        values = pa.FixedSizeListArray.from_arrays(values, x.shape[1])
    return pa.LargeListArray.from_arrays(pa.array(offsets.cpu().numpy(), pa.int64()), values)
