"""Fuzzes everything that reads files of others: planted faults first, each of which must be found, then what is there.

    make fuzz MINUTES=30                                        all of it; inputs that fail lie in build/fuzz
    python tests/fuzz/fuzz.py --minutes 3 --readers text --keep     one reader; keeps the inputs that reach more

Each reader runs in a process of its own under libFuzzer, which ends it at the first finding: an input of which comes
anything but the right result or a documented error, that takes longer than `--seconds`, or more memory than there is.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / folder) for folder in ("tests/fuzz", "tests/helpers", "examples"))]

from corpus import executable_lines, keep, kept, lines_of  # noqa: E402
from planted import PLANTED  # noqa: E402
from readers import NAMES, reader  # noqa: E402

from stca.files import whole_file  # noqa: E402

RSS_MB = 3000
KINDS = {"crash": "an error or a crash", "timeout": "too slow", "oom": "too much memory"}


@dataclass
class Run:
    """What came of one reader."""

    cases: int = 0
    evolved: list[bytes] = field(default_factory=list)
    failed: list[tuple[str, bytes]] = field(default_factory=list)  # kind and input
    log: str = ""


def fuzz(
    name: str, seconds: float, inputs: dict[str, bytes], limit: int, seed: int, planted: str = "none", runs: int = -1
) -> Run:
    """Runs a reader for so long and so many inputs, or to its first finding."""
    with tempfile.TemporaryDirectory() as place:
        corpus, found = Path(place, "corpus"), Path(place, "found")
        corpus.mkdir()
        found.mkdir()
        for data in inputs.values():
            (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
        options: dict[str, object] = {
            "max_total_time": max(1, int(seconds)),
            "timeout": limit,
            "rss_limit_mb": RSS_MB,
            "max_len": 1 << 18,
        }
        options |= {
            "seed": seed,
            "artifact_prefix": f"{found}/",
            "print_final_stats": 1,
            "len_control": 0,
            "runs": runs,
        }
        command = [sys.executable, str(Path(__file__).with_name("worker.py")), name, planted, str(corpus)]
        command += [f"-{option}={value}" for option, value in options.items()]
        try:
            environment = os.environ | {"TMPDIR": place}
            done = subprocess.run(command, capture_output=True, env=environment, timeout=seconds + 10 * limit + 120)
            log, status = (done.stdout + done.stderr).decode(errors="replace"), done.returncode
        except subprocess.TimeoutExpired:
            log, status = "the worker did not end", -1
        counts = re.findall(r"number_of_executed_units:\s+(\d+)|^#(\d+)\s", log, re.MULTILINE)
        run = Run(max((int(a or b) for a, b in counts), default=0), [path.read_bytes() for path in corpus.iterdir()])
        run.failed = [(path.name.split("-")[0], path.read_bytes()) for path in sorted(found.iterdir())]
        run.log = log[-6000:]
        if status and not run.failed:
            run.failed = [(f"status {status}", b"")]
        return run


def cause(log: str) -> str:
    """The line of a log that says what went wrong."""
    lines = re.findall(
        r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt).*$|^==\d+== ERROR.*$|^SUMMARY.*$", log, re.MULTILINE
    )
    return lines[0][:300] if lines else log[-300:]


def coverage(names: list[str]) -> dict[str, float]:
    """Per file the share of its functions' lines that the kept inputs reach."""
    reached: set[tuple[str, int]] = set()
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            for data in kept(name).values():
                reached |= lines_of(reader(name), data, Path(folder))
    shares = {}
    for file in sorted({file for file, _ in reached}):
        lines = executable_lines(Path(file))
        share = len(lines & {line for each, line in reached if each == file}) / max(1, len(lines))
        shares[str(Path(file).relative_to(ROOT))] = round(share, 3)
    return shares


def prove(args: argparse.Namespace, report: dict[str, Any]) -> None:
    """Each planted fault must be found, in its reader and by its fuzzer, all of them in half of the time at most."""
    for name, (where, *_) in PLANTED.items():
        if where in args.readers:
            inputs = reader(where).seeds()
            run = fuzz(where, 30 * args.minutes / len(PLANTED), inputs, 5, args.seed, name, runs=args.planted_runs)
            report["planted"] += 1
            found = any(kind in KINDS for kind, _ in run.failed)
            report["caught"] += found
            print(f"planted: {name} in {where}: {'found' if found else 'NOT FOUND'}, {run.cases} cases", flush=True)


def main() -> int:
    """Fuzzes, and says 1 where something was found, or a planted fault was not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="for all readers, the planted faults included")
    parser.add_argument("--report", type=Path, help="writes a JSON object there")
    parser.add_argument("--readers", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seconds", type=int, default=20, help="of an input, at most")
    parser.add_argument(
        "--planted-runs", type=int, default=20_000, help="inputs of which one must find a planted fault"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="keep inputs that reach more lines in tests/fuzz/corpus")
    args = parser.parse_args()
    begin, out = time.monotonic(), ROOT / "build" / "fuzz"
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"name": "fuzz", "cases": 0, "planted": 0, "caught": 0, "seconds": 0.0, "findings": []}
    prove(args, report)
    report["per_second"] = {}
    for i, name in enumerate(args.readers):
        left = 60 * args.minutes - (time.monotonic() - begin)
        seconds = max(5.0, left / (len(args.readers) - i))
        start = time.monotonic()
        run = fuzz(name, seconds, {**reader(name).seeds(), **kept(name)}, args.seconds, args.seed)
        report["cases"] += run.cases
        report["per_second"][name] = round(run.cases / (time.monotonic() - start), 1)
        for kind, data in run.failed:
            path = out / f"{name}-{kind}-{hashlib.sha256(data).hexdigest()[:8]}"
            path.write_bytes(data)
            path.with_suffix(".log").write_text(run.log)
            report["findings"].append(
                {"reader": name, "kind": KINDS.get(kind, kind), "input": str(path), "cause": cause(run.log)}
            )
        print(f"{name}: {run.cases} cases in {time.monotonic() - start:.0f} s, {len(run.failed)} findings", flush=True)
        if args.keep and not run.failed:
            keep(reader(name), run.evolved)
    report["coverage"] = coverage(args.readers)
    report["seconds"] = round(time.monotonic() - begin, 1)
    if args.report:
        with whole_file(args.report) as part:
            part.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return int(bool(report["findings"]) or report["caught"] < report["planted"])


if __name__ == "__main__":
    sys.exit(main())
