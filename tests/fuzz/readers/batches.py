"""Files of request-level batches, beside what pyarrow makes of each row's lists."""

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
from readers.values import INTEGERS, changed_bytes, value
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
    """A list, a number or a type changed and written in another way, or bytes of pages and footer."""
    if rng.random() < 0.3:
        return changed_bytes(data, rng)
    with suppress(pa.ArrowException, OSError, ValueError, TypeError, LookupError, OverflowError, AttributeError):
        table = pq.read_table(pa.BufferReader(data)).slice(0, 12)
        at = rng.randrange(table.num_columns)
        name, column = table.column_names[at], table.column(at).combine_chunks()
        rows = column.to_pylist()
        kind = column.type
        match rng.randrange(6):
            case 0:
                kind = rng.choice((pa.list_, pa.large_list))(rng.choice(_NUMBERS))
            case 1:
                return written(table.remove_column(at), rng)
            case 2:
                return written(table.append_column(rng.choice([name, "label_x", "history_y"]), column), rng)
            case _:
                row = rng.randrange(len(rows))
                rows[row] = _changed(rows[row], rng)
        return written(table.set_column(at, name, pa.array(rows, kind)), rng)
    return changed_bytes(data, rng)


def _changed(row: Any, rng: Random) -> Any:
    if not isinstance(row, list) or not row or rng.random() < 0.1:
        return rng.choice((None, [], [0]))
    at, row = rng.randrange(len(row)), list(row)
    match rng.randrange(4):
        case 0:
            del row[at]
        case 1:
            row.append(row[at])
        case 2 if isinstance(row[at], list):
            row[at] = _changed(row[at], rng)
        case _:
            row[at] = rng.choice((None, value(rng), rng.choice(INTEGERS)))
    return row


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
