"""How tools/on_gpu.py runs a command: shown as it comes, ended in time, in a log that nothing else writes or reads."""

import re
import subprocess
import sys
import time
from pathlib import Path

import on_gpu
import pytest
import torch

# Ends well where its first line is in the log while it still runs.
LOOKS_INTO_THE_LOG = """
import sys, time
from pathlib import Path
print(6 * 7)
for _ in range(200):
    if "\\n42\\n" in Path(sys.argv[1]).read_text():
        sys.exit()
    time.sleep(0.05)
sys.exit(3)
"""
# Stands in for compute-sanitizer, `--tool NAME ...`.
SANITIZER = """#!/bin/sh
if [ "$2" = memcheck ]; then echo "Error: Device not supported"; exit 1; fi
echo "$2 found a race"; exit 9
"""


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("OUT", "BUILD", "SITE"):
        monkeypatch.setattr(on_gpu, name, tmp_path)
    return tmp_path


def test_output_is_kept_while_the_command_runs(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-c", LOOKS_INTO_THE_LOG, str(out / on_gpu.LOG)]
    assert on_gpu.run(command, 60, "a step") == "ok"
    assert capsys.readouterr().out == (out / on_gpu.LOG).read_text()


def test_what_a_command_that_is_stopped_has_said_is_kept(out: Path) -> None:
    began = time.monotonic()
    script = "import time; print(6 * 7); time.sleep(100)"
    assert on_gpu.run([sys.executable, "-c", script], 3, "a step") == "FAILED: stopped after 3 s"
    assert time.monotonic() - began < 50
    assert (out / on_gpu.LOG).read_text().endswith("\n42\n")
    assert on_gpu.run([sys.executable, "-c", "raise SystemExit(5)"], 60, "a step") == "FAILED: exit code 5"
    assert on_gpu.run([sys.executable], 0.5, "a step") == "NOT RUN: out of time"


def test_what_is_not_there_is_said(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.match("NOT RUN: .*no-such-tool", on_gpu.run(["no-such-tool"], 60, "a step"))
    monkeypatch.setattr("shutil.which", lambda *_, **__: "compute-sanitizer")
    assert on_gpu.sanitize("memcheck", 0.5) == "NOT RUN: out of time"


def test_packages_are_found_where_this_process_has_them(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The built package comes first."""
    monkeypatch.setenv("PYTHONPATH", "/a/torch:/b")
    script = f"import os, sys; sys.exit(os.environ['PYTHONPATH'] != {f'{out}:/a/torch:/b'!r})"
    assert on_gpu.run([sys.executable, "-c", script], 60, "a step") == "ok"
    monkeypatch.delenv("PYTHONPATH")
    script = f"import os, sys; sys.exit(os.environ['PYTHONPATH'] != {str(out)!r})"
    assert on_gpu.run([sys.executable, "-c", script], 60, "a step") == "ok"


def test_a_command_that_does_not_die_is_left_behind(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process that waits inside of the driver does not."""
    alive: list[subprocess.Popen[str]] = []
    die = on_gpu.kill
    monkeypatch.setattr(on_gpu, "kill", alive.append)
    monkeypatch.setattr(on_gpu, "DYING", 1.0)
    try:
        outcome = on_gpu.run([sys.executable, "-c", "import time; time.sleep(100)"], 1, "a step")
        assert outcome == "FAILED: stopped after 1 s, and has not ended 1 s later"
    finally:
        for process in alive:
            die(process)
            process.wait(30)


def test_only_the_tools_own_words_say_that_it_could_not_run(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memcheck is refused; racecheck, which comes after it, has found something, and that is what is said of it."""
    stands_in = out / "compute-sanitizer"
    stands_in.write_text(SANITIZER)
    stands_in.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda *_, **__: str(stands_in))
    refused = "NOT RUN: compute-sanitizer does not support this machine's device"
    assert on_gpu.sanitize("memcheck", 60) == refused
    assert on_gpu.sanitize("racecheck", 60) == "FAILED: exit code 9"
    assert (out / "sanitize-racecheck.log").read_text().endswith("racecheck found a race\n")


@pytest.mark.parametrize("sanitizing", [True, False])
def test_neither_run_deletes_the_others_log(sanitizing: bool, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made one after the other in one folder; each begins its own logs anew."""
    theirs, own = (on_gpu.LOG, "sanitize-memcheck.log")[:: 1 if sanitizing else -1]
    for name in (theirs, own):
        (out / name).write_text("Device not supported")
    monkeypatch.setattr(sys, "argv", ["on_gpu.py", *["--sanitize"] * sanitizing])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(on_gpu, "outcomes_of", lambda *_: {"build": "ok"})
    with pytest.raises(SystemExit) as end:
        on_gpu.main()
    assert end.value.code == 0
    assert (out / theirs).exists()
    assert not (out / own).exists()
