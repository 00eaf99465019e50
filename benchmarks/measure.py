"""How every benchmark measures: interleaved medians, peak memory of this process, and the machine's own floor."""

import ctypes
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import torch

Call = Callable[[], object]


def interleaved_ms(calls: Mapping[str, Call], rounds: int = 15, warmup: int = 3) -> dict[str, float]:
    """Median milliseconds of each call, run in turn A B C A B C, so that all meet the same noise of the machine."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: 1e3 * median(values) for name, values in times.items()}


def _status_kb(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def peak_extra_mb(call: Call) -> float:
    """Megabytes by which the resident memory of this process grows at its peak while `call` runs (Linux).

    Freed memory is given back to the system first, so that the call cannot hide in what an earlier one left.
    """
    call()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_kb("VmRSS")
    result = call()
    peak = _status_kb("VmHWM")
    del result
    return (peak - before) / 1024


def gemm_gflops(size: int = 2048) -> float:
    """Speed of torch's own float32 matrix product, GFLOP/s: the best of a few runs."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2e-9 * size**3 / best


def read_gbs(megabytes: int = 512) -> float:
    """Speed of reading memory by a sum over a tensor larger than the caches, GB/s: the best of a few runs."""
    x = torch.ones(megabytes * 2**18)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        x.sum()
        best = min(best, time.perf_counter() - start)
    return 4e-9 * x.numel() / best
