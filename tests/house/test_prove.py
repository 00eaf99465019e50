"""What gathers proofs: a missing step, a missed fault, a skip, a limit is never green; soak's judgement finds leaks."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import prove
import pytest
import soak
from prove import ROOT, Step

PROGRAM = """
import json, sys, time
report = {"name": "x", "cases": 3, "planted": 2, "caught": 2, "seconds": 0, "findings": []} | json.loads(sys.argv[1])
time.sleep(report["seconds"])
open(sys.argv[0] + ".runs", "a").write("x")
open(sys.argv[3], "w").write(json.dumps(report))
sys.exit(report.get("code", 0))
"""


def _step(folder: Path, limit: float = 1, **report: Any) -> Step:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    return Step("x", "a step", str(program), limit, (json.dumps(report),))


def test_a_step_that_is_done_is_not_run_again(tmp_path: Path) -> None:
    step, runs = _step(tmp_path), tmp_path / "program.py.runs"
    for _ in range(2):
        assert prove.main([], (step,), tmp_path / "out") == 0
        assert runs.read_text() == "x"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["steps"][0]["cases"] == 3
    assert "nothing found" in (tmp_path / "out" / "report.md").read_text()
    step = _step(tmp_path, findings=["a fault"])
    for times in (1, 2):  # what failed is run again
        assert prove.main([], (step,), tmp_path / "other") == 1
        assert runs.read_text() == "x" * (1 + times)


@pytest.mark.parametrize(
    ("report", "wrong"),
    [
        ({"findings": ["a fault"]}, "1 findings"),
        ({"caught": 1}, "1 planted faults were not caught"),
        ({"code": 3}, "exit code 3"),
        ({"cases": 0}, "nothing was tried"),
    ],
)
def test_what_is_wrong_is_red(tmp_path: Path, report: dict[str, Any], wrong: str) -> None:
    assert wrong in prove.find(_step(tmp_path, **report), tmp_path)["failed"]


def test_a_step_that_hangs_or_is_missing_is_red(tmp_path: Path) -> None:
    found = prove.find(_step(tmp_path, limit=0.02, seconds=60), tmp_path)
    assert found["failed"] == ["stopped after 1 s", "it wrote no report", "nothing was tried"]
    found = prove.find(Step("x", "a step", "tools/none.py", 1), tmp_path)
    assert found["failed"][0] == "tools/none.py is missing"


def test_a_skipped_test_is_a_finding(tmp_path: Path) -> None:
    tests = tmp_path / "test_x.py"
    tests.write_text(
        "import pytest\n"
        "def test_skipped(): pytest.skip('no')\n"
        "def test_planted(record_property): [record_property(x, 1) for x in ('planted', 'caught')]\n"
    )
    found = prove.find(Step("x", "tests", "pytest", 2, (str(tests), "-c", "/dev/null")), tmp_path)
    assert (found["cases"], found["planted"], found["caught"]) == (2, 1, 1)
    assert found["findings"] == ["test_skipped: skipped"]


def test_figures_are_those_of_the_report() -> None:
    folder = ROOT / "docs" / "reliability"
    assert prove.table(json.loads((folder / "figures.json").read_text())) == (folder / "figures.md").read_text()


def _life(leak: float, files: int = 0) -> soak.Life:
    """300 rounds that fill caches at first, with noise, and bytes a step that are kept."""
    rng, rounds = np.random.default_rng(0), np.arange(300)
    memory = 4e8 + 3e7 * -np.exp(-rounds / 20) + rng.normal(0, 1e5, 300) + leak * soak.STEPS * rounds
    return soak.Life(memory.astype(int).tolist(), (10 + files * rounds // 50).tolist(), [4, 5] * 150)


def test_a_leak_is_judged_by_the_upper_end() -> None:
    assert soak.judge(_life(0)) == []
    assert soak.judge(_life(soak.LEAK))[0].startswith("memory: may grow by at most")
    assert soak.judge(_life(0, files=1)) == ["open files: must not grow, got at most 12 and later at least 14"]
    with pytest.raises(ValueError, match="slope: must have at least 54 rounds, got 30"):
        soak.slope([0] * 30)


def test_python_is_the_one_that_runs() -> None:
    assert prove.STEPS[0].command(Path("x"))[0] == sys.executable
