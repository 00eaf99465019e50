"""Request-level batches: targets of consecutive requests of a user share one slice of that user's history."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ranker.logs import Integers, Log

TIME_BUCKETS = 64


@dataclass
class Batch:
    """Tensors of a few shared histories. N history rows, T targets, R histories."""

    history_item: Tensor  # [N]
    history_action: Tensor  # [N], the event's label
    history_age: Tensor  # [N], bucket of the time since the event
    history_offsets: Tensor  # [R + 1]
    item: Tensor  # [T]
    user: Tensor  # [T]
    counters: Tensor  # [T, 9], buckets of the item's popularity
    length: Tensor  # [T], bucket of the number of rows that the target sees
    visible: Tensor  # [T, 2]: rows [begin, end) of its own history that a target sees
    target_offsets: Tensor  # [R + 1]
    label: Tensor  # [T]

    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        tensors = (getattr(self, field.name) for field in fields(self))
        return sum(tensor.nbytes for tensor in tensors)


def log_bucket(values: NDArray[np.float64] | Integers) -> Integers:
    """Two buckets for each doubling: minutes since an event, rows of a history."""
    bucket: Integers = np.clip(2 * np.log2(np.maximum(values, 0) + 1), 0, TIME_BUCKETS - 1).astype(np.int64)
    return bucket


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


def make_batch(log: Log, runs: Sequence[Integers], lengths: Sequence[int]) -> Batch:
    """One batch of several runs; targets of run i see at most the last lengths[i] events before their request."""
    rows, ages, targets, owners, visible = [], [], [], [], []
    history_counts, target_counts = [0], [0]
    for run, length in zip(runs, lengths, strict=True):
        ends, starts = log.history_end[run], log.user_begin[run]
        begins = np.maximum(starts, ends - length)
        first, last = int(begins[0]), int(ends[-1])
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
    return Batch(
        history_item=torch.from_numpy(log.item[row]),
        history_action=torch.from_numpy(log.label[row].astype(np.int64)),
        history_age=torch.from_numpy(log_bucket(np.concatenate(ages) / 60)),
        history_offsets=torch.from_numpy(np.cumsum(history_counts)),
        item=torch.from_numpy(log.item[target]),
        user=torch.from_numpy(np.concatenate(owners)),
        counters=torch.from_numpy(log.counters[target]),
        length=torch.from_numpy(log_bucket(seen[:, 1] - seen[:, 0])),
        visible=torch.from_numpy(seen),
        target_offsets=torch.from_numpy(np.cumsum(target_counts)),
        label=torch.from_numpy(log.label[target]),
    )


def beta_lengths(
    rng: np.random.Generator, count: int, minimum: int, average: int, maximum: int, alpha: float = 0.3
) -> Integers:
    """Random history lengths with that average, U-shaped for small alpha (mission: length-extrapolative training)."""
    if maximum <= minimum:
        return np.full(count, maximum)
    beta = alpha * (maximum - average) / (average - minimum)
    lengths = minimum + rng.beta(alpha, beta, count) * (maximum - minimum)
    return (np.round(lengths / 8) * 8).astype(np.int64)


def pack(order: Integers, tokens: Integers, budget: int) -> Iterator[Integers]:
    """Cuts a sequence of runs into batches of at most `budget` tokens, or of one run that alone has more."""
    begin, total = 0, 0
    for i, run in enumerate(order):
        if i > begin and total + tokens[run] > budget:
            yield order[begin:i]
            begin, total = i, 0
        total += int(tokens[run])
    if begin < len(order):
        yield order[begin:]
