"""Everything that tries to break the package, in one command: `make prove`, three hours at most.

Every step runs, whatever the ones before gave, and no longer than its limit. What a step found for this tree of files
is kept in build/prove/TREE and not sought again, so an interrupted run goes on; a step that failed is. Writes
build/prove/report.json and report.md, and exits with 1 where a step failed, was not there, or missed a planted fault.

    python tools/prove.py                             all steps
    python tools/prove.py --steps soak --minutes 1    some of them, briefly
    python tools/prove.py --table report.json         the table of a report; docs/reliability/figures.md is made so
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stca.files import whole_file

ROOT = Path(__file__).resolve().parents[1]
Result = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """A program of this repository, which is told by `--report` where to write what it found; or tests.

    `limit` is in minutes; `minutes` what the program is told to take, where it takes as long as it is told.
    """

    name: str
    about: str
    program: str
    limit: float
    options: tuple[str, ...] = ()
    minutes: float | None = None

    @property
    def is_tests(self) -> bool:
        """Whether pytest runs it."""
        return self.program == "pytest"

    def command(self, report: Path) -> list[str]:
        """What runs it."""
        if self.is_tests:
            # No mark leaves a test out, and pytest's own report says what ran.
            return [sys.executable, "-m", "pytest", "-m", "", f"--junitxml={report}", *self.options]
        timed = [] if self.minutes is None else ["--minutes", str(self.minutes)]
        return [sys.executable, self.program, *self.options, *timed, "--report", str(report)]


STEPS = (
    Step("address", "operators under AddressSanitizer and UBSan", "tools/sanitize.py", 23, ("--only", "address")),
    Step("thread", "operators under ThreadSanitizer", "tools/sanitize.py", 18, ("--only", "thread")),
    Step("memcheck", "small calls of the operators under valgrind", "tools/sanitize.py", 17, ("--only", "memcheck")),
    Step("operators", "random calls of the operators", "tests/fuzz/operators.py", 9, minutes=8),
    Step("fuzz", "fuzzers of what reads files", "tests/fuzz/fuzz.py", 18, minutes=15),
    Step("soak", "one process for long, sizes at their ends", "tools/soak.py", 69, minutes=60),
    Step("faults", "kills, full disks, clocks, slow and missing ranks", "pytest", 14, ("tests/faults",)),
    Step(
        "ptx", "faults planted in CUDA kernels", "pytest", 12, ("tests/cuda/test_ptx.py", "tests/cuda/test_variants.py")
    ),
)


def git(*words: str, **env: str) -> str:
    """What git prints."""
    command = ["git", "-C", str(ROOT), *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env=os.environ | env)
    return done.stdout.strip()


def tree_of_files() -> str:
    """The tree that a commit of all files as they lie here would have."""
    with tempfile.TemporaryDirectory() as folder:
        index = str(Path(folder, "index"))
        git("read-tree", "HEAD", GIT_INDEX_FILE=index)
        git("add", "--all", GIT_INDEX_FILE=index)
        return git("write-tree", GIT_INDEX_FILE=index)


def run(command: list[str], seconds: float, log: Path) -> str:
    """Runs a command from the root, its output kept: "", or what went wrong. At the limit all that it started ends."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "passive"}
    with log.open("w") as kept:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=kept, stderr=kept, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)
            if isinstance(error, subprocess.TimeoutExpired):
                return f"stopped after {seconds:.0f} s"
            raise
    return "" if code == 0 else f"exit code {code}"


def read_tests(path: Path) -> Result:
    """pytest's own report: each test is a case, what tests say of planted faults is summed up, a skip is a finding."""
    cases, sums, findings = list(ET.parse(path).getroot().iter("testcase")), {"planted": 0, "caught": 0}, []
    for case in cases:
        findings += [
            f"{case.get('name')}: {what}" for what in ("failure", "error", "skipped") if case.find(what) is not None
        ]
        for each in case.iter("property"):
            if each.get("name") in sums:
                sums[each.get("name", "")] += int(each.get("value", "0"))
    return {"cases": len(cases), **sums, "findings": findings}


def find(step: Step, folder: Path) -> Result:
    """Runs a step; what it reports, with `failed` where anything is wrong."""
    report, begin = folder / f"{step.name}.{'xml' if step.is_tests else 'out.json'}", time.monotonic()
    report.unlink(missing_ok=True)
    wrong = []
    if not step.is_tests and not (ROOT / step.program).exists():
        wrong.append(f"{step.program} is missing")
    elif problem := run(step.command(report), 60 * step.limit, folder / f"{step.name}.log"):
        wrong.append(problem)
    result: Result = {"cases": 0, "planted": 0, "caught": 0, "findings": []}
    try:
        if step.is_tests or report.exists():
            result |= read_tests(report) if step.is_tests else json.loads(report.read_text())
        else:
            wrong.append("it wrote no report")
    except (OSError, ValueError, ET.ParseError) as error:
        wrong.append(f"its report cannot be read: {error}")
    if result["caught"] < result["planted"]:
        wrong.append(f"{result['planted'] - result['caught']} planted faults were not caught")
    if result["findings"]:
        wrong.append(f"{len(result['findings'])} findings")
    if not result["cases"]:
        wrong.append("nothing was tried")
    return {**result, "name": step.name, "seconds": round(time.monotonic() - begin, 1), "failed": wrong}


def write(path: Path, text: str) -> None:
    """Writes a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        part.write_text(text)


def table(report: Result) -> str:
    """The report in Markdown."""
    lines = [
        "# Figures",
        "",
        f"Written by `tools/prove.py` from one run: commit {report['commit']}, tree {report['tree'][:12]}, "
        f"{report['date']}, {report['machine']}.",
        "",
        "| step | what | cases tried | faults planted | caught | minutes | outcome |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    about = {step.name: step.about for step in STEPS}
    for each in report["steps"]:
        outcome = "; ".join(each["failed"]) or "nothing found"
        counts = " | ".join(f"{each[name]:,}" for name in ("cases", "planted", "caught"))
        lines.append(
            f"| {each['name']} | {about.get(each['name'], '')} | {counts} | {each['seconds'] / 60:.1f} | {outcome} |"
        )
    for each in report["steps"]:
        if "hours" in each:
            grown = "; ".join(f"{name} {line}" for name, line in each["bytes a step, 95 %"].items())
            lines += ["", f"Soaked for {60 * each['hours']:.1f} minutes, {each['rounds']:,} rounds. A step: {grown}."]
            lines[-1] += f" Judged by a bound of {each['bound']:,} bytes; {each['leak']:,} were planted."
    missing = [step.name for step in STEPS if step.name not in {each["name"] for each in report["steps"]}]
    if missing:
        lines += ["", f"Not part of this run: {', '.join(missing)}."]
    if "note" in report:
        lines += ["", report["note"]]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None, steps: tuple[Step, ...] = STEPS, out: Path = ROOT / "build/prove") -> int:
    """Runs what has not been found for these files yet, and reports; 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", choices=[step.name for step in steps], help="all, when not given")
    parser.add_argument("--minutes", type=float, help="of each step that takes as long as it is told")
    parser.add_argument("--table", type=Path, help="only print the table of a report")
    args = parser.parse_args(arguments)
    if args.table is not None:
        print(table(json.loads(args.table.read_text())), end="")
        return 0
    tree, results = tree_of_files(), []
    folder = out / tree[:12]
    folder.mkdir(parents=True, exist_ok=True)
    for step in steps:
        if args.steps is not None and step.name not in args.steps:
            continue
        kept = folder / f"{step.name}{f'-{args.minutes:g}' if args.minutes and step.minutes else ''}.json"
        result = json.loads(kept.read_text()) if kept.exists() else {"failed": ["not run"]}
        if result["failed"]:
            print(f"{step.name}: {step.about}, at most {step.limit:.0f} minutes", flush=True)
            brief = args.minutes is not None and step.minutes is not None
            result = find(replace(step, minutes=args.minutes) if brief else step, folder)
            write(kept, json.dumps(result, indent=1) + "\n")
        outcome = "; ".join(result["failed"]) or f"ok, {result['cases']:,} cases"
        print(f"{step.name}: {outcome}; {result['seconds']:.0f} s, {folder / step.name}.log", flush=True)
        results.append(result)
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.machine()}"
    report = {"commit": git("rev-parse", "--short=12", "HEAD"), "tree": tree, "date": time.strftime("%Y-%m-%d")}
    whole = {**report, "machine": machine, "steps": results}
    write(out / "report.json", json.dumps(whole, indent=1) + "\n")
    write(out / "report.md", table(whole))
    return int(any(result["failed"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
