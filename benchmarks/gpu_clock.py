"""How benchmarks/gpu.py measures: events of the device, interleaved medians, and what torch's allocator held."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

_BATCH_MS = 5.0  # calls in a row between two events take about that long
_LEAST_CYCLES, _MOST_CYCLES = 1 << 20, 1 << 28  # that the device sleeps: from about half a millisecond on


class Clock:
    """Times calls on a device; on the CPU by the host's clock.

    Args:
        device: "cuda" or "cpu".
        ahead: Whether the device sleeps until the host has enqueued all calls. What is timed then is the device alone,
            also of calls that take it less time than they take the host; they must not wait for it.
    """

    def __init__(self, device: str, ahead: bool = False) -> None:
        self.cuda, self.ahead = device == "cuda", ahead

    def wait(self) -> None:
        """Until everything enqueued has run."""
        if self.cuda:
            torch.cuda.synchronize()

    def ms(self, call: Callable[[], object], times: int) -> float:
        """Milliseconds of one call, on average over several in a row."""
        if not self.cuda:
            start = time.perf_counter()
            for _ in range(times):
                call()
            return 1e3 * (time.perf_counter() - start) / times
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        cycles = _LEAST_CYCLES
        while True:
            if self.ahead:
                torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
            begin.record()
            for _ in range(times):
                call()
            end.record()
            late = begin.query()  # type: ignore[no-untyped-call]  # the device was there before the host was done
            end.synchronize()
            if not (self.ahead and late and cycles < _MOST_CYCLES):
                return float(begin.elapsed_time(end)) / times
            cycles *= 2

    def medians(self, calls: Mapping[str, Callable[[], object]], rounds: int = 9) -> dict[str, float]:
        """Median milliseconds of each call, all in turn, A B C A B C."""
        batch = {}
        for name, call in calls.items():
            self.ms(call, 1)
            batch[name] = min(max(int(_BATCH_MS / max(self.ms(call, 1), 1e-3)), 1), 50)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                times[name].append(self.ms(call, batch[name]))
        return {name: median(values) for name, values in times.items()}

    def peak_extra_mb(self, call: Callable[[], object]) -> float:
        """Megabytes that torch's allocator holds at the peak of a call beyond those before it; 0 on the CPU."""
        if not self.cuda:
            return 0.0
        call()
        self.wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        self.wait()
        del result
        return (torch.cuda.max_memory_allocated() - before) / 2**20
