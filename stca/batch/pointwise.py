"""Ordinary point-wise samples, each with its own copy of a history, to request-level batches and back."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stca.batch.ranges import ranges_to_index
from stca.batch.request_batch import RequestBatch


@dataclass(frozen=True)
class Sample:
    """One target with everything that is known of it, as a point-wise log has it.

    Args:
        user: whose it is.
        time: of the request, in the unit of the window and of the events' times.
        history: features of the user's earlier events, oldest first, name to [L, ...].
        target: features of the target, name to [...].
        labels: name to a number.
        request: tells requests of one user at one time apart.
    """

    user: Hashable
    time: float
    history: Mapping[str, Tensor]
    target: Mapping[str, Tensor]
    labels: Mapping[str, float] = field(default_factory=dict)
    request: Hashable = None


def from_pointwise(samples: Sequence[Sample], *, window: float = 0.0, event_time: str | None = None) -> RequestBatch:
    """One batch of samples, with the history that samples of a request, or of requests close in time, have in common.

    Requests of a user that begin within `window` of the first share one history: their histories laid over each other
    where the end of the earlier is the beginning of the later. Each target's `visible` range holds exactly the rows
    of its own sample, so no target sees another request's later events.

    Args:
        samples: of one set of features. Those of a request have the same history.
        window: time over which requests of a user share a history; 0: requests at one time only.
        event_time: name of the history feature that is the time of the event. None: not checked.

    Returns:
        A batch with histories in order of the first sample of each, requests in order of time, and samples of a
        request in their order; `request_offsets` tells requests apart.

    Raises:
        ValueError: features that differ between samples, samples of one request with different histories, a user who
            is None or NaN, a time that is no number, or, with `event_time`, an event that is not strictly before its
            sample's request: it would be the future.

    Example:
        >>> first, later = torch.tensor([1, 2]), torch.tensor([1, 2, 3])
        >>> samples = [
        ...     stca.batch.Sample("ann", 10.0, {"item_id": first}, {"item_id": torch.tensor(5)}),
        ...     stca.batch.Sample("ann", 12.0, {"item_id": later}, {"item_id": torch.tensor(6)}),
        ... ]
        >>> batch = stca.batch.from_pointwise(samples, window=60)
        >>> batch.history["item_id"].tolist(), batch.visible.tolist()
        ([1, 2, 3], [[0, 2], [0, 3]])
    """
    if not window >= 0:
        raise ValueError(f"from_pointwise: window must be at least 0, got {window}")
    _check_samples(samples, event_time)
    codes = _row_codes(samples)
    order: list[int] = []  # of samples in the batch
    rows: list[tuple[int, int, int]] = []  # pieces of the histories: sample, rows [begin, end) of its own
    history_ends, target_ends, request_ends, visible = [0], [0], [0], []
    for group in _groups(samples, window):
        merged: list[int] = []
        for request in group:
            own = codes[request[0]]
            begin = len(merged) - _overlap(merged, own)
            for other in request[1:]:
                if codes[other] != own:
                    raise ValueError(
                        f"from_pointwise: samples of a request must have one history, samples[{other}] differs from "
                        f"samples[{request[0]}]"
                    )
            rows.append((request[0], len(merged) - begin, len(own)))
            merged += own[len(merged) - begin :]
            visible += [[begin, begin + len(own)]] * len(request)
            order += request
            request_ends.append(len(order))
        history_ends.append(history_ends[-1] + len(merged))
        target_ends.append(len(order))
    example = samples[0] if samples else Sample(None, 0, {}, {})
    return RequestBatch(
        history={
            name: torch.cat([samples[i].history[name][begin:end] for i, begin, end in rows]) for name in example.history
        },
        history_offsets=torch.tensor(history_ends),
        targets={name: torch.stack([samples[i].target[name] for i in order]) for name in example.target},
        target_offsets=torch.tensor(target_ends),
        labels={name: torch.tensor([samples[i].labels[name] for i in order]) for name in example.labels},
        visible=torch.tensor(visible, dtype=torch.int64).reshape(-1, 2),
        request_offsets=torch.tensor(request_ends),
    )


def to_pointwise(batch: RequestBatch) -> RequestBatch:
    """The same targets, each with a copy of the history rows that it sees: R = T, as without request-level batching.

    Example:
        >>> rows, targets, offsets = torch.tensor([1, 2]), torch.tensor([7, 8]), torch.tensor([0, 2])
        >>> batch = stca.batch.RequestBatch({"item_id": rows}, offsets, {"item_id": targets}, offsets)
        >>> stca.batch.to_pointwise(batch).history["item_id"].tolist()
        [1, 2, 1, 2]
    """
    visible = batch.ranges()
    first = torch.repeat_interleave(batch.history_offsets[:-1], batch.target_offsets.diff()) + visible[:, 0]
    index, offsets = ranges_to_index(first, visible[:, 1] - visible[:, 0])
    if batch.history_index is not None:
        index = batch.history_index[index]
    return RequestBatch(
        history={name: x[index] for name, x in batch.history.items()},
        history_offsets=offsets,
        targets=batch.targets,
        target_offsets=torch.arange(batch.T + 1, device=offsets.device),
        labels=batch.labels,
        request_offsets=batch.request_offsets,
    )


def _check_samples(samples: Sequence[Sample], event_time: str | None) -> None:
    for i, sample in enumerate(samples):
        if sample.user is None or sample.user != sample.user:
            raise ValueError(f"from_pointwise: samples[{i}].user must be somebody, got {sample.user}")
        if not math.isfinite(sample.time):
            raise ValueError(f"from_pointwise: samples[{i}].time must be a number, got {sample.time}")
        for kind in ("history", "target", "labels"):
            wanted, got = (set(getattr(each, kind)) for each in (samples[0], sample))
            if wanted != got:
                raise ValueError(
                    f"from_pointwise: samples[{i}].{kind} must have the features {sorted(wanted)} of samples[0], got "
                    f"{sorted(got)}"
                )
        for name, x in sample.history.items():
            first = samples[0].history[name]
            if (x.dtype, x.shape[1:]) != (first.dtype, first.shape[1:]):
                raise ValueError(
                    f"from_pointwise: samples[{i}].history.{name} must be {first.dtype} [L, *{list(first.shape[1:])}], "
                    f"got {x.dtype} {list(x.shape)}"
                )
        for name, x in sample.target.items():
            first = samples[0].target[name]
            if (x.dtype, x.shape) != (first.dtype, first.shape):
                raise ValueError(
                    f"from_pointwise: samples[{i}].target.{name} must be {first.dtype} {list(first.shape)}, got "
                    f"{x.dtype} {list(x.shape)}"
                )
        lengths = {name: len(x) for name, x in sample.history.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"from_pointwise: samples[{i}].history must have one length, got {lengths}")
        if event_time is not None and len(sample.history[event_time]):
            latest = sample.history[event_time].max().item()
            if not latest < sample.time:
                raise ValueError(
                    f"from_pointwise: events of samples[{i}] must be before its request at {sample.time}, got one at "
                    f"{latest}"
                )


def _groups(samples: Sequence[Sample], window: float) -> list[list[list[int]]]:
    """Samples by shared history and request, requests in order of time."""
    users: dict[Hashable, dict[tuple[float, Hashable], list[int]]] = {}
    for i, sample in enumerate(samples):
        users.setdefault(sample.user, {}).setdefault((sample.time, sample.request), []).append(i)
    groups: list[list[list[int]]] = []
    for requests in users.values():
        start: float | None = None
        for (time, _), members in sorted(requests.items(), key=lambda item: item[0][0]):
            if start is None or time - start > window:
                groups.append([])
                start = time
            groups[-1].append(members)
    return sorted(groups, key=lambda group: min(i for request in group for i in request))


def _row_codes(samples: Sequence[Sample]) -> list[list[int]]:
    """A number for every history row, equal where all of its features are: [sample][row]."""
    names = sorted(samples[0].history) if samples else []
    if not names:
        return [[] for _ in samples]
    columns = [_bytes_of_rows(torch.cat([sample.history[name] for sample in samples])) for name in names]
    table = np.ascontiguousarray(np.concatenate(columns, axis=1))
    codes = np.unique(table.view(np.dtype((np.void, table.shape[1]))), return_inverse=True)[1].reshape(-1).tolist()
    ends = np.cumsum([len(sample.history[names[0]]) for sample in samples]).tolist()
    return [codes[begin:end] for begin, end in pairwise([0, *ends])]


def _bytes_of_rows(x: Tensor) -> NDArray[np.uint8]:
    """[L, bytes of a row]."""
    rows = x.detach().cpu().reshape(len(x), math.prod(x.shape[1:])).contiguous()
    return rows.view(torch.uint8).numpy()


def _overlap(earlier: list[int], later: list[int]) -> int:
    """Length of the longest end of `earlier` that `later` begins with (prefix function of Knuth, Morris, Pratt)."""
    joined = [*later, -1, *earlier[max(0, len(earlier) - len(later)) :]]
    border = [0] * len(joined)
    for i in range(1, len(joined)):
        length = border[i - 1]
        while length and joined[i] != joined[length]:
            length = border[length - 1]
        border[i] = length + (joined[i] == joined[length])
    return border[-1] if earlier and later else 0
