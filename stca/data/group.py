"""Event logs to request-level batches: which events are a request's targets, and which its history."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from stca.batch import RequestBatch
from stca.batch.request_batch import rows_of

Integers = NDArray[np.int64]
_AT_ONCE = 250_000  # events that are sorted into parts at a time


@dataclass(frozen=True)
class Requests:
    """Requests of events that are sorted by user, time and request; all arrays but one are [requests].

    A request is a run of events of one user at one time: its targets. Its history is what the user did strictly
    before: events user_begin:history_end.
    """

    order: Integers  # [E], sorts the events
    user: Integers
    begin: Integers  # first target
    end: Integers
    user_begin: Integers  # the user's first event
    history_end: Integers  # the user's first event that is not strictly earlier


def find_requests(user: Integers, time: Integers, request: Integers) -> Requests:
    """Requests of events given as arrays [E] in any order; events of one user, time and request are one request."""
    order = np.lexsort((request, time, user))
    user, time, request = user[order], time[order], request[order]
    users = np.concatenate([[True], np.diff(user) != 0])
    moments = users | np.concatenate([[True], np.diff(time) != 0])
    begin = np.flatnonzero(moments | np.concatenate([[True], np.diff(request) != 0]))
    users, moments = np.flatnonzero(users), np.flatnonzero(moments)
    return Requests(
        order=order,
        user=user[begin],
        begin=begin,
        end=np.concatenate([begin[1:], [len(user)]]),
        user_begin=users[np.searchsorted(users, begin, side="right") - 1],
        history_end=moments[np.searchsorted(moments, begin, side="right") - 1],
    )


def group_events(
    events: pa.Table, *, per_history: int | None = None, max_length: int | None = None, tokens: int = 1_000_000
) -> Iterator[RequestBatch]:
    """Requests of a table of events, with all events of each of its users.

    Every event is a target, with the user's strictly earlier events as its history. History rows have the features
    `item`, `time` (s), `label` and the other labels and features of the log; targets `user`, `item`, `time` and the
    features; labels are the log's.

    Args:
        events: columns as `read_events` gives them.
        per_history: consecutive requests of a user that share one history; 1: each has its own. None: a user's
            history is stored once.
        max_length: events that a target sees at most, the latest. None: all.
        tokens: history rows of a batch, about.

    Example:
        >>> import pyarrow as pa, stca.data
        >>> columns = {"user_id": [7, 7, 7], "item_id": [1, 2, 3], "timestamp": [60, 60, 90]}
        >>> events = pa.table(columns | {"request_id": [0, 0, 1], "label": [0.0, 1.0, 1.0]})
        >>> [batch] = stca.data.group_events(events)
        >>> batch.visible.tolist(), batch.request_offsets.tolist()
        ([[0, 0], [0, 0], [0, 2]], [0, 2, 3])
    """
    r = find_requests(*(events[name].to_numpy() for name in ("user_id", "timestamp", "request_id")))
    features = (name for name in events.column_names if name != "request_id")
    column = {name: torch.from_numpy(events[name].to_numpy()[r.order]) for name in features}
    first_of_user = np.searchsorted(r.user_begin, r.user_begin)
    place = np.arange(len(r.user)) - first_of_user  # among the user's requests
    starts = place == 0 if per_history is None else place % per_history == 0
    run = np.cumsum(starts) - 1
    first = np.flatnonzero(starts)
    last = np.append(first[1:], len(starts)) - 1
    seen_from = r.user_begin if max_length is None else np.maximum(r.user_begin, r.history_end - max_length)
    row_begin, row_end = seen_from[first], r.history_end[last]  # of each run's history
    visible = np.stack([seen_from, r.history_end], axis=1) - row_begin[run][:, None]
    rows = np.cumsum(row_end - row_begin)
    cut = 0
    while cut < len(first):
        done = rows[cut - 1] if cut else 0
        stop = max(cut + 1, int(np.searchsorted(rows, done + tokens, side="right")))
        yield _batch(column, r, first[cut:stop], last[cut:stop], row_begin[cut:stop], row_end[cut:stop], visible)
        cut = stop


def _batch(
    column: dict[str, torch.Tensor],
    r: Requests,
    first: Integers,
    last: Integers,
    row_begin: Integers,
    row_end: Integers,
    visible: Integers,
) -> RequestBatch:
    """The runs first[i]:last[i] of requests, each with history rows row_begin[i]:row_end[i]."""
    rows, history_offsets = rows_of(torch.from_numpy(row_begin), torch.from_numpy(row_end - row_begin))
    requests = slice(first[0], last[-1] + 1)
    targets = slice(r.begin[requests][0], r.end[requests][-1])
    sizes = r.end[requests] - r.begin[requests]
    ends = np.concatenate([[r.begin[first[0]]], r.end[last]]) - r.begin[first[0]]
    names = {"user_id": "user", "item_id": "item", "timestamp": "time"}
    labels = {name for name in column if name.startswith("label")}
    short = {name: name.removeprefix("label_") for name in column} | names
    return RequestBatch(
        history={short[name]: x[rows] for name, x in column.items() if name != "user_id"},
        history_offsets=history_offsets,
        targets={short[name]: x[targets] for name, x in column.items() if name not in labels},
        target_offsets=torch.from_numpy(ends),
        labels={short[name]: column[name][targets] for name in sorted(labels)},
        visible=torch.from_numpy(np.repeat(visible[requests], sizes, axis=0)),
        request_offsets=torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)])),
    )


def group_log(
    tables: Iterable[pa.Table], *, per_history: int | None = None, max_length: int | None = None, parts: int = 64
) -> Iterator[RequestBatch]:
    """`group_events` of a log of any order and length: its events go through files, a part of the users in each.

    Memory is bounded by one of the parts, a user's events at least; the disk holds the log once more.

    Example:
        >>> import stca.data
        >>> def prepare(log, out):
        ...     return stca.data.write_requests(stca.data.group_log(stca.data.read_events(log)), out)
    """
    with tempfile.TemporaryDirectory(prefix="stca-") as folder:
        for file in _spill(tables, parts, Path(folder)):
            with pa.ipc.open_stream(file) as stream:
                events = stream.read_all()
            yield from group_events(events, per_history=per_history, max_length=max_length)
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
    """Which of `parts` each event belongs to, [E]: a user's are all in one, and users spread evenly."""
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
