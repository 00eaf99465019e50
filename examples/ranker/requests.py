"""All requests of an event log as one request-level batch, and their division by time."""

import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from stca.batch import RequestBatch
from stca.data import group_events, read_events

Integers = NDArray[np.int64]
COUNTERS, COUNTER_BUCKETS, TIME_BUCKETS = 9, 24, 64


@dataclass(frozen=True)
class Requests:
    """Requests of a log by user, time and request id; users and items are numbers from 0."""

    batch: RequestBatch  # a history for each user; targets have `counters` [T, 9] too, see `item_counters`
    history: Integers  # [requests], whose history
    begin: Integers  # [requests], first target
    end: Integers  # [requests]
    seen: Integers  # [requests], rows of the history that came strictly before
    time: Integers  # [requests], seconds

    @property
    def num_users(self) -> int:
        """Users of the log."""
        return self.batch.R

    @property
    def num_items(self) -> int:
        """Items of the log."""
        return int(self.batch.targets["item_id"].max()) + 1

    @property
    def checksum(self) -> int:
        """Another log, or the same with other labels, has another."""
        return checksum_of(*(x.numpy() for x in self.batch.tensors().values()))


def checksum_of(*arrays: NDArray[Any]) -> int:
    """Of their values and lengths."""
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(np.ascontiguousarray(array).data, zlib.crc32(str(array.shape).encode(), checksum))
    return checksum


def read_requests(path: Path) -> Requests:
    """Requests of a log of any form that `stca.data.read_events` knows, or of the history of a git clone.

    Raises:
        ValueError: a file that cannot be read, lacks a column, has an empty or malformed value, or holds no event.
    """
    events = pa.concat_tables(read_events(path))
    for name in ("user_id", "item_id"):
        number = np.unique(events[name].to_numpy(), return_inverse=True)[1]
        events = events.set_column(events.column_names.index(name), name, pa.array(number))
    return make_requests(events)


def make_requests(events: pa.Table) -> Requests:
    """Requests of events in any order, whose users and items are numbers from 0; a request has one time."""
    [batch] = group_events(events, tokens=2**62, lasting="refuse")
    assert batch.request_offsets is not None
    begin, end = batch.request_offsets[:-1], batch.request_offsets[1:]
    item, time, label = (
        x.numpy() for x in (batch.targets["item_id"], batch.targets["timestamp"], batch.labels["label"])
    )
    counters = torch.from_numpy(item_counters(item, time, label))
    return Requests(
        batch=replace(batch, targets={**batch.targets, "counters": counters}),
        history=batch.targets["user_id"][begin].numpy(),
        begin=begin.numpy(),
        end=end.numpy(),
        seen=batch.ranges()[begin, 1].numpy(),
        time=time[begin],
    )


def item_counters(item: Integers, time: Integers, label: NDArray[np.floating[Any]]) -> Integers:
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


def time_parts(time: Tensor) -> Tensor:
    """Where TIME_BUCKETS equal parts of these times begin, for torch.bucketize: all but the first part."""
    start, end = (int(moment) for moment in time.aminmax())
    # Python's integers: no product of theirs is too large. A part begins at the first whole moment within it.
    return torch.tensor([start + -(-part * (end - start + 1) // TIME_BUCKETS) for part in range(1, TIME_BUCKETS)])


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


def split_by_time(requests: Requests, test_from: float = 0.9, validation_share: float = 0.06) -> Split:
    """Splits requests at quantiles of the events' times; what has no history at all stays in.

    Raises:
        ValueError: a part without events of both labels: nothing could be learned or measured there.
    """
    targets = requests.batch
    moments, label = targets.targets["timestamp"].numpy(), targets.labels["label"].numpy()
    test_time = np.quantile(moments, test_from)
    validation_time = np.quantile(moments, test_from * (1 - validation_share))
    time = requests.time
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
        labels = label[(moments > low) & (moments <= high)]
        if len(np.unique(labels)) < 2:
            raise ValueError(
                f"split_by_time: the {part} part, times in ({low}, {high}], must hold events of both labels, got "
                f"{len(labels)} events"
            )
    return split
