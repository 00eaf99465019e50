"""Runs the operators' tests with their native code compiled with sanitizers, and small calls of each under valgrind.

    make sanitize                                  all of it: docs/reliability/sanitizers.md says what that is
    make sanitize-quick                            what takes a few minutes
    tools/sanitize.py --only thread --report PATH  one of address, thread, memcheck; a JSON object of what was found

Faults are planted besides (tests/sanitize/faults.cmake). Exits with 1 where one is not reported, where anything else
is, or where a test fails.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from sanitizers import SANITIZERS, Sanitizer, judged

import stca

ROOT = Path(__file__).parents[1]
COPIED = ("stca", "tests", "tools", "examples", "benchmarks", "conftest.py", "pyproject.toml")

QUICK = (
    "tests/ops/test_request_gather.py",
    "tests/ops/test_target_attention_sums.py",
    "tests/ops/test_paged_history.py",
)
FULL = (
    "tests/ops",
    "tests/nn",
    "tests/batch",
    *(f"tests/serving/test_{name}.py" for name in ("cache_readers", "history_cache", "snapshots")),
)
# Tests that measure the memory of a process, which sanitizers multiply, that start compilers under them, or threads in
# a process that was forked, which ThreadSanitizer ends; and of CUDA kernels, which another library runs.
LEFT_OUT = (
    "not compile and not export and not emulator"
    " and not data_loader_with_workers"
    " and not memory_of and not forward_memory and not backward_memory and not peak_memory"
)


def build(sanitizer: Sanitizer, isas: Sequence[str]) -> None:
    """Builds the operators, and those with a fault, into the sanitizer's folder."""
    launcher = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
    native = str(sanitizer.folder / "native")
    path = {**os.environ, "PATH": f"{os.environ['PATH']}:{Path(sys.executable).parent}"}
    options = {
        "STCA_SANITIZERS": sanitizer.flags,
        "STCA_SANITIZED_ISAS": ";".join(isas),
        "STCA_TORCH_DIR": torch.__path__[0],
        "STCA_VERSION": stca.__version__,
    }
    defined = [f"-D{name}={value}" for name, value in options.items()]
    source = str(ROOT / "tests" / "sanitize")
    configure = ["cmake", "-G", "Ninja", "-S", source, "-B", native, "--log-level=WARNING", *defined, *launcher]
    subprocess.run(configure, check=True, env=path, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", native], check=True, env=path, stdout=sys.stderr)


def tree(sanitizer: Sanitizer, library: Path, name: str) -> Path:
    """A copy of the package and its tests that runs `library`."""
    to = sanitizer.folder / "trees" / name
    shutil.rmtree(to, ignore_errors=True)
    for each in COPIED:
        if (ROOT / each).is_dir():
            shutil.copytree(ROOT / each, to / each, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(ROOT / each, to / each)
    shutil.copy(library, to / "stca")
    return to


def run(sanitizer: Sanitizer, folder: Path, isas: Sequence[str], *command: str) -> tuple[int, str, str]:
    """Runs Python in a tree: its exit status, what it printed, and what the sanitizer wrote of it and its children."""
    logs = folder / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir()
    options = {name: f"{value}:log_path={logs}/log" for name, value in sanitizer.options.items() if "OPTIONS" in name}
    paths = (folder, folder / "tests" / "helpers", folder / "tests" / "sanitize")
    env = {
        **os.environ,
        **sanitizer.options,
        **options,
        "STCA_UBSAN_LOG": f"{logs}/undefined" if "UBSAN_OPTIONS" in options else "",
        "PYTHONPATH": ":".join(map(str, paths)),
        "STCA_SANITIZED_ISAS": " ".join(isas),
        "STCA_CPU_ISA": isas[-1],
        "OMP_WAIT_POLICY": "passive",
    }
    prefix = list(sanitizer.command)
    if sanitizer.library:
        found = [_runtime(sanitizer.library), _runtime("libstdc++.so.6")]
        prefix += ["env", "LD_PRELOAD=" + " ".join(found)]  # for what runs, not for what starts it
    else:
        prefix += [f"--log-file={logs}/log.%p"]
    done = subprocess.run([*prefix, sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True)
    written = "\n".join(path.read_text(errors="replace") for path in sorted(logs.iterdir()))
    return done.returncode, done.stdout + done.stderr, written


def _runtime(library: str) -> str:
    found = subprocess.run(["g++", f"-print-file-name={library}"], check=True, capture_output=True, text=True)
    return str(Path(found.stdout.strip()).resolve())


@dataclass
class Outcome:
    """What one sanitizer found."""

    tests: int
    planted: int
    caught: int
    findings: list[str]


def library_of(folder: Path) -> Path:
    """The one library that a build left there."""
    (found,) = folder.glob("libstca_ops-*.so")
    return found


def commands(sanitizer: Sanitizer, quick: bool, isas: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """What runs without a fault: Python's arguments."""
    yield "-m", "calls"
    if sanitizer.library:
        tests = (
            "-m",
            "pytest",
            "-p",
            "only_instrumented",
            "--timeout",
            "1500",
            "-p",
            "no:cacheprovider",
            "-k",
            LEFT_OUT,
        )
        yield *tests, *(QUICK if quick else FULL)
        count = 30 if quick else 300
        yield "tests/fuzz/operators.py", "--no-planted", "--count", str(count)


def examine(sanitizer: Sanitizer, quick: bool) -> Outcome:
    """Builds and runs everything of one sanitizer, and prints a line for each step."""
    isas = stca.build_info()["cpu_isas_supported"]
    # The best one alone, but for avx512bf16: it leaves all dtypes but bfloat16 to avx512.
    passed = isas[1:-2] if isas[-1] == "avx512bf16" else isas[1:-1]
    isas = [isa for isa in isas if isa not in passed] if sanitizer.library else isas[:1]
    build(sanitizer, isas)
    outcome = Outcome(0, 0, 0, [])
    clean = tree(sanitizer, library_of(sanitizer.folder / "native" / "stca"), "clean")
    for command in commands(sanitizer, quick, isas):
        status, printed, written = run(sanitizer, clean, isas, *command)
        found, others = judged(written)
        what = " ".join(part for part in command if "/" in part or part in ("pytest", "calls"))
        counts = re.findall(r"(\d+) passed|(\d+) calls from|calls: (\d+) of all operators done", printed)
        outcome.tests += sum(int(number) for each in counts for number in each if number)
        # A sanitizer that ends a process ends it with 0: only what says how many there were has come to its end.
        wrong = [] if status == 0 and counts else [f"{what} ends with {status}:\n{printed[-3000:]}"]
        outcome.findings += [f"{sanitizer.name}: {each}" for each in (*wrong, *found)]
        print(
            f"{sanitizer.name}: {what}: {len(found)} reports, {others} of other libraries alone; {last(printed)}",
            flush=True,
        )
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # under valgrind each takes minutes
        names = list(sanitizer.planted)
        for name, problem in zip(names, pool.map(lambda name: missed(sanitizer, name, isas[:1]), names), strict=True):
            outcome.planted += 1
            outcome.caught += not problem
            if problem:
                outcome.findings.append(f"{sanitizer.name}: the planted fault {name} gives {problem}")
            print(f"{sanitizer.name}: planted {name}: {'MISSED' if problem else 'caught'}", flush=True)
    return outcome


def missed(sanitizer: Sanitizer, name: str, isas: Sequence[str]) -> str:
    """What a planted fault gives in place of a report of itself, or nothing where it is caught."""
    says = sanitizer.planted[name]
    leaks = int("leak" in says)  # Python's and torch's take minutes to tell
    options = {key: f"{value}:detect_leaks={leaks}" for key, value in sanitizer.options.items() if "OPTIONS" in key}
    folder = tree(sanitizer, library_of(sanitizer.folder / "native" / name), name)
    followed = replace(sanitizer, options={**sanitizer.options, **options})
    _, printed, written = run(followed, folder, isas, "-m", "calls", "float32")
    return "" if any(says in report for report in judged(written)[0]) else f"no report of {says!r}: {last(printed)}"


def last(text: str) -> str:
    """The last line."""
    return (text.strip().splitlines() or [""])[-1]


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few tests, and none under valgrind")
    parser.add_argument("--only", choices=[each.name for each in SANITIZERS], action="append")
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    names = args.only or [each.name for each in SANITIZERS if each.library or not args.quick]
    begin = time.monotonic()
    outcomes = {each.name: examine(each, args.quick) for each in SANITIZERS if each.name in names}
    findings = [finding for each in outcomes.values() for finding in each.findings]
    report = {
        "name": "sanitize",
        "cases": sum(each.tests for each in outcomes.values()),
        "planted": sum(each.planted for each in outcomes.values()),
        "caught": sum(each.caught for each in outcomes.values()),
        "seconds": round(time.monotonic() - begin),
        "findings": findings,
        "sanitizers": list(outcomes),
    }
    if args.report:
        args.report.parent.mkdir(parents=True, exist_ok=True)
        args.report.write_text(json.dumps(report, indent=1) + "\n")
    for finding in findings:
        print(finding)
    print({key: value for key, value in report.items() if key != "findings"})
    sys.exit(len(findings) > 0)


if __name__ == "__main__":
    main()
