"""Batches for the ranker: runs of consecutive requests of a user share one part of that user's history."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ranker.requests import TIME_BUCKETS, Integers, Requests, time_parts
from stca.batch import RequestBatch
from stca.lengths import oldest_prefix, random_window, recent_suffix
from stca.ops import request_gather


def log_bucket(values: Tensor) -> Tensor:
    """Two buckets for each doubling: minutes since an event, rows of a history."""
    return (2 * (values.double().clamp(min=0) + 1).log2()).long().clamp(max=TIME_BUCKETS - 1)


def one_window(visible: Tensor, keep: Tensor, offsets: Tensor) -> Tensor:
    """A random window for all targets of a history, before the first: apart they would fill the whole history."""
    window = random_window(visible[offsets[:-1]], keep[offsets[:-1]])
    return request_gather(window, offsets, total=len(visible))


# Ranges that each target may see [T, 2], rows that it does see [T] and offsets of the histories -> ranges [T, 2].
WINDOWS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "suffix": lambda visible, keep, _: recent_suffix(visible, keep),
    "random": one_window,
    "prefix": lambda visible, keep, _: oldest_prefix(visible, keep),
}


def group_requests(requests: Requests, chosen: Integers, per_history: int, max_span: int = 14 * 86400) -> Integers:
    """Runs of requests of one user that share a history, [runs, 2]: requests first to last, the last excluded.

    Args:
        requests: of the log.
        chosen: numbers of requests, ascending.
        per_history: requests of a run at most; 1: every request has its own history.
        max_span: seconds between the first and last request of a run at most, since all of a run measure the time
            since an event from the run's first request.
    """
    runs, first = [], 0
    history, time = requests.history[chosen], requests.time[chosen]
    for i in range(1, len(chosen) + 1):
        if (
            i == len(chosen)
            or i - first == per_history
            or chosen[i] != chosen[i - 1] + 1
            or history[i] != history[first]
            or time[i] - time[first] > max_span
        ):
            runs.append((chosen[first], chosen[i - 1] + 1))
            first = i
    return np.array(runs, dtype=np.int64).reshape(-1, 2)


def make_batch(
    requests: Requests, runs: Integers, lengths: Tensor | int, event_time: bool = False, window: str = "suffix"
) -> RequestBatch:
    """One batch of several runs; targets of run i see at most the last lengths[i] events before their request.

    Another `window` of WINDOWS takes as many events from elsewhere.

    With `event_time` the time of a row is when it happened, not how long ago: then a row is the same whoever asks, and
    the batch holds each distinct (item, label, time) once.
    """
    history = requests.history[runs[:, 0]]
    targets = np.stack([requests.begin[runs[:, 0]], requests.end[runs[:, 1] - 1]], axis=1)
    own = targets - requests.batch.target_offsets.numpy()[history][:, None]
    batch = requests.batch.select(torch.from_numpy(history), torch.from_numpy(own))
    keep = request_gather(torch.as_tensor(lengths).expand(len(runs)).contiguous(), batch.target_offsets, total=batch.T)
    batch = replace(batch, visible=WINDOWS[window](batch.ranges(), keep, batch.target_offsets)).trim()
    return by_event_time(batch, time_parts(requests.batch.targets["timestamp"])) if event_time else by_age(batch)


def by_age(batch: RequestBatch) -> RequestBatch:
    """Features of the ranker; the time of a row is how long it was before the first request of its history."""
    asked = batch.targets["timestamp"][batch.target_offsets[:-1]]
    age = request_gather(asked, batch.history_offsets, total=batch.N) - batch.history["timestamp"]
    return _with_features(batch, log_bucket(age / 60), torch.zeros(batch.T, dtype=torch.int64))


def by_event_time(batch: RequestBatch, parts: Tensor) -> RequestBatch:
    """Features of the ranker, each distinct row once; the time of a row is the part of the log's time that it is in."""
    times = (side["timestamp"] for side in (batch.history, batch.targets))
    batch = _with_features(batch, *(torch.bucketize(time, parts, right=True) for time in times))
    item, label, time = batch.history.values()
    codes, index = torch.unique((item * 2 + label) * TIME_BUCKETS + time, return_inverse=True)
    label, time = codes // TIME_BUCKETS % 2, codes % TIME_BUCKETS
    rows = {"item_id": codes // TIME_BUCKETS // 2, "label": label, "time_bucket": time}
    return replace(batch, history=rows, history_index=index)


def _with_features(batch: RequestBatch, event: Tensor, now: Tensor) -> RequestBatch:
    """Buckets in place of timestamps: of rows [N], and of what a row would have at the time of each request [T]."""
    history, targets = batch.history, batch.targets
    length = log_bucket(batch.ranges().diff(dim=1).flatten())
    known = {name: targets[name] for name in ("user_id", "item_id", "counters")}
    return replace(
        batch,
        history={"item_id": history["item_id"], "label": history["label"].long(), "time_bucket": event},
        targets=known | {"time_bucket": now, "length_bucket": length},
    )
