"""Request-level batches: targets of consecutive requests of a user share one slice of that user's history."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ranker.logs import Integers, Log
from stca.lengths import oldest_prefix, random_window, recent_suffix

TIME_BUCKETS = 64
HISTORY_COLUMNS = ("history_item", "history_action", "history_time")


def random_window_of_run(visible: Tensor, keep: int) -> Tensor:
    """One random window for all requests of a run, before the first: apart they would fill the whole history."""
    return random_window(visible[:1], keep).expand(len(visible), 2)


# [requests of a run, 2], the rows that each may see, and a length -> the rows that it does see.
WINDOWS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "suffix": recent_suffix,
    "random": random_window_of_run,
    "prefix": oldest_prefix,
}


@dataclass
class Batch:
    """Tensors of a few shared histories. N history rows, T targets, R histories; P distinct rows, or N."""

    history_item: Tensor  # [P]
    history_action: Tensor  # [P], the event's label
    history_time: Tensor  # [P], bucket of the time since the event, or of the event
    history_index: Tensor | None  # [N], which of the P rows each history row is; None: P = N, row n itself
    history_offsets: Tensor  # [R + 1]
    item: Tensor  # [T]
    user: Tensor  # [T]
    time: Tensor  # [T], what history_time would be for an event at the time of the request
    counters: Tensor  # [T, 9], buckets of the item's popularity
    length: Tensor  # [T], bucket of the number of rows that the target sees
    visible: Tensor  # [T, 2]: rows [begin, end) of its own history that a target sees
    target_offsets: Tensor  # [R + 1]
    label: Tensor  # [T]

    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        tensors = (getattr(self, field.name) for field in fields(self))
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def every_row(self) -> "Batch":
        """The same batch with all N history rows instead of the distinct ones."""
        if self.history_index is None:
            return self
        columns = {name: getattr(self, name)[self.history_index] for name in HISTORY_COLUMNS}
        return replace(self, **columns, history_index=None)


def log_bucket(values: NDArray[np.float64] | Integers) -> Integers:
    """Two buckets for each doubling: minutes since an event, rows of a history."""
    bucket: Integers = np.clip(2 * np.log2(np.maximum(values, 0) + 1), 0, TIME_BUCKETS - 1).astype(np.int64)
    return bucket


def event_bucket(log: Log, time: Integers) -> Integers:
    """Which of TIME_BUCKETS equal parts of the log's time a moment lies in."""
    start, end = int(log.time.min()), int(log.time.max())
    # Python's integers: no product of theirs is too large. A part begins at the first whole moment within it.
    begins = [start + -(-part * (end - start + 1) // TIME_BUCKETS) for part in range(1, TIME_BUCKETS)]
    return np.searchsorted(np.array(begins, dtype=np.int64), time, side="right")


def group_requests(log: Log, requests: Integers, per_history: int, max_span: int = 14 * 86400) -> list[Integers]:
    """Cuts requests (in the log's order) into runs of one user that share a history.

    Args:
        log: the log.
        requests: numbers of requests, ascending.
        per_history: requests of a run at most; 1: every request has its own history.
        max_span: seconds between the first and last request of a run at most, since all of a run measure the time
            since an event from the run's first request.
    """
    runs: list[Integers] = []
    user, time = log.request_user, log.request_time
    begin = 0
    for i in range(1, len(requests) + 1):
        first = requests[begin]
        if (
            i == len(requests)
            or i - begin == per_history
            or user[requests[i]] != user[first]
            or time[requests[i]] - time[first] > max_span
        ):
            runs.append(requests[begin:i])
            begin = i
    return runs


def make_batch(
    log: Log, runs: Sequence[Integers], lengths: Sequence[int], event_time: bool = False, window: str = "suffix"
) -> Batch:
    """One batch of several runs; targets of run i see at most the last lengths[i] events before their request.

    Another `window` of WINDOWS takes as many events from elsewhere.

    With `event_time` the time of a row is when it happened, not how long ago: then a row is the same whoever asks, and
    the batch holds each distinct (item, action, time) once.
    """
    rows, ages, targets, owners, visible = [], [], [], [], []
    history_counts, target_counts = [0], [0]
    for run, length in zip(runs, lengths, strict=True):
        before = torch.from_numpy(np.stack([log.user_begin[run], log.history_end[run]], axis=1))
        begins, ends = WINDOWS[window](before, length).numpy().T
        first, last = int(begins.min()), int(ends.max())
        row = np.arange(first, last)
        rows.append(row)
        ages.append(log.request_time[run[0]] - log.time[row])
        sizes = log.request_end[run] - log.request_begin[run]
        targets.append(np.arange(log.request_begin[run[0]], log.request_begin[run[0]] + sizes.sum()))
        if not np.array_equal(log.request_end[run[:-1]], log.request_begin[run[1:]]):
            targets[-1] = np.concatenate([np.arange(log.request_begin[r], log.request_end[r]) for r in run])
        owners.append(np.repeat(log.request_user[run], sizes))
        visible.append(np.repeat(np.stack([begins - first, ends - first], axis=1), sizes, axis=0))
        history_counts.append(len(row))
        target_counts.append(int(sizes.sum()))
    row, target = np.concatenate(rows), np.concatenate(targets)
    seen = np.concatenate(visible)
    index, now = None, np.zeros_like(target)
    item, action, when = log.item[row], log.label[row].astype(np.int64), log_bucket(np.concatenate(ages) / 60)
    if event_time:
        now, when = event_bucket(log, log.time[target]), event_bucket(log, log.time[row])
        distinct, index = np.unique((item * 2 + action) * TIME_BUCKETS + when, return_inverse=True)
        item, action, when = distinct // TIME_BUCKETS // 2, distinct // TIME_BUCKETS % 2, distinct % TIME_BUCKETS
    return Batch(
        history_item=torch.from_numpy(item),
        history_action=torch.from_numpy(action),
        history_time=torch.from_numpy(when),
        history_index=None if index is None else torch.from_numpy(index),
        history_offsets=torch.from_numpy(np.cumsum(history_counts)),
        item=torch.from_numpy(log.item[target]),
        user=torch.from_numpy(np.concatenate(owners)),
        time=torch.from_numpy(now),
        counters=torch.from_numpy(log.counters[target]),
        length=torch.from_numpy(log_bucket(seen[:, 1] - seen[:, 0])),
        visible=torch.from_numpy(seen),
        target_offsets=torch.from_numpy(np.cumsum(target_counts)),
        label=torch.from_numpy(log.label[target]),
    )
