"""Request-level batches to Parquet."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from stca.batch import RequestBatch
from stca.data.columns import KINDS, REQUESTS, VISIBLE


def write_requests(batches: RequestBatch | Iterable[RequestBatch], path: Path | str, *, tokens: int = 1_000_000) -> int:
    """Writes batches as one Parquet file (zstd) that any reader of Parquet understands.

    A row is one history with everything that looks at it, in list columns: `history_<feature>`, `target_<feature>`,
    `label_<name>`, `visible_begin` and `visible_end` of each target, and `request_targets`, the targets of each of its
    requests. Memory is bounded by a batch and a row group, whatever the file's size.

    Args:
        batches: one batch, or any number of them with the same features.
        path: the file, written under another name until it is whole.
        tokens: history rows of a row group, about: what a reader holds at a time.

    Returns:
        Histories written.

    Raises:
        ValueError: what `RequestBatch.validate` refuses, features that differ between batches, or a dtype that Parquet
            does not have.

    Example:
        >>> import tempfile, stca.data
        >>> items, offsets = {"item": torch.tensor([3, 4, 5])}, torch.tensor([0, 2, 3])
        >>> batch = stca.batch.RequestBatch(items, offsets, items, offsets)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rows = stca.data.write_requests(batch, f"{folder}/log.parquet")
        ...     [read] = stca.data.RequestDataset(f"{folder}/log.parquet", budget=100)
        >>> rows, read.history["item"].tolist()
        (2, [3, 4, 5])
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    writer: pq.ParquetWriter | None = None
    written = 0
    try:
        for batch in [batches] if isinstance(batches, RequestBatch) else batches:
            table = _to_table(batch.validate())
            if writer is None:
                writer = pq.ParquetWriter(part, table.schema, compression="zstd")
            if table.schema != writer.schema:
                raise ValueError(
                    f"write_requests: every batch must have the columns of the first, {writer.schema.names}, got "
                    f"{table.schema.names} (or other types)"
                )
            for begin, end in _pieces(batch.history_lengths, tokens):
                writer.write_table(table.slice(begin, end - begin), row_group_size=max(1, end - begin))
            written += batch.R
        if writer is None:
            raise ValueError("write_requests: batches must hold at least one batch, got none")
        writer.close()
        part.replace(path)
    finally:
        if writer is not None:
            writer.close()
        part.unlink(missing_ok=True)
    return written


def _pieces(lengths: Sequence[int], tokens: int) -> Iterator[tuple[int, int]]:
    """Ranges of histories with about `tokens` rows each."""
    begin, total = 0, 0
    for i, length in enumerate(lengths):
        if i > begin and total + length > tokens:
            yield begin, i
            begin, total = i, 0
        total += length
    if begin < len(lengths):
        yield begin, len(lengths)


def _to_table(batch: RequestBatch) -> pa.Table:
    offsets = {"history": batch.history_offsets, "targets": batch.target_offsets, "labels": batch.target_offsets}
    columns = {
        prefix + name: _list_column(prefix + name, offsets[kind], x)
        for kind, prefix in KINDS.items()
        for name, x in getattr(batch, kind).items()
    }
    for name, x in zip(VISIBLE, batch.ranges().unbind(dim=1), strict=True):
        columns[name] = _list_column(name, batch.target_offsets, x)
    sizes, of_history = batch.requests()
    columns[REQUESTS] = _list_column(REQUESTS, of_history, sizes)
    return pa.table(columns)


def _list_column(name: str, offsets: Tensor, x: Tensor) -> pa.Array:
    if x.dtype == torch.bfloat16 or x.is_complex() or x.dim() > 2:
        raise ValueError(
            f"write_requests: column {name} must be [rows] or [rows, width] of a dtype that Parquet has, got {x.dtype} "
            f"{list(x.shape)}"
        )
    values = pa.array(x.detach().cpu().reshape(-1).numpy())
    if x.dim() > 1:
        values = pa.FixedSizeListArray.from_arrays(values, x.shape[1])
    return pa.LargeListArray.from_arrays(pa.array(offsets.cpu().numpy(), pa.int64()), values)
