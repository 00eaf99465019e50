"""A reader of event logs in plain Python, one cell after the other, to hold `stca.data` against."""

import bz2
import csv
import gzip
import io
from collections.abc import Callable
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stca.data.formats import NULLS

UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
OPEN: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".bz2": bz2.decompress}


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, cells as they are: text of text files."""
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    unpack = OPEN.get(path.suffix, bytes)
    text = unpack(path.read_bytes()).decode().removeprefix("\ufeff")
    delimiter = next(each for each in ",\t;|" if each in text.splitlines()[0])
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))


def is_integer(text: str) -> bool:
    """Whether an int64 is written just so."""
    try:
        return str(int(text)) == text and -(2**63) <= int(text) < 2**63
    except ValueError:
        return False


def read(paths: list[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """The events of a log: ids as integers or text, times in seconds, label, request_id (None where there are none).

    And what is wrong, as patterns of which an error must match one.
    """
    cells = [(path, number, row) for path in paths for number, row in enumerate(rows_of(path), start=1)]
    wrong = [
        f"column {column} must hold .*, as those read before"
        for column in ("user_id", "item_id")
        if _mixed(paths, column)
    ]
    whole = {}
    for column in ("user_id", "item_id", "request_id"):
        whole[column] = all(_kind(path, [row.get(column)]) in ("int", "either") for path, _, row in cells)
    times = [_time(row["timestamp"]) for *_, row in cells]
    unit = next((rate for rate in UNITS.values() if any(_plausible(time, rate) for time in times)), 1)
    events = []
    for (path, number, row), time in zip(cells, times, strict=True):
        event: dict[str, Any] = {
            "request_id": None,
            "time": time and _seconds(time, unit),
            "label": _label(row["label"]),
        }
        for column in ("user_id", "item_id", "request_id"):
            if column in row:
                blank = row[column] in NULLS
                event[column] = None if blank else int(row[column]) if whole[column] else str(row[column])
        names = {"time": "timestamp"}
        wrong += [
            rf"{path.name}: column {names.get(key, key)} must .* row {number}$"
            for key, value in event.items()
            if value is None and names.get(key, key) in row
        ]
        events.append(event)
    return events, wrong


def _kind(path: Path, values: list[Any]) -> str:
    if path.suffix == ".parquet":
        return "int" if all(isinstance(value, int) for value in values) else "text"
    return "either" if all(isinstance(value, str) and is_integer(value) for value in values) else "text"


def _mixed(paths: list[Path], column: str) -> bool:
    kinds = {_kind(path, [row[column] for row in rows]) for path in paths if (rows := rows_of(path))}
    return {"int", "text"} <= kinds


def _label(cell: Any) -> float | None:
    try:
        return value if (value := float(cell)) in (0.0, 1.0) else None
    except ValueError:
        return None


def _time(cell: Any) -> Fraction | datetime | None:
    for parse in (Fraction, datetime.fromisoformat):
        try:
            return parse(cell)
        except ValueError:
            pass
    return None


def _seconds(time: Fraction | datetime, unit: int) -> int:
    return int(time.replace(tzinfo=UTC).timestamp()) if isinstance(time, datetime) else time // unit


def _plausible(time: Fraction | datetime | None, rate: int) -> bool:
    return isinstance(time, Fraction) and 631_152_000 * rate <= time < 4_102_444_800 * rate


def seen(events: list[dict[str, Any]]) -> list[tuple[Any, list[int]]]:
    """Of each event, its request, as a user, a time and a name, and which events its request may see, in any order."""
    starts: dict[tuple[Any, Any], int] = {}
    for event in events:
        key = event["user_id"], event["request_id"]
        starts[key] = min(starts.get(key, event["time"]), event["time"])
    found: list[tuple[Any, list[int]]] = []
    for event in events:
        named = event["request_id"] is not None
        start = starts[event["user_id"], event["request_id"]] if named else event["time"]
        before = [i for i, each in enumerate(events) if each["user_id"] == event["user_id"] and each["time"] < start]
        found.append(((event["user_id"], start, event["request_id"]), before))
    return found
