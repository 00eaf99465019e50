"""Event logs, from a file to arrays that lie grouped by user and request in order of time."""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stca.data import read_events
from stca.data.requests import Integers as Integers
from stca.data.requests import find_requests, request_numbers

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
    def checksum(self) -> int:
        """Another log, or the same with other labels, has another."""
        return checksum_of(self.request_user, self.request_begin, self.item, self.time, self.label)

    @property
    def num_requests(self) -> int:
        """Requests in the log."""
        return len(self.request_user)

    @property
    def request_time(self) -> Integers:
        """Seconds, [requests]."""
        return self.time[self.request_begin]


def checksum_of(*arrays: NDArray[Any]) -> int:
    """Of their values and lengths."""
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(np.ascontiguousarray(array).data, zlib.crc32(str(array.shape).encode(), checksum))
    return checksum


def read_log(path: Path) -> Log:
    """Reads an event log of any form that `stca.data.read_events` knows, or the history of a git clone.

    Raises:
        ValueError: a file that cannot be read, lacks a column, has an empty or malformed value, or holds no event.
    """
    events = pa.concat_tables(read_events(path))
    column = {name: events[name].to_numpy() for name in ("user_id", "item_id", "timestamp", "label")}
    user, item = (np.unique(column[name], return_inverse=True)[1] for name in ("user_id", "item_id"))
    return make_log(user, item, column["timestamp"], column["label"].astype(np.float64), request_numbers(events))


def make_log(
    user: Integers, item: Integers, time: Integers, label: NDArray[np.float64], request: Integers | None = None
) -> Log:
    """Sorts and groups events given as arrays [E]; users and items are codes from 0, and a request has one time."""
    requests = find_requests(user, time, request, lasting="refuse")
    item, time, label = item[requests.order], time[requests.order], label[requests.order]
    return Log(
        item=item,
        time=time,
        label=label.astype(np.float32),
        counters=item_counters(item, time, label),
        request_user=requests.user,
        request_begin=requests.begin,
        request_end=requests.end,
        user_begin=requests.user_begin,
        history_end=requests.history_end,
        num_users=int(user.max()) + 1,
        num_items=int(item.max()) + 1,
    )


def item_counters(item: Integers, time: Integers, label: NDArray[np.float64]) -> Integers:
    """How popular each event's item was before it: [E, 9] buckets.

    For the last 64th, the last eighth and all of the log's time, strictly before the event and over all users: events
    with the item, events with label 1 (two buckets for each doubling), and the share of the latter (0: no event).
    """
    item = np.unique(item, return_inverse=True)[1]
    since = (time - time.min()).view(np.uint64)  # a difference of int64 may be too large for int64
    moments, moment = np.unique(since, return_inverse=True)
    key = item * (len(moments) + 1) + moment  # below E^2: events of one item lie together, in order of time
    order = np.argsort(key, kind="stable")
    positives = np.concatenate([[0.0], np.cumsum(label[order])])
    sorted_keys = key[order]
    end = np.searchsorted(sorted_keys, key)
    columns = []
    for share_of_time in (64, 8, 1):
        window = moments[-1] // np.uint64(share_of_time)
        opened = np.searchsorted(moments, np.where(since > window, since - window, np.uint64(0)))
        begin = np.searchsorted(sorted_keys, key - moment + opened)
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

    @property
    def checksum(self) -> int:
        """Another division has another."""
        return checksum_of(self.train, self.validation, self.test)


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
