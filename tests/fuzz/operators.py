"""Calls the operators at random: each call gives what the oracle gives, or a documented error because it must.

    python tests/fuzz/operators.py --count 2000 --seed 0    calls 0 to 1999, the same on every machine
    python tests/fuzz/operators.py --minutes 10             as many as there is time for
    python tests/fuzz/operators.py --call '{"op": ...}'     one call

Calls run in a child process, so that one that ends it, hangs or takes its memory is found like any other. What fails is
made smaller and printed, to be kept in tests/fuzz/operators_corpus. Exits with 1 where a call fails.
"""

import argparse
import copy
import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "helpers"), str(Path(__file__).parent)]

import operators_calls  # noqa: E402  (after the path to it)
from operators_planted import FAULTS  # noqa: E402

SECONDS = 60  # for a call
BYTES = 3 * 2**30  # resident memory of a child
PLANTED_CALLS = 200  # in which each fault of operators_planted.py must be found, by what it does
WORDS = {"ends": "ends the process", "hangs": "takes more than 10 s", "takes memory": "GiB", "wrong error": "KeyError"}


class Child:
    """A process that makes calls, one after the other, and says what came of each."""

    def __init__(self, fault: str = "", seconds: float = SECONDS) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.fault, self.seconds = fault, seconds

    def outcome(self, recipe: Any) -> str:
        """What came of the call: a word where it is well, else what is wrong."""
        if self.process is None or self.process.poll() is not None:
            command = [sys.executable, __file__, "--child", self.fault]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            self._answer(120)  # it has loaded
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(recipe) + "\n")
        self.process.stdin.flush()
        return self._answer(self.seconds)

    def end(self) -> None:
        """Ends the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _answer(self, seconds: float) -> str:
        assert self.process is not None
        assert self.process.stdout is not None
        end, why = time.monotonic() + seconds, f"takes more than {seconds} s"
        while time.monotonic() < end:
            if select.select([self.process.stdout], [], [], 0.1)[0]:
                line = self.process.stdout.readline()
                if line:
                    return str(json.loads(line))
                return f"ends the process: status {self.process.wait()}"
            if _resident(self.process.pid) > BYTES:
                why = f"takes more than {BYTES / 2**30} GiB"
                break
        self.end()
        return why


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def serve(fault: str) -> None:
    """The child: a call on each line, an outcome on each line."""
    import operators_judge
    import operators_planted
    import torch

    torch.set_num_threads(2)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else speaks on that line

    def say(outcome: str) -> None:
        answers.write(json.dumps(outcome) + "\n")
        answers.flush()

    if fault:
        operators_planted.plant(fault)
    say("ready")
    for line in sys.stdin:
        try:
            say(operators_judge.judge(json.loads(line)))
        except BaseException as error:  # also an exception that no except clause of a user would catch
            say(f"{type(error).__name__}: {error}"[:600])


def is_well(outcome: str) -> bool:
    """Whether an outcome is one of those that are allowed."""
    return outcome in ("equal", "refused", "huge")


def smaller(recipe: Any) -> Iterator[Any]:
    """The call with one thing simpler."""

    def but(change: Any) -> Any:
        other = copy.deepcopy(recipe)
        change(other)
        return other

    if recipe["mode"] != "plain":
        yield but(lambda r: r.update(mode="plain"))
    for name, spec in recipe["args"].items():
        if spec is not None:
            yield but(lambda r, name=name: r["args"].update({name: None}))
        if not isinstance(spec, dict):
            continue
        for key, simple in (("layout", "contiguous"), ("fill", "normal")):
            if spec.get(key, simple) not in (simple, "one_element"):
                yield but(lambda r, name=name, key=key, simple=simple: r["args"][name].update({key: simple}))
        for at, size in enumerate(spec.get("shape", [])):
            for less in {0, 1, size // 2} - {size}:
                yield but(lambda r, name=name, at=at, less=less: r["args"][name]["shape"].__setitem__(at, less))


def smallest(child: Child, recipe: Any, outcome: str) -> Any:
    """The simplest call found that goes wrong in the same way."""
    kind, end = outcome.split(":")[0], time.monotonic() + SECONDS

    def goes_wrong(other: Any) -> bool:
        return time.monotonic() < end and child.outcome(other).split(":")[0] == kind

    while (found := next(filter(goes_wrong, smaller(recipe)), None)) is not None:
        recipe = found
    return recipe


def found(fault: str, seed: int) -> bool:
    """Whether a fault that is planted into an operator is found."""
    child = Child(fault, 10)
    calls = map(operators_calls.random_call, range(seed, seed + PLANTED_CALLS))
    outcomes = (child.outcome(recipe) for recipe in calls if recipe["op"] == FAULTS[fault][0])
    caught = any(not is_well(outcome) and WORDS.get(fault, "") in outcome for outcome in outcomes)
    child.end()
    return caught


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2**60)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="the number of the first call")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--no-planted", action="store_true", help="no fault is planted")
    parser.add_argument("--call", help="one call, as findings show it")
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child is not None:
        return serve(args.child)
    begin = time.monotonic()
    planted = () if args.call or args.no_planted else tuple(FAULTS)
    missed = [fault for fault in planted if not found(fault, args.seed)]
    print(f"planted faults: {time.monotonic() - begin:.0f} s", flush=True)
    findings = [f"the planted fault {fault!r} is not found in {PLANTED_CALLS} calls" for fault in missed]
    child, outcomes = Child(), Counter[str]()
    numbers = range(args.seed, args.seed + (1 if args.call else args.count))
    for seed in numbers:
        if time.monotonic() - begin > 60 * args.minutes:
            break
        recipe = json.loads(args.call) if args.call else operators_calls.random_call(seed)
        outcome = child.outcome(recipe)
        outcomes[outcome if is_well(outcome) else "wrong"] += 1
        if not is_well(outcome):
            print(f"call {seed}: {outcome}", flush=True)
            findings.append(json.dumps({"seed": seed, "outcome": outcome, "call": smallest(child, recipe, outcome)}))
            print(findings[-1], flush=True)
    child.end()
    seconds = round(time.monotonic() - begin)
    caught = len(planted) - len(missed)
    report: dict[str, Any] = {"name": "operators", "cases": outcomes.total(), "planted": len(planted), "caught": caught}
    if args.report:
        args.report.parent.mkdir(parents=True, exist_ok=True)
        report |= {"seconds": seconds, "findings": findings, **outcomes}
        args.report.write_text(json.dumps(report, indent=1) + "\n")
    for fault in missed:
        print(f"MISSED: {fault}")
    print(f"{caught} of {len(planted)} planted faults found in {seconds} s, and {dict(outcomes)}")
    print(f"{outcomes.total()} calls from {args.seed}")
    sys.exit(len(findings) > 0)


if __name__ == "__main__":
    main()
