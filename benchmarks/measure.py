"""How every benchmark measures: interleaved medians, peak memory of this process, and the machine's own floor."""

import ctypes
import math
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import torch

Call = Callable[[], object]
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
_ORDER = random.Random(0)
_PROBE = 768  # rows of the square matrices whose product is the probe of a case: a few milliseconds, full speed


def keep_freed_memory() -> None:
    """Makes the C library keep freed memory, so that no call pays for pages that another one's result gave back.

    As the allocators do that torch's tuning guide advises (jemalloc, tcmalloc). By itself glibc takes every tensor of
    more than 32 MB from the system and gives it back, with every way of computing it.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(_TRIM_THRESHOLD, -1)  # never
    libc.mallopt(_MMAP_MAX, 0)


def interleaved_ms(
    calls: Mapping[str, Call], rounds: int = 15, seconds: float = 1e9, warmup: int = 1, slow: float = math.inf
) -> dict[str, float]:
    """Median milliseconds of each call, run in turns, so that all meet the same noise of the machine.

    In each turn in another order, never the same from case to case: the one after the probe finds its inputs out of
    the caches, and brings them in for the next.

    Ends after `rounds`, or, from the third round on, once `seconds` have passed. A call that takes as long as that by
    itself runs once, and so does one that takes a tenth of it and `slow` times as long as the first call.
    """
    first = next(iter(calls))
    times: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for turn in range(warmup + rounds):
        if turn >= warmup + 3 and time.perf_counter() - began > seconds:
            break
        for name, call in _ORDER.sample(list(calls.items()), k=len(calls)):
            if times[name] and times[name][0] > min(seconds, max(0.1 * seconds, slow * times[first][0])):
                continue
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * median(values[warmup:] or values) for name, values in times.items()}


def _status_kb(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def peak_extra_mb(call: Call) -> float:
    """Megabytes by which the resident memory of this process grows at its peak while `call` runs (Linux).

    Freed memory is given back to the system first, so that the call cannot hide in what an earlier one left. What it
    allocates only once must be there: it ran before.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_kb("VmRSS")
    result = call()
    peak = _status_kb("VmHWM")
    del result
    return max(peak - before, 0) / 1024


def gemm_gflops(size: int = 2048) -> float:
    """Speed of torch's own float32 matrix product, GFLOP/s: the best of a few runs."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2e-9 * size**3 / _best_seconds(lambda: torch.mm(a, b))


def read_gbs(megabytes: int = 512) -> float:
    """Speed of reading memory by a sum over a tensor larger than the caches, GB/s: the best of a few runs."""
    x = torch.ones(megabytes * 2**18)
    return 4e-9 * x.numel() / _best_seconds(x.sum)


def _best_seconds(call: Call, runs: int = 5) -> float:
    best = float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


class Probe:
    """A matrix product that runs in turn with what is measured: the speed of the machine at that very time.

    On a machine that others use as well, a floor from before would be too fast or too slow by half.
    """

    def __init__(self) -> None:
        self._a, self._b = torch.randn(_PROBE, _PROBE), torch.randn(_PROBE, _PROBE)

    def __call__(self) -> torch.Tensor:
        """One product."""
        return torch.mm(self._a, self._b)

    @staticmethod
    def gflops(ms: float) -> float:
        """Its speed, from the milliseconds that it took."""
        return 2e-6 * _PROBE**3 / ms
