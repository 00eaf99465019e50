"""What tools/gpu_tune.py makes of times and of faults, with made-up ones."""

import json
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import gpu_tune
import pytest
import torch
import tuning
from gpu_clock import Clock
from progress import Progress
from trials import Trial


@pytest.mark.parametrize(
    ("ms", "before", "best"),
    [
        ({0: [1.0, 4.0], 1: [2.0, 1.0]}, 0, 1),  # in all twice as fast
        ({0: [1.0, 1.0], 1: [0.99, 0.99]}, 0, 0),  # less than the clock errs by
        ({0: [1.0, 1.0], 1: [0.99, 0.99]}, 1, 1),
        ({1: [3.0], 2: [2.0]}, 0, 2),  # what stands now gave wrong results
        ({0: [1.0]}, 0, 0),
    ],
)
def test_best_variant(ms: dict[int, list[float]], before: int, best: int) -> None:
    assert tuning.best_variant(ms, before) == best


@pytest.mark.parametrize(
    ("ms", "before", "most"),
    [
        ({8: (1.0, 2.0), 16: (2.0, 2.1), 32: (4.0, 2.0)}, 8, 16),
        ({8: (1.0, 2.0), 16: (2.0, 2.01), 32: (4.0, 2.0)}, 8, 8),  # as good as it is
        ({8: (2.0, 1.0), 16: (3.0, 1.0)}, 16, 0),  # the first is never faster
        ({8: (1.0, 2.0), 16: (1.0, 3.0)}, 0, 16),  # always
        ({8: (1.0, 3.0), 16: (1.2, 1.0), 32: (1.0, 3.0)}, 0, 32),  # one size that stands out does not count
    ],
)
def test_threshold(ms: dict[int, tuple[float, float]], before: int, most: int) -> None:
    assert tuning.threshold(ms, before) == most


class _Kernels:
    """Choices without kernels; the time of a call is what `cost` says of them."""

    def __init__(self, cost: Callable[[dict[str, int]], float]) -> None:
        self.values, self.cost, self.spent = {"ffn_gate": 0, "few_rows": 16}, cost, 0.0
        self.size = 0  # of the threshold's trial that is the last made

    def choices(self) -> dict[str, tuple[int, int]]:
        return {name: (value, 2 if name == "ffn_gate" else 0) for name, value in self.values.items()}

    def choose(self, **values: int) -> None:
        self.values |= {name: value for name, value in values.items() if name in self.values}

    chosen = tuning.Kernels.chosen

    def run(self) -> None:
        self.spent += self.cost(self.values)


class _Clock(Clock):
    """Milliseconds are what the call added to the kernels' time."""

    kernels: ClassVar[_Kernels]

    def ms(self, call: Callable[[], object], times: int) -> float:
        before = self.kernels.spent
        call()
        return self.kernels.spent - before


def _begun(file: Path, kernels: _Kernels) -> Progress:
    return Progress(file, {"choices": dict(kernels.values), "ms": {}, "out of time": []})


def _tune(
    monkeypatch: pytest.MonkeyPatch,
    kernels: Any,
    progress: Progress,
    seconds: float = 100,
    wrong: int | None = None,
    clock: Clock | None = None,
) -> dict[str, Any]:
    class Each(Trial):
        def fault(self) -> str:
            self.run()
            return "results are off" if kernels.values["ffn_gate"] == wrong else ""

    def trials_of(kernels: Any, name: str, device: str, size: int = 0) -> list[Trial]:
        kernels.size = size
        return [Each(kernels.run, [], [], [])]

    monkeypatch.setattr(gpu_tune, "trials_of", trials_of)
    _Clock.kernels = kernels
    gpu_tune.tune(kernels, clock or _Clock("cpu"), "cpu", seconds, progress)
    return progress.result


def test_tuning_takes_what_is_faster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernels = _Kernels(lambda values: (1 + (values["ffn_gate"] == 0)) * (1 + (values["few_rows"] > 0)))
    result = _tune(monkeypatch, kernels, _begun(tmp_path / "a.json", kernels))
    assert result == json.loads((tmp_path / "a.json").read_text())
    assert result["choices"] == {"ffn_gate": 1, "few_rows": 0}
    assert result["ms"]["ffn_gate"] == {"0": [2.0], "1": [1.0]}
    assert list(result["ms"]["few_rows"].values()) == [[2.0, 1.0]] * len(gpu_tune.SIZES["few_rows"])
    assert not result["faults"]
    assert not result["out of time"]


def test_a_wrong_variant_is_not_taken_however_fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernels = _Kernels(lambda values: 1.0 + (values["ffn_gate"] == 0))
    result = _tune(monkeypatch, kernels, _begun(tmp_path / "a.json", kernels), wrong=1)
    assert result["choices"] == {"ffn_gate": 0, "few_rows": 16}
    assert result["faults"] == ["ffn_gate 1: results are off"]


def test_a_call_that_fails_leaves_what_was_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def cost(values: dict[str, int]) -> float:
        if values["few_rows"] == gpu_tune.ALWAYS:
            raise RuntimeError("an illegal access\nand where")
        return 1.0 + (values["ffn_gate"] == 0)

    kernels = _Kernels(cost)
    result = _tune(monkeypatch, kernels, _begun(tmp_path / "a.json", kernels))
    assert result["choices"] == {"ffn_gate": 1, "few_rows": 16}
    assert result["faults"] == ["few_rows: an illegal access"]


class _Lost(_Clock):
    """Of a device that takes no more from a process after an illegal access."""

    is_lost = False

    def wait(self) -> None:
        if self.is_lost:
            raise RuntimeError("an illegal access\nand where")


def test_an_illegal_access_costs_what_made_it_and_no_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The process ends, and another one goes on without that variant, or that size; they are noted once."""
    clock = _Lost("cpu")

    def cost(values: dict[str, int]) -> float:
        clock.is_lost = clock.is_lost or values["ffn_gate"] == 1 or kernels.size == 4
        clock.wait()
        return 1.0 + (values["few_rows"] > 0)

    kernels = _Kernels(cost)
    progress = _begun(tmp_path / "a.json", kernels)
    for _ in ("ffn_gate 1", "few_rows 4"):
        with pytest.raises(SystemExit, match=r"the device takes no more from this process: an illegal access$"):
            _tune(monkeypatch, kernels, progress, clock=clock)
        clock.is_lost, progress = False, Progress(tmp_path / "a.json")
    result = _tune(monkeypatch, kernels, progress, clock=clock)
    assert result["faults"] == ["ffn_gate 1: an illegal access", "few_rows 4: an illegal access"]
    assert result["ms"]["ffn_gate"].keys() == {"0"}
    assert result["ms"]["few_rows"].keys() == {str(size) for size in gpu_tune.SIZES["few_rows"]} - {"4"}
    assert result["choices"] == {"ffn_gate": 0, "few_rows": 0}


def test_a_result_that_is_wrong_in_one_call_of_many() -> None:
    """As where warps race; on a GPU alone, since the machine of tests/ptx takes turns as its seed says."""
    calls, result = count(1), torch.zeros(3)

    def run() -> None:
        result.fill_(2.0 if next(calls) == gpu_tune.REPEATS else 1.0)

    clock = _Lost("cpu")
    trial = Trial(run, [result], [torch.zeros(3)], [torch.ones(3)])
    assert gpu_tune.fault_of([trial], clock) == ""
    clock.cuda = True
    assert gpu_tune.fault_of([trial], clock) == "results are off by 1 of their norm"


def test_what_there_is_no_time_for_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernels = _Kernels(lambda values: 1.0)
    result = _tune(monkeypatch, kernels, _begun(tmp_path / "a.json", kernels), seconds=-1)
    assert result["choices"] == {"ffn_gate": 0, "few_rows": 16}
    assert result["out of time"] == ["ffn_gate", "few_rows"]


def test_it_goes_on_without_what_was_at_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As after a process that hung: neither what was found nor what was at fault is tried again."""
    kernels = _Kernels(lambda values: 1.0 + (values["ffn_gate"] == 0) + (values["few_rows"] > 0))
    progress = _begun(tmp_path / "a.json", kernels)
    progress.fault("ffn_gate 1", "no news in 60 s")
    progress.fault("few_rows 4", "no news in 60 s")
    result = _tune(monkeypatch, kernels, Progress(tmp_path / "a.json"))
    assert result["choices"] == {"ffn_gate": 0, "few_rows": 0}
    assert result["ms"]["ffn_gate"].keys() == {"0"}
    assert "4" not in result["ms"]["few_rows"]
    before = kernels.spent
    assert _tune(monkeypatch, kernels, Progress(tmp_path / "a.json")) == result
    assert kernels.spent == before


def test_the_program_begins_a_file_and_has_a_process_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All of main but the kernels, the watch over the process, and what it is told about the GPU."""
    kernels = _Kernels(lambda values: 1.0 + (values["ffn_gate"] == 0))

    def supervise(command: Callable[[float], list[str]], file: Path, seconds: float) -> None:
        monkeypatch.setattr(sys, "argv", command(seconds)[1:])
        gpu_tune.main()

    def work(library: Path, file: Path, seconds: float) -> None:
        assert seconds == gpu_tune.SECONDS
        _tune(monkeypatch, kernels, Progress(file), seconds)

    for name, value in (("supervise", supervise), ("work", work), ("measured_on", lambda: {"gpu": "A GPU"})):
        monkeypatch.setattr(gpu_tune, name, value)
    monkeypatch.setattr(tuning, "Kernels", lambda *_: kernels)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["", "--library", __file__])
    with pytest.raises(SystemExit) as end:
        gpu_tune.main()
    assert end.value.code == 0
    result = json.loads((tmp_path / "sm90-tuned.json").read_text())
    assert result["gpu"] == "A GPU"
    assert result["choices"] == {"ffn_gate": 1, "few_rows": 16}
