"""Training speed and peak memory, request-level against point-wise, each in a process of its own."""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ranker.batches import group_requests, make_batch
from ranker.model import Ranker
from ranker.requests import Integers, Requests
from stca.batch import RequestBatch, bce_loss, to_pointwise

Transform = Callable[[RequestBatch], RequestBatch]


def as_it_is(batch: RequestBatch) -> RequestBatch:
    """The batch itself: each distinct row once."""
    return batch


def status_kb(field: str) -> int:
    """A field of this process's status, in kB (Linux): VmRSS is the memory it holds, VmHWM the most it held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def _train_steps(
    requests: Requests, runs: Integers, length: int, transform: Transform, event_time: bool, threads: int
) -> dict[str, float]:
    """In a child process: one step to warm up, then one step a run."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = Ranker(requests.num_items, requests.num_users)
    optimizer = torch.optim.AdamW(model.parameters())
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status_kb("VmRSS")
    targets, sent, seconds = 0, 0, 0.0
    for step, run in enumerate([0, *range(len(runs))]):
        start = time.perf_counter()
        batch = transform(make_batch(requests, runs[run : run + 1], length, event_time))
        loss = bce_loss(model(batch), batch.labels["label"], batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step > 0:
            seconds += time.perf_counter() - start
            targets += batch.T
            sent += batch.nbytes()
    peak = status_kb("VmHWM")
    return {
        "targets_per_s": targets / seconds,
        "bytes_per_target": sent / targets,
        "peak_memory_mb": (peak - before) / 1024,
    }


def compare(
    requests: Requests, chosen: Integers, length: int, requests_per_history: int, event_time: bool = False
) -> dict[str, dict[str, float]]:
    """Training steps on requests with full histories: one history for many requests, one for each, one for each target.

    Args:
        requests: of the log.
        chosen: from which the few with the most history are taken.
        length: history rows of a target, at most.
        requests_per_history: of the first form.
        event_time: a fourth form, the first with each distinct history row once.

    Returns:
        For each form: training targets a second, bytes of a batch per target, peak memory in MB above the model's.
    """
    rows = requests.seen[chosen]
    full = chosen[rows >= min(length, np.quantile(rows, 0.9))]
    shared = group_requests(requests, full, requests_per_history)
    shared = shared[np.argsort(shared[:, 0] - shared[:, 1], kind="stable")[:2]]  # the longest
    single = group_requests(requests, np.concatenate([np.arange(*run) for run in shared]), 1)
    forms: dict[str, tuple[Integers, Transform]] = {
        "shared by requests": (shared, RequestBatch.expand),
        "request-level": (single[:12], RequestBatch.expand),
        "point-wise": (single[:6], to_pointwise),
    }
    if event_time:
        forms["shared, distinct rows"] = (shared, as_it_is)
    results = {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name, (runs, transform) in forms.items():
            arguments = requests, runs, length, transform, event_time, torch.get_num_threads()
            results[name] = pool.apply(_train_steps, arguments)
    return results
