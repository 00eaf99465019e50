"""What `make gpu` runs on a GPU exists, and what it makes of results; the commands stand in, no GPU is here."""

import json
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import confirm
import gpu
import gpu_sm90
import on_gpu
import pytest
import torch
from confirm import FAMILIES, Family
from gpu import cases

ROOT = Path(__file__).parents[2]
FAMILY = Family("op", {"test_a.py": ("test_x", "test_y")})


def _report(path: Path, cases: list[tuple[str, str]], inside: str = "") -> Path:
    lines = [f'<testcase classname="tests.cuda.{file[:-3]}" name="{name}"/>' for file, name in cases]
    path.write_text(f"<testsuites><testsuite>{''.join(lines)}{inside}</testsuite></testsuites>")
    return path


@pytest.mark.parametrize(
    ("cases", "inside", "fault"),
    [
        (["test_x[a]", "test_x[b]", "test_y"], "", ""),
        (["test_x[a]"], "", "did not run: test_a.py::test_y"),
        ([], "", "did not run: test_a.py::test_x, test_a.py::test_y"),
        *[
            (["test_x[a]", "test_y"], f'<testcase classname="test_a" name="test_y[1]"><{what}/></testcase>', end)
            for what, end in (
                ("skipped", "test_a.py::test_y[1]: skipped"),
                ("failure", "test_a.py::test_y[1]: failure"),
            )
        ],
    ],
)
def test_a_family_is_tested_by_all_its_tests(cases: list[str], inside: str, fault: str, tmp_path: Path) -> None:
    report = _report(tmp_path / "a.xml", [("test_a.py", name) for name in cases], inside)
    assert confirm.test_fault(FAMILY, report) == fault


def test_tests_that_were_stopped_confirm_nothing(tmp_path: Path) -> None:
    assert confirm.test_fault(FAMILY, tmp_path / "none.xml") == "its tests did not end"
    (tmp_path / "part.xml").write_text("<testsuites><testcase")
    assert confirm.test_fault(FAMILY, tmp_path / "part.xml") == "its tests did not end"


def _timings(path: Path, *ratios: float | str | None) -> Path:
    about = {"op": "op", "dtype": "bfloat16", "direction": "forward"}
    rows: list[dict[str, Any]] = [about | {"case": f"case {i}"} for i, _ in enumerate(ratios)]
    for row, ratio in zip(rows, ratios, strict=True):
        row |= (
            {"own_ms": 2 * ratio, "common_ms": 2.0} if isinstance(ratio, float) else {"fault": ratio} if ratio else {}
        )
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize(
    ("ratios", "fault"),
    [
        ([0.5, 1.01], ""),
        ([0.5, 1.1], "case 1, bfloat16, forward: takes 1.10 times as long"),
        ([1.0, 1.0], "is not faster"),
        ([0.99, 0.98], "is not faster"),  # as the common kernels are than themselves in one run of two
        ([0.5, "out of time"], "case 1, bfloat16, forward: out of time"),
        ([0.5, None], "case 1, bfloat16, forward: did not run"),  # stopped before it came to that
        ([], "is not faster"),
    ],
)
def test_times_speak_for_a_family_where_every_case_has_one(ratios: list[Any], fault: str, tmp_path: Path) -> None:
    assert confirm.time_fault(_timings(tmp_path / "a.json", *ratios)) == fault
    assert confirm.time_fault(tmp_path / "none.json") == "its benchmarks did not begin"


def _refuse(*_: object) -> None:
    raise ValueError("op: what this GPU does not take")


def test_the_comparison_goes_on_after_a_refusal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setattr(gpu, "measure", _refuse)
    options = ["--device", "cpu", "--only", "swiglu", "--json", str(tmp_path / "own.json")]
    monkeypatch.setattr(sys, "argv", ["", *options])
    with pytest.raises(SystemExit):
        gpu.main()
    torch.set_default_device(None)
    assert capsys.readouterr().out.count(": op: what this GPU does not take") > 1


def test_the_comparison_on_small_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every case is in the file, run or not, and families are named by operators that have cases."""
    file = tmp_path / "own.json"
    for seconds, code in (("0", 1), ("100", 0)):
        arguments = ["", "swiglu_ffn_norm", "--device", "cpu", "--seconds", seconds, "--json", str(file)]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as end:
            gpu_sm90.main()
        torch.set_default_device(None)
        rows = json.loads(file.read_text())
        assert end.value.code == code
        assert {(row["dtype"], row["direction"]) for row in rows} == {
            *product(("bfloat16", "float16"), ("forward", "forward+backward"))
        }
        assert all(("own_ms" in row) == (code == 0) for row in rows)
    monkeypatch.setattr(gpu_sm90, "measure", _refuse)
    with pytest.raises(SystemExit):
        gpu_sm90.main()
    assert {row["fault"] for row in json.loads(file.read_text())} == {"op: what this GPU does not take"}
    ops = {case.op for case in cases(small=True)}
    assert {family.op for family in FAMILIES.values()} <= ops


class _Machine:
    """Stands in for on_gpu.run: tests are collected as on a GPU, and pass; benchmarks give times."""

    slow = "swiglu_ffn_norm"  # a family that takes longer than the common kernels

    def __init__(self) -> None:
        self.tests, self.commands = dict[str, list[str]](), list[list[str]]()

    def run(self, command: list[str], seconds: float, title: str, log: str = on_gpu.LOG, **env: str) -> str:
        assert seconds > 1
        self.commands.append(command)
        if "pytest" in command:
            self.collect([*command[command.index("-P") :]], title)
        elif any(word.startswith("benchmarks/") for word in command):
            script, file = (
                ROOT / next(w for w in command if w.startswith("benchmarks/")),
                command[command.index("--json") + 1],
            )
            assert script.exists()
            _timings(Path(file), *((1.5, 0.5) if title == self.slow else (0.5, 0.6)))
        return "ok"

    def collect(self, arguments: list[str], title: str) -> None:
        here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])}
        report = [each for each in arguments if each.startswith("--junitxml")]
        own = [each for each in arguments if each not in (*report, "-P")]
        command = [sys.executable, *own, "-p", "as_if_gpu", "--collect-only"]
        text = subprocess.run(command, cwd=ROOT, env=here, check=True, capture_output=True, text=True).stdout
        found = re.findall(r"^tests/cuda/(\S+\.py)::(.+)$", text, re.M)
        self.tests[title] = ["::".join(each) for each in found]
        for each in report:
            _report(Path(each.partition("=")[2]), [(file, name.replace('"', "")) for file, name in found])


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> _Machine:
    """All of on_gpu.main but the commands, as on a Hopper GPU."""
    it = _Machine()
    for name in ("OUT", "BUILD"):
        monkeypatch.setattr(on_gpu, name, tmp_path)
    monkeypatch.setattr(on_gpu, "SITE", tmp_path / "site")
    monkeypatch.setattr(on_gpu, "run", it.run)
    monkeypatch.setattr(on_gpu, "measured_on", lambda: {"gpu": "A GPU"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("shutil.which", lambda name, **_: name)
    return it


@pytest.mark.slow
def test_a_rehearsal(machine: _Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every selection of tests finds some, on the GPU alone; families are confirmed, or not, each by its own."""
    monkeypatch.setattr(sys, "argv", ["on_gpu.py"])
    with pytest.raises(SystemExit) as end:
        on_gpu.main()
    assert end.value.code == 1
    written = json.loads((tmp_path / "sm90.json").read_text())
    assert written["confirmed"] == [family for family in FAMILIES if family != machine.slow]
    assert (tmp_path / "site" / "stca" / "ops").is_dir()
    assert machine.tests.keys() == {"tests", "Hopper's kernels", *FAMILIES}
    for title, tests in machine.tests.items():
        assert tests, title
        assert not [each for each in tests if "gpu" not in each], title
        assert not [each for each in tests if "emulator" in each], title


@pytest.mark.slow
def test_a_rehearsal_of_the_sanitizers(machine: _Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hopper's kernels of every family are among what they look at, and those of int8 rows and of float32."""
    monkeypatch.setattr(sys, "argv", ["on_gpu.py", "--sanitize"])
    with pytest.raises(SystemExit) as end:
        on_gpu.main()
    assert end.value.code == 0
    assert [command[2] for command in machine.commands if command[0] == "compute-sanitizer"] == [*on_gpu.TOOLS]
    chosen = machine.tests["memcheck"]
    files = {each.partition("::")[0] for each in chosen if "hopper-gpu" in each}
    assert files == {file for family in FAMILIES.values() for file in family.tests}
    for file in ("test_int8_history_cuda.py", "test_target_attention_cuda.py"):
        own = [each for each in chosen if each.startswith(file)]
        assert {dtype for dtype in ("bfloat16", "float32") for each in own if dtype in each} == {"bfloat16", "float32"}
    int8 = " ".join(each for each in chosen if each.startswith("test_int8"))
    assert all(
        f"{case}-torch.bfloat16" in int8 for case in ("5-of-64-64", "33-of-64-64", "33-of-128-None", "width-1024")
    )
    assert len(chosen) < 40
