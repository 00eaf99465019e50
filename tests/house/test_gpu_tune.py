"""What tools/gpu_tune.py makes of times, with made-up ones, and the table that launchers read."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import gpu_tune
import pytest
import tune_table
import tuning
from gpu_clock import Clock
from progress import Progress
from trials import Trial

ROOT = Path(__file__).parents[2]
TUNED, SM90 = (json.loads((tune_table.RESULTS / name).read_text()) for name in tune_table.FILES)


def test_the_table_is_what_the_files_say() -> None:
    assert tune_table.HEADER.read_text() == tune_table.header(TUNED, SM90)
    names = re.findall(r"X\((\w+), \d\)", (tune_table.HEADER.parent / "choice.h").read_text())
    assert list(TUNED["choices"]) == names


@pytest.mark.parametrize("result", [TUNED, SM90])
def test_nothing_is_called_measured_that_no_gpu_has(result: dict[str, Any]) -> None:
    assert all(bool(result[name]) == bool(result["gpu"]) for name in ("driver", "date"))
    assert result["gpu"] or (not result.get("ms") and not result.get("confirmed"))


def test_what_the_table_says_of_its_source() -> None:
    measured = {"gpu": "A GPU", "driver": "1.2", "date": "2030-01-01"}
    text = tune_table.header(TUNED | measured, SM90 | measured | {"confirmed": ["swiglu_ffn_norm"]})
    assert text.count("Source: A GPU, 1.2, 2030-01-01.") == 2
    assert "X(swiglu_ffn_norm, true)" in text
    assert "X(target_attention, false)" in text
    with pytest.raises(ValueError, match=r"sm90.json: confirmed must be among .*, got other"):
        tune_table.header(TUNED, SM90 | {"confirmed": ["other"]})


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
    monkeypatch: pytest.MonkeyPatch, kernels: Any, progress: Progress, seconds: float = 100, wrong: int | None = None
) -> dict[str, Any]:
    class Each(Trial):
        def fault(self) -> str:
            self.run()
            return "results are off" if kernels.values["ffn_gate"] == wrong else ""

    monkeypatch.setattr(gpu_tune, "trials_of", lambda *_: [Each(kernels.run, [], [], [])])
    _Clock.kernels = kernels
    gpu_tune.tune(kernels, _Clock("cpu"), "cpu", seconds, progress)
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
