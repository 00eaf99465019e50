"""Training speed and peak memory, request-level against point-wise, each in a process of its own."""

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ranker.batches import HISTORY_COLUMNS, Batch, group_requests, make_batch
from ranker.logs import Integers, Log
from ranker.model import Ranker
from stca.batch import ranges_to_index

Transform = Callable[[Batch], Batch]


def pointwise(batch: Batch) -> Batch:
    """The same targets, each with a copy of the history rows that it sees."""
    batch = batch.every_row()
    histories = batch.target_offsets.numel() - 1
    of_target = torch.repeat_interleave(torch.arange(histories), batch.target_offsets.diff())
    counts = batch.visible[:, 1] - batch.visible[:, 0]
    rows, offsets = ranges_to_index(batch.history_offsets[of_target] + batch.visible[:, 0], counts)
    return replace(
        batch,
        **{name: getattr(batch, name)[rows] for name in HISTORY_COLUMNS},
        history_offsets=offsets,
        visible=torch.stack([torch.zeros_like(counts), counts], dim=1),
        target_offsets=torch.arange(len(counts) + 1),
    )


def as_it_is(batch: Batch) -> Batch:
    """The batch itself: each distinct row once."""
    return batch


def status_kb(field: str) -> int:
    """A field of this process's status, in kB (Linux): VmRSS is the memory it holds, VmHWM the most it held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def _train_steps(
    log: Log, runs: list[Integers], length: int, transform: Transform, event_time: bool, threads: int
) -> dict[str, float]:
    """In a child process: one step to warm up, then one step a run."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = Ranker(log.num_items, log.num_users)
    optimizer = torch.optim.AdamW(model.parameters())
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status_kb("VmRSS")
    targets, sent, seconds = 0, 0, 0.0
    for step, run in enumerate([runs[0], *runs]):
        start = time.perf_counter()
        batch = transform(make_batch(log, [run], [length], event_time))
        loss = F.binary_cross_entropy_with_logits(model(batch), batch.label)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step > 0:
            seconds += time.perf_counter() - start
            targets += batch.label.numel()
            sent += batch.nbytes()
    peak = status_kb("VmHWM")
    return {
        "targets_per_s": targets / seconds,
        "bytes_per_target": sent / targets,
        "peak_memory_mb": (peak - before) / 1024,
    }


def compare(
    log: Log, requests: Integers, length: int, requests_per_history: int, event_time: bool = False
) -> dict[str, dict[str, float]]:
    """Training steps on requests with full histories: one history for many requests, one for each, one for each target.

    Args:
        log: the log.
        requests: from which the few with the most history are taken.
        length: history rows of a target, at most.
        requests_per_history: of the first form.
        event_time: a fourth form, the first with each distinct history row once.

    Returns:
        For each form: training targets a second, bytes of a batch per target, peak memory in MB above the model's.
    """
    rows = log.history_end[requests] - log.user_begin[requests]
    full = requests[rows >= min(length, np.quantile(rows, 0.9))]
    shared = group_requests(log, full, requests_per_history)
    shared = sorted(shared, key=len, reverse=True)[:2]
    single = [np.array([request]) for run in shared for request in run]
    forms: dict[str, tuple[list[Integers], Transform]] = {
        "shared by requests": (shared, Batch.every_row),
        "request-level": (single[:12], Batch.every_row),
        "point-wise": (single[:6], pointwise),
    }
    if event_time:
        forms["shared, distinct rows"] = (shared, as_it_is)
    results = {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name, (runs, transform) in forms.items():
            arguments = log, runs, length, transform, event_time, torch.get_num_threads()
            results[name] = pool.apply(_train_steps, arguments)
    return results
