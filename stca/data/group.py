"""Event logs to request-level batches: which events are a request's targets, and which its history."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from numbers import Integral
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from stca.batch import RequestBatch, ranges_to_index
from stca.data.cells import is_number
from stca.data.formats import is_label
from stca.data.requests import LASTING, Integers, Requests, find_requests, request_numbers

_AT_ONCE = 250_000  # events that are sorted into parts at a time


def group_events(
    events: pa.Table,
    *,
    per_history: int | None = None,
    max_length: int | None = None,
    tokens: int = 1_000_000,
    lasting: str = "first",
) -> Iterator[RequestBatch]:
    """Requests of a table of events, with all events of each of its users.

    Every event is a target, with the user's events strictly before its request as its history. What a batch holds has
    the names of the log's columns: history rows `item_id`, `timestamp` (s), `label`, further labels and features;
    targets `user_id`, `item_id`, `timestamp` and features; labels `label` and further ones.

    Args:
        events: columns as `read_events` gives them.
        per_history: consecutive requests of a user that share one history; 1: each has its own. None: a user's
            history is stored once.
        max_length: events that a target sees at most, the latest. None: all.
        tokens: history rows and targets of a batch, about.
        lasting: what of events of one request_id at several times: "first", they all see what was before the first of
            them, so that none sees what came of another; or "refuse".

    Raises:
        ValueError: a column that is missing, has empty values, is of another type or would overwrite another, by its
            name; a request that lasts, where such are refused.

    Example:
        >>> import pyarrow as pa, stca.data
        >>> columns = {"user_id": [7, 7, 7], "item_id": [1, 2, 3], "timestamp": [60, 60, 90]}
        >>> events = pa.table(columns | {"request_id": [0, 0, 1], "label": [0.0, 1.0, 1.0]})
        >>> [batch] = stca.data.group_events(events)
        >>> batch.visible.tolist(), batch.request_offsets.tolist()
        ([[0, 0], [0, 0], [0, 2]], [0, 2, 3])
    """
    names = _checked(events, per_history, max_length, tokens, lasting)
    if not len(events):
        return
    user, time = (events[name].to_numpy() for name in ("user_id", "timestamp"))
    r = find_requests(user, time, request_numbers(events), lasting)
    rows = {name: events[name].to_numpy() for name in names}
    history = {name: torch.from_numpy(x[r.order]) for name, x in rows.items()}
    same = r.targets is r.order
    targets = history if same else {name: torch.from_numpy(x[r.targets]) for name, x in rows.items()}
    first_of_user = np.searchsorted(r.user_begin, r.user_begin)
    place = np.arange(len(r.user)) - first_of_user  # among the user's requests
    starts = place == 0 if per_history is None else place % per_history == 0
    run = np.cumsum(starts) - 1
    first = np.flatnonzero(starts)
    last = np.append(first[1:], len(starts)) - 1
    seen_from = (
        r.user_begin if max_length is None else np.maximum(r.user_begin, r.history_end - min(max_length, len(events)))
    )
    row_begin, row_end = seen_from[first], r.history_end[last]  # of each run's history
    visible = np.stack([seen_from, r.history_end], axis=1) - row_begin[run][:, None]
    size = np.cumsum(row_end - row_begin + r.end[last] - r.begin[first])
    cut = 0
    while cut < len(first):
        done = size[cut - 1] if cut else 0
        stop = max(cut + 1, int(np.searchsorted(size, done + tokens, side="right")))
        runs = slice(cut, stop)
        yield _batch(history, targets, r, first[runs], last[runs], row_begin[runs], row_end[runs], visible)
        cut = stop


def _checked(events: pa.Table, per_history: int | None, max_length: int | None, tokens: int, lasting: str) -> list[str]:
    """The columns that batches have, once arguments are checked."""
    for option, value, least in (("per_history", per_history, 1), ("max_length", max_length, 0), ("tokens", tokens, 1)):
        if value is not None and (not isinstance(value, Integral) or value < least):
            raise ValueError(f"group_events: {option} must be a whole number of at least {least}, got {value}")
    if lasting not in LASTING:
        raise ValueError(f"group_events: lasting must be one of {LASTING}, got {lasting!r}")
    for name in ("user_id", "item_id", "timestamp", "label"):
        if name not in events.column_names:
            raise ValueError(f"group_events: column {name} is missing, got {events.column_names}")
    if len(set(events.column_names)) < len(events.column_names):
        raise ValueError(f"group_events: columns must have different names, got {events.column_names}")
    names = [name for name in events.column_names if name != "request_id"]
    for name in names:
        kind = events.schema.field(name).type
        integers = name in ("user_id", "item_id", "timestamp")
        if not (pa.types.is_integer(kind) if integers else is_number(kind) and not pa.types.is_decimal(kind)):
            raise ValueError(f"group_events: column {name} must be {'integers' if integers else 'numbers'}, got {kind}")
        if count := events[name].null_count:
            raise ValueError(f"group_events: column {name} must not have empty values, got {count}")
        if pa.types.is_floating(kind) and not pc.all(good := pc.is_finite(events[name])).as_py():
            raise ValueError(
                f"group_events: column {name} must be finite, got {events[name].filter(pc.invert(good))[0]}"
            )
    return names


def _batch(
    history: dict[str, torch.Tensor],
    targets: dict[str, torch.Tensor],
    r: Requests,
    first: Integers,
    last: Integers,
    row_begin: Integers,
    row_end: Integers,
    visible: Integers,
) -> RequestBatch:
    """The runs first[i]:last[i] of requests, each with history rows row_begin[i]:row_end[i]."""
    rows, history_offsets = ranges_to_index(torch.from_numpy(row_begin), torch.from_numpy(row_end - row_begin))
    requests = slice(first[0], last[-1] + 1)
    own = slice(r.begin[requests][0], r.end[requests][-1])
    sizes = r.end[requests] - r.begin[requests]
    ends = np.concatenate([[r.begin[first[0]]], r.end[last]]) - r.begin[first[0]]
    return RequestBatch(
        history={name: x[rows] for name, x in history.items() if name != "user_id"},
        history_offsets=history_offsets,
        targets={name: x[own] for name, x in targets.items() if not is_label(name)},
        target_offsets=torch.from_numpy(ends),
        labels={name: x[own] for name, x in sorted(targets.items()) if is_label(name)},
        visible=torch.from_numpy(np.repeat(visible[requests], sizes, axis=0)),
        request_offsets=torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)])),
    )


def group_log(
    tables: Iterable[pa.Table],
    *,
    per_history: int | None = None,
    max_length: int | None = None,
    parts: int = 64,
    lasting: str = "first",
) -> Iterator[RequestBatch]:
    """`group_events` of a log of any order and length: its events go through files, a part of the users in each.

    Memory is bounded by one of the parts, a user's events at least; the disk holds the log once more.

    Example:
        >>> import stca.data
        >>> def prepare(log, out):
        ...     return stca.data.write_requests(stca.data.group_log(stca.data.read_events(log)), out)
    """
    if parts < 1:
        raise ValueError(f"group_log: parts must be at least 1, got {parts}")
    with tempfile.TemporaryDirectory(prefix="stca-") as folder:
        for file in _spill(tables, parts, Path(folder)):
            with pa.ipc.open_stream(file) as stream:
                events = stream.read_all()
            yield from group_events(events, per_history=per_history, max_length=max_length, lasting=lasting)
            file.unlink()


def _spill(tables: Iterable[pa.Table], parts: int, folder: Path) -> list[Path]:
    """A file of the events of each part that has any."""
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with ExitStack() as stack:
        writers: dict[Path, pa.ipc.RecordBatchStreamWriter] = {}
        for events in _gathered(tables):
            for part, own in split_by_user(events, parts):
                file = folder / f"{part}.arrow"
                if file not in writers:
                    writers[file] = stack.enter_context(pa.ipc.new_stream(file, own.schema, options=options))
                writers[file].write_table(own)
    return sorted(writers)


def part_of_user(events: pa.Table, parts: int) -> Integers:
    """Which of `parts` each event belongs to, [E]: a user's are all in one, and users spread evenly.

    Raises:
        ValueError: users that are no integers.

    Example:
        >>> import pyarrow as pa, stca.data
        >>> stca.data.part_of_user(pa.table({"user_id": [7, 8, 7]}), parts=2)
        array([0, 1, 0])
    """
    if not pa.types.is_integer(kind := events.schema.field("user_id").type):
        raise ValueError(f"group_log: column user_id must be integers, got {kind}")
    scattered = events["user_id"].to_numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)
    part: Integers = (scattered % np.uint64(parts)).astype(np.int64)
    return part


def split_by_user(events: pa.Table, parts: int) -> Iterator[tuple[int, pa.Table]]:
    """The parts of a table that are not empty, events in their order."""
    part = part_of_user(events, parts)
    order = np.argsort(part, kind="stable")
    bounds = np.searchsorted(part[order], np.arange(parts + 1))
    events = events.take(pa.array(order))
    for number in np.flatnonzero(np.diff(bounds)).tolist():
        yield number, events.slice(bounds[number], bounds[number + 1] - bounds[number])


def _gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same events in larger tables."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= _AT_ONCE:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
