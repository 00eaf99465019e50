"""A run goes on without what hangs or dies, and times are the device's: tools/progress.py, benchmarks/gpu_clock.py."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import progress
import pytest
import torch
from gpu_clock import Clock
from progress import Progress, supervise

ROOT = Path(__file__).parents[2]
WORKER = """
import os, sys, time
from pathlib import Path
from progress import Progress
progress = Progress(Path(sys.argv[1]))
for each in range(6):
    if str(each) in progress.result["done"] or not progress.trying(str(each)):
        continue
    if each == 1:
        time.sleep(100)
    if each == 2:
        os.abort()
    if each == 3:
        progress.fault("3", "wrong")
        sys.exit("and the device takes no more")
    progress.result["done"].append(str(each))
    progress.write()
"""


def _supervise(script: str, file: Path, seconds: float, patience: float, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tools"))
    Progress(file, {"done": []})
    supervise(lambda _: [sys.executable, "-c", script, str(file)], file, seconds, patience)
    return json.loads(file.read_text())


def test_what_hangs_or_dies_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = _supervise(WORKER, tmp_path / "a.json", 200, 8, monkeypatch)
    assert result["done"] == ["0", "4", "5"]
    assert result["faults"] == ["1: no news in 8 s", "2: exit code -6", "3: wrong"]


def test_a_run_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = _supervise(WORKER.replace("1:", "0:"), tmp_path / "a.json", 10, 100, monkeypatch)
    assert result["done"] == []
    assert result["faults"] == ["0: out of time"]


def test_a_process_that_does_not_begin_ends_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="exit code 1, before anything was tried"):
        _supervise("raise ImportError", tmp_path / "a.json", 100, 100, monkeypatch)


def test_a_process_that_does_not_begin_again_ends_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where CUDA does not initialise after a fault; what was tried before has nothing to do with it."""
    worker = WORKER.replace("for each", "if progress.result['faults']: raise ImportError\nfor each").replace("1:", "9:")
    file = tmp_path / "a.json"
    with pytest.raises(SystemExit, match="exit code 1, before anything was tried"):
        _supervise(worker, file, 100, 100, monkeypatch)
    assert json.loads(file.read_text()) == {"done": ["0", "1"], "faults": ["2: exit code -6"]}


def test_time_that_is_over_before_anything_was_tried_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert _supervise("import time; time.sleep(100)", tmp_path / "a.json", 1, 100, monkeypatch)["faults"] == []


def test_a_process_that_does_not_die_is_the_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As one that waits inside of the driver: none begins beside it."""
    alive: list[subprocess.Popen[bytes]] = []
    die = subprocess.Popen.kill
    monkeypatch.setattr(subprocess.Popen, "kill", lambda process: alive.append(process))
    monkeypatch.setattr(progress, "DYING", 1.0)
    try:
        result = _supervise(WORKER.replace("1:", "0:"), tmp_path / "a.json", 100, 8, monkeypatch)
    finally:
        for process in set(alive):
            die(process)
            process.wait(30)
    assert result["faults"] == ["0: no news in 8 s, and has not ended 1 s after it was killed"]
    assert len(set(alive)) == 1


class _Device:
    """A GPU whose calls take 10 us, and a host that needs 30 us to enqueue one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host = self.device = 0.0  # us
        for name, value in {"_sleep": self.sleep, "Event": lambda **_: _Event(self)}.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def sleep(self, cycles: int) -> None:
        self.device = max(self.host, self.device) + cycles / 1000

    def call(self) -> None:
        self.host += 30
        self.device = max(self.host, self.device) + 10


class _Event:
    def __init__(self, device: _Device) -> None:
        self.device, self.at = device, 0.0

    def record(self) -> None:
        self.at = max(self.device.host, self.device.device)

    def query(self) -> bool:
        return self.device.host >= self.at

    def synchronize(self) -> None:
        self.device.host = max(self.device.host, self.at)

    def elapsed_time(self, end: "_Event") -> float:
        return (end.at - self.at) / 1000


def test_short_calls_are_timed_without_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sleeps longer where the host has not been ahead all the time: 50 calls take it 1.5 ms, the first sleep 1."""
    device = _Device(monkeypatch)
    assert Clock("cuda").ms(device.call, 50) == pytest.approx(0.03, rel=0.05)
    assert Clock("cuda", ahead=True).ms(device.call, 50) == pytest.approx(0.01)
    assert Clock("cuda", ahead=True).ms(device.call, 5) == pytest.approx(0.01)
