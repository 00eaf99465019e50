"""Request-level batches to Parquet."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from stca.batch import RequestBatch
from stca.data.columns import KINDS, REQUESTS, VISIBLE


def write_requests(batches: RequestBatch | Iterable[RequestBatch], path: Path | str, *, tokens: int = 1_000_000) -> int:
    """Writes batches as one Parquet file (zstd, checksums) that any reader of Parquet understands.

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
        for table in _row_groups([batches] if isinstance(batches, RequestBatch) else batches, tokens):
            if writer is None:
                # Without checksums most flipped bits are read as other numbers, and trained on.
                writer = pq.ParquetWriter(part, table.schema, compression="zstd", write_page_checksum=True)
            writer.write_table(table, row_group_size=max(1, len(table)))
            written += len(table)
        if writer is None:
            raise ValueError("write_requests: batches must hold at least one batch, got none")
        writer.close()
        part.replace(path)
    finally:
        if writer is not None:
            writer.close()
        part.unlink(missing_ok=True)
    return written


def _row_groups(batches: Iterable[RequestBatch], tokens: int) -> Iterator[pa.Table]:
    """Histories one after the other, cut where more would pass `tokens` rows; one longer than that goes alone."""
    group: list[pa.Table] = []
    schema: pa.Schema | None = None
    total = groups = 0
    for batch in batches:
        table = _to_table(batch.validate())
        schema = schema or table.schema
        if table.schema != schema:
            raise ValueError(
                f"write_requests: every batch must have the columns of the first, {schema.names}, got "
                f"{table.schema.names} (or other types)"
            )
        begin = 0
        for i, length in enumerate(batch.history_lengths):
            if total and total + length > tokens:
                yield pa.concat_tables([*group, table.slice(begin, i - begin)])
                group, begin, total, groups = [], i, 0, groups + 1
            total += length
        group.append(table.slice(begin))
    if group and (groups == 0 or any(len(table) for table in group)):
        yield pa.concat_tables(group)


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
