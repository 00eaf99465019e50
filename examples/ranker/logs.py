"""Event logs, from a file to arrays that lie grouped by user and request in order of time."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

Integers = NDArray[np.int64]
COUNTERS, COUNTER_BUCKETS = 9, 24


@dataclass(frozen=True)
class Log:
    """Events sorted by user, time and request; all arrays of one event each are [E].

    A request is a run of events of one user at one time: its targets. Its history is what the user did strictly
    before: rows user_begin[r]:history_end[r].
    """

    item: Integers  # [E], 0 to num_items - 1
    time: Integers  # [E], seconds
    label: NDArray[np.float32]  # [E], 0 or 1; the action of the event once it is history
    counters: Integers  # [E, 9], buckets 0 to COUNTER_BUCKETS - 1: what all users did with the item before, see below
    request_user: Integers  # [requests], 0 to num_users - 1
    request_begin: Integers  # [requests], first target
    request_end: Integers  # [requests]
    user_begin: Integers  # [requests], the user's first event
    history_end: Integers  # [requests], first event of the user that is not strictly earlier
    num_users: int
    num_items: int

    @property
    def num_requests(self) -> int:
        """Requests in the log."""
        return len(self.request_user)

    @property
    def request_time(self) -> Integers:
        """Seconds, [requests]."""
        return self.time[self.request_begin]


def read_log(path: Path) -> Log:
    """Reads an event log.

    Args:
        path: CSV (also .gz) or Parquet with columns user_id, item_id, timestamp (s), label (0 or 1) and, optionally,
            request_id; without it the events of a user at one time are one request. Or a MovieLens `.inter` file
            (tab-separated; user, item, rating, timestamp), where a rating of 4 or more is label 1.

    Raises:
        ValueError: a file without one of these columns, with an empty or malformed value, or without events.
    """
    table = _read_table(path)
    if table.num_rows == 0:
        raise ValueError(f"{path}: must hold at least one event, got none")
    columns = {name: _column(path, table, name) for name in ("user_id", "item_id", "timestamp")}
    if "label" in table.column_names:
        label = _numbers(path, table, "label")
        if not np.isin(label, (0.0, 1.0)).all():
            raise ValueError(f"{path}: column label must be 0 or 1, got {label[~np.isin(label, (0.0, 1.0))][0]}")
    elif "rating" in table.column_names:
        label = (_numbers(path, table, "rating") >= 4).astype(np.float64)
    else:
        raise ValueError(f"{path}: column label (or rating) is missing, got {table.column_names}")
    time = _numbers(path, table, "timestamp").astype(np.int64)
    request = _codes(_column(path, table, "request_id")) if "request_id" in table.column_names else None
    return make_log(_codes(columns["user_id"]), _codes(columns["item_id"]), time, label, request)


def make_log(
    user: Integers, item: Integers, time: Integers, label: NDArray[np.float64], request: Integers | None = None
) -> Log:
    """Sorts and groups events given as arrays [E]; users and items are codes from 0."""
    if request is None:
        request = np.zeros_like(user)
    order = np.lexsort((request, time, user))
    user, item, time, request = (values[order] for values in (user, item, time, request))
    changes = (np.diff(user) != 0) | (np.diff(time) != 0) | (np.diff(request) != 0)
    begin = np.concatenate([[0], np.flatnonzero(changes) + 1])
    end = np.concatenate([begin[1:], [len(user)]])
    moments = np.concatenate([[0], np.flatnonzero((np.diff(user) != 0) | (np.diff(time) != 0)) + 1])
    user_starts = np.concatenate([[0], np.flatnonzero(np.diff(user)) + 1])
    return Log(
        item=item,
        time=time,
        label=label[order].astype(np.float32),
        counters=item_counters(item, time, label[order]),
        request_user=user[begin],
        request_begin=begin,
        request_end=end,
        user_begin=user_starts[np.searchsorted(user_starts, begin, side="right") - 1],
        history_end=moments[np.searchsorted(moments, begin, side="right") - 1],
        num_users=int(user.max()) + 1,
        num_items=int(item.max()) + 1,
    )


def item_counters(item: Integers, time: Integers, label: NDArray[np.float64]) -> Integers:
    """How popular each event's item was before it: [E, 9] buckets.

    For the last 64th, the last eighth and all of the log's time, strictly before the event and over all users: events
    with the item, events with label 1 (two buckets for each doubling), and the share of the latter (0: no event).
    """
    order = np.lexsort((time, item))
    since = time - time.min()
    span = int(since.max())
    key = item * (span + 2)  # events of one item lie together, in order of time
    positives = np.concatenate([[0.0], np.cumsum(label[order])])
    sorted_keys = (key + since)[order]
    end = np.searchsorted(sorted_keys, key + since)
    columns = []
    for window in (span // 64, span // 8, span):
        begin = np.searchsorted(sorted_keys, key + np.maximum(since - window, 0))
        count, positive = end - begin, positives[end] - positives[begin]
        share = np.where(count > 0, 1 + 20 * positive / np.maximum(count, 1), 0)
        columns += [2 * np.log2(1 + count), 2 * np.log2(1 + positive), share]
    buckets: Integers = np.minimum(np.stack(columns, axis=1), COUNTER_BUCKETS - 1).astype(np.int64)
    return buckets


@dataclass(frozen=True)
class Split:
    """Requests by number: training, validation (the last of the training time) and test (after all of it)."""

    train: Integers
    validation: Integers
    test: Integers


def split_by_time(log: Log, test_from: float = 0.9, validation_share: float = 0.06) -> Split:
    """Splits requests at quantiles of the events' times; what has no history at all stays in.

    Raises:
        ValueError: a part without events of both labels: nothing could be learned or measured there.
    """
    test_time = np.quantile(log.time, test_from)
    validation_time = np.quantile(log.time, test_from * (1 - validation_share))
    time = log.request_time
    split = Split(
        train=np.flatnonzero(time <= validation_time),
        validation=np.flatnonzero((time > validation_time) & (time <= test_time)),
        test=np.flatnonzero(time > test_time),
    )
    for part, low, high in (
        ("training", -np.inf, validation_time),
        ("validation", validation_time, test_time),
        ("test", test_time, np.inf),
    ):
        labels = log.label[(log.time > low) & (log.time <= high)]
        if len(np.unique(labels)) < 2:
            raise ValueError(
                f"split_by_time: the {part} part, times in ({low}, {high}], must hold events of both labels, got "
                f"{len(labels)} events"
            )
    return split


def _read_table(path: Path) -> pa.Table:
    try:
        if path.suffix == ".parquet":
            return pa.parquet.read_table(path)
        delimiter = "\t" if path.suffix == ".inter" else ","
        with pa.input_stream(str(path), compression="detect") as stream:
            options = pa.csv.ParseOptions(delimiter=delimiter)
            table = pa.csv.read_csv(stream, parse_options=options)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: must be a CSV, Parquet or .inter file: {error}") from error
    # MovieLens headers carry a type: user_id:token
    return table.rename_columns([name.split(":")[0] for name in table.column_names])


def _column(path: Path, table: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise ValueError(f"{path}: column {name} is missing, got {table.column_names}")
    column = table[name]
    if column.null_count:
        raise ValueError(f"{path}: column {name} must not have empty values, got {column.null_count}")
    return column


def _numbers(path: Path, table: pa.Table, name: str) -> NDArray[np.float64]:
    column = _column(path, table, name)
    try:
        return np.asarray(pc.cast(column, pa.float64()).to_numpy(), dtype=np.float64)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: column {name} must be numbers: {error}") from error


def _codes(column: pa.ChunkedArray) -> Integers:
    return np.unique(column.to_numpy(), return_inverse=True)[1].astype(np.int64)
