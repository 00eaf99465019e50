"""Files of request-level batches, beside what pyarrow makes of each row's lists."""

import math
from contextlib import suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from batches import make_requests

from readers import refused
from readers.tables import written
from readers.values import INTEGERS, changed_bytes
from stca.data import RequestDataset, write_requests

_NUMBERS = (
    pa.int64(),
    pa.int32(),
    pa.int8(),
    pa.uint64(),
    pa.float64(),
    pa.float32(),
    pa.float16(),
    pa.bool_(),
    pa.string(),
)
_PAGE = 1 << 20  # bytes: in pages of one byte pyarrow 26 loses lists without a word, or fails
_GROUPS = "history", "target", "label"
_OURS = ("visible_begin", "visible_end", "request_targets")


def seeds() -> dict[str, bytes]:
    """As the package writes them, and as others write lists."""
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        write_requests(make_requests(6, longest=5), path := Path(folder, "x.parquet"), tokens=12)
        table = pq.read_table(path)
        lists = [pa.array(column.to_pylist()) for column in table.columns]
        return {"ours": path.read_bytes(), "others": written(pa.table(lists, table.column_names), Random(1))}


def mutate(data: bytes, rng: Random) -> bytes:
    """One thing of valid requests changed and written in another way; rarely bytes of pages and footer."""
    if rng.random() < 0.05:
        return changed_bytes(data, rng)
    errors = pa.ArrowException, OSError, ValueError, TypeError, LookupError, OverflowError, AttributeError
    with suppress(*errors):
        table = pq.read_table(pa.BufferReader(data)).slice(0, 12)
        for _ in range(8):  # a value may be none of its column's type
            with suppress(*errors):
                return written(rng.choice(_CHANGES)(table, rng), rng, data_page_size=_PAGE)
    return changed_bytes(data, rng)


def _with(table: pa.Table, name: str, rows: list[Any], kind: Any = None) -> pa.Table:
    at = table.column_names.index(name)
    return table.set_column(at, name, pa.array(rows, kind or table.schema.field(at).type))


def _column(table: pa.Table, rng: Random) -> pa.Table:
    """A column missing, doubled, or beside others of as many rows."""
    at = rng.randrange(table.num_columns)
    name, column = table.column_names[at], table.column(at)
    if rng.random() < 0.3:
        return table.remove_column(at)
    return table.append_column(rng.choice((name, "other", *(f"{part}_other" for part in _GROUPS))), column)


def _type(table: pa.Table, rng: Random) -> pa.Table:
    """Numbers of another type, in lists of either kind, of lists or bare."""
    at = rng.randrange(table.num_columns)
    kind = table.schema.field(at).type.value_type
    inner = rng.choice(_NUMBERS) if rng.random() < 0.9 else pa.list_(rng.choice(_NUMBERS))
    if pa.types.is_nested(kind):
        inner = rng.choice((pa.list_(inner), pa.list_(inner, 3)))
    column = table.column(at).cast(rng.choice((pa.list_, pa.large_list))(inner))
    return table.set_column(at, table.column_names[at], column)


def _rows_moved(table: pa.Table, rng: Random) -> pa.Table:
    """Rows left out, repeated, in another order."""
    return table.take([rng.randrange(len(table)) for _ in range(rng.choice((len(table), 0, 1, len(table) + 1)))])


def _cell(table: pa.Table, rng: Random) -> pa.Table:
    """One number of a list: off by one, negative, not finite, at the edge of a type, missing; or a row missing."""
    name = rng.choice([*table.column_names, *(_OURS if rng.random() < 0.5 else ())])
    rows, kind = table[name].to_pylist(), table.schema.field(name).type
    row = rng.choice([i for i, cells in enumerate(rows) if cells] or [0])
    if rng.random() < 0.05:
        rows[row] = rng.choice((None, []))
        return _with(table, name, rows)
    cells, kind = rows[row], kind.value_type
    at = rng.randrange(len(cells))
    if isinstance(cells[at], list) and rng.random() < 0.8:
        cells, kind = cells[at], kind.value_type
        at = rng.randrange(len(cells))
    x = cells[at]
    others: list[Any] = [None, 0, 1, -1, *INTEGERS] if rng.random() < 0.4 else [x + d for d in (-1, 1)]
    cells[at] = rng.choice([math.nan, math.inf, -0.0, 1e-300, x + 0.5] if pa.types.is_floating(kind) else others)
    return _with(table, name, rows)


def _length(table: pa.Table, rng: Random) -> pa.Table:
    """A list longer or shorter by one, alone or with all that must be as long; a vector at times."""
    begin, row = rng.choice(_GROUPS), rng.randrange(len(table))
    names = [
        name for name in table.column_names if name.startswith((begin, "visible") if begin != "history" else begin)
    ]
    if rng.random() < 0.4:
        names = [rng.choice(table.column_names)]
    longer, at = rng.random() < 0.5, rng.random()
    for name in names:
        rows = table[name].to_pylist()
        cells = rows[row]
        if cells and isinstance(cells[0], list) and rng.random() < 0.2:
            cells = cells[rng.randrange(len(cells))]
        place = int(at * len(cells))
        cells[place : place + 1] = 2 * cells[place : place + 1] if longer else []
        table = _with(table, name, rows)
    return table


def _requests(table: pa.Table, rng: Random) -> pa.Table:
    """Targets of a row divided among requests otherwise."""
    rows = table["request_targets"].to_pylist()
    row = rng.randrange(len(rows))
    count = sum(rows[row])
    first = rng.randrange(-1, count + 2)
    rows[row] = rng.choice(([count], [first, count - first], [0, count, 0], [count, 1], []))
    return _with(table, "request_targets", rows)


_CHANGES = _column, _type, _rows_moved, _cell, _cell, _cell, _length, _length, _requests


def check(data: bytes, folder: Path) -> None:
    """Histories, targets, ranges and requests are those of the rows, and rows that do not fit are refused."""
    (path := folder / "requests.parquet").write_bytes(data)
    wanted = _rows(path)
    try:
        found = [_row(batch, r) for batch in RequestDataset(path, 10**6, shuffle=False) for r in range(batch.R)]
    except ValueError as error:
        refused(error, path)
        found = None
    assert wanted is None or sorted(map(repr, found or ())) == sorted(map(repr, wanted)), (found, wanted)


def _row(batch: Any, r: int) -> Any:
    """A history as lists, with all that looks at it."""
    begin, end = batch.target_offsets[r : r + 2].tolist()
    first, last = batch.history_offsets[r : r + 2].tolist()
    features = {f"history_{name}": x[first:last].tolist() for name, x in batch.history.items()}
    features |= {f"target_{name}": x[begin:end].tolist() for name, x in batch.targets.items()}
    features |= {f"label_{name}": x[begin:end].tolist() for name, x in batch.labels.items()}
    return sorted(features.items()), batch.ranges()[begin:end].tolist()


def _rows(path: Path) -> list[Any] | None:
    """The rows of a file in which everything fits, or None."""
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        table.validate(full=True)
        names = [
            name for name in table.column_names if name.startswith(("history_", "target_", "label_")) or name in _OURS
        ]
        if (
            len({*names}) < len(names)
            or not {*_OURS} <= {*names}
            or not any(name.startswith("history_") for name in names)
        ):
            return None
        columns = {name: table[name].to_pylist() for name in names}
    except (pa.ArrowException, OSError, ValueError):
        return None
    rows, widths = [], dict[str, set[int]]()
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(names, values, strict=True))
        if not _fits(row):
            return None
        for name, cells in row.items():
            widths.setdefault(name, set()).update(len(x) if isinstance(x, list) else -1 for x in cells)
        features = sorted((name, cells) for name, cells in row.items() if name not in _OURS)
        rows.append((features, [[*each] for each in zip(row["visible_begin"], row["visible_end"], strict=True)]))
    kinds = [table.schema.field(name).type.value_type for name in names]
    kinds = [kind.value_type if pa.types.is_nested(kind) else kind for kind in kinds]
    plain = all(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) for kind in kinds)
    return rows if plain and all(len(each) <= 1 and 0 not in each for each in widths.values()) else None


def _fits(row: dict[str, Any]) -> bool:
    if any(not isinstance(cells, list) or not all(map(_is_cell, cells)) for cells in row.values()):
        return False
    history = {len(cells) for name, cells in row.items() if name.startswith("history_")}
    targets = {
        len(cells) for name, cells in row.items() if not name.startswith("history_") and name != "request_targets"
    }
    if len(history) != 1 or len(targets) != 1 or any(type(x) is not int for name in _OURS for x in row[name]):
        return False
    ranges = zip(row["visible_begin"], row["visible_end"], strict=True)
    [length], [count] = history, targets
    sizes = row["request_targets"]
    return all(0 <= a <= b <= length for a, b in ranges) and all(n >= 0 for n in sizes) and sum(sizes) == count


def _is_cell(x: Any) -> bool:
    return all(map(_is_cell, x)) if isinstance(x, list) else isinstance(x, int | float)
