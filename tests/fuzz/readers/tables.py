"""Event logs in Parquet, beside what pyarrow makes of each of their values."""

import io
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from readers import expected
from readers.text import compare
from readers.values import changed_bytes, value
from stca.data import LogFormat

_NAMES = ("user_id", "item_id", "timestamp", "label")
_TYPES = (
    *(pa.int8(), pa.int32(), pa.int64(), pa.uint64(), pa.float32(), pa.float64(), pa.bool_(), pa.string(), pa.binary()),
    *(
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.decimal128(20, 0),
        pa.decimal256(50, 2),
    ),
    *(pa.timestamp("ns"), pa.timestamp("us", "UTC"), pa.date32(), pa.time64("us"), pa.float16(), pa.null(), pa.uuid()),
    *(
        pa.list_(pa.int64()),
        pa.binary(16),
        pa.struct([("a", pa.int64())]),
        pa.map_(pa.string(), pa.int64()),
        pa.duration("s"),
    ),
)
_OPTIONS: dict[str, list[Any]] = {
    "row_group_size": [1, 2, 1000],
    "version": ["1.0", "2.6"],
    "data_page_version": ["1.0", "2.0"],
    "compression": ["none", "snappy", "zstd", "gzip", "brotli", "lz4"],
    "use_dictionary": [True, False],
    "write_page_checksum": [True, False],
    "store_schema": [True, False],
    "use_deprecated_int96_timestamps": [True, False],
    "data_page_size": [1, 1 << 20],
    "write_statistics": [True, False],
}


def written(table: pa.Table, rng: Random, **fixed: Any) -> bytes:
    """Parquet, by options of which each is drawn, or fixed."""
    options = {name: rng.choice(values) for name, values in _OPTIONS.items()}
    pq.write_table(table, out := io.BytesIO(), **options | fixed)
    return out.getvalue()


def seeds() -> dict[str, bytes]:
    """Integers, texts, and types of time."""
    numbers = {"user_id": [7, 8, 7], "item_id": [5, 6, 5], "timestamp": [100, 101, 90], "label": [1.0, 0.0, 1.0]}
    texts = {"user_id": ["ann", "bob", "ann"], "label": pa.array([True, False, True])}
    times = {"timestamp": pa.array([10**15, 2 * 10**15, 10**14], pa.timestamp("us")), "item_id": ["1", "2", "01"]}
    return {
        "numbers": written(pa.table(numbers), Random(1)),
        "texts": written(pa.table(numbers | texts), Random(2)),
        "times": written(pa.table(numbers | texts | times), Random(3)),
    }


def mutate(data: bytes, rng: Random) -> bytes:
    """Cells or types of a column changed and written in another way, or bytes of pages and footer."""
    if rng.random() < 0.3:
        return changed_bytes(data, rng)
    with suppress(pa.ArrowException, OSError, ValueError, TypeError, LookupError, OverflowError, AttributeError):
        table = pq.read_table(pa.BufferReader(data))
        if len(table) > 64:
            table = table.slice(0, 8)
        return written(_changed(table, rng), rng)
    return changed_bytes(data, rng)


def _changed(table: pa.Table, rng: Random) -> pa.Table:
    at = rng.randrange(table.num_columns)
    name, column = table.column_names[at], table.column(at).combine_chunks()
    match rng.randrange(5):
        case 0:
            return table.remove_column(at)
        case 1:
            return table.append_column(rng.choice([name, "x", "label"]), column)
        case 2:
            return table.set_column(at, name, column.cast(rng.choice(_TYPES)))
        case 3:
            return pa.concat_tables([table, table.slice(0, rng.randrange(len(table) + 1))])
        case _:
            cells = column.to_pylist()
            cells[rng.randrange(len(cells))] = rng.choice((None, value(rng), cells[-1]))
            kind = column.type if rng.random() < 0.7 else rng.choice(_TYPES)
            return table.set_column(at, name, pa.array(cells, kind))


def check(data: bytes, folder: Path) -> None:
    """Events are those of the columns as pyarrow reads them alone, and what they cannot be is refused."""
    (path := folder / "log.parquet").write_bytes(data)
    compare(path, LogFormat({name: name for name in _NAMES}), lambda: _columns(path))


def _columns(path: Path) -> dict[str, list[Any]]:
    try:
        pq.ParquetFile(path)  # who reads a few columns does not see names that are no text
        table = pq.read_table(path, columns=[*_NAMES], page_checksum_verification=True)
        if sorted(table.column_names) != sorted(_NAMES):
            raise expected.RefusedError(f"columns {table.column_names}")
        table.validate(full=True)
        columns = {name: table[name].to_pylist() for name in _NAMES}
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise expected.UnknownError(error) from error
    for name in _NAMES:
        kind = table[name].type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        known = (pa.types.is_integer(kind), text, pa.types.is_float64(kind) or kind == pa.bool_())
        if not any(known) or (name == "timestamp" and not known[0]):
            raise expected.UnknownError(kind)
    return columns
