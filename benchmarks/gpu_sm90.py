"""Hopper's own kernels of one operator against the common ones, call by call in turn, on a GPU.

    python benchmarks/gpu_sm90.py "target_attention reordered" [--seconds N] --json FILE

Cases are those of benchmarks/gpu.py in 16 bits. Results of Hopper's kernels are checked against a peer's before the
clock starts. FILE gets the times and all cases that there are, so that one that has not run is not forgotten; exits
with 1 where there is such a case. `--device cpu` runs the same on small shapes anywhere, by the same kernels twice.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu import LIMITS, cases
from gpu_clock import Clock
from problem import Case, Direction, check

from stca.files import whole_file


@contextmanager
def _families(value: str) -> Iterator[None]:
    """STCA_SM90, which every call looks at."""
    os.environ["STCA_SM90"] = value
    try:
        yield
    finally:
        del os.environ["STCA_SM90"]


def measure(case: Case, direction: Direction, clock: Clock) -> dict[str, float]:
    """Milliseconds by Hopper's kernels and by the common ones."""
    torch.manual_seed(0)
    problem = case.build()
    peer = next(name for name, way in problem.ways.items() if name != "stca" and not way.ours)
    problem.ways = {name: problem.ways[name] for name in ("stca", peer)}
    with _families("1"):
        runners, cannot = check(problem, direction, LIMITS[case.dtype])
    if peer not in runners:
        raise AssertionError(f"nothing to check results against: {peer}: {cannot[peer]}")
    call = runners["stca"].call(direction)

    def by(value: str) -> Callable[[], object]:
        def run() -> None:
            with _families(value):
                call()

        return run

    ms = clock.medians({"own": by("1"), "common": by("0")})
    return {"own_ms": ms["own"], "common_ms": ms["common"]}


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("op", help="operator of benchmarks/gpu.py")
    parser.add_argument("--seconds", type=float, default=60, help="no case begins after that")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    began = time.perf_counter()
    torch.set_default_device(args.device)
    clock = Clock(args.device)
    chosen = [each for each in cases(args.device == "cpu") if each.op == args.op and each.dtype != torch.float32]
    rows: list[dict[str, Any]] = [
        {"op": case.op, "case": case.name, "dtype": str(case.dtype).removeprefix("torch."), "direction": direction}
        for case in chosen
        for direction in case.directions
    ]
    pairs = ((case, direction) for case in chosen for direction in case.directions)
    for row, (case, direction) in zip(rows, pairs, strict=True):
        if time.perf_counter() - began > args.seconds:
            row["fault"] = "out of time"
        else:
            try:
                row |= measure(case, direction, clock)
            except (AssertionError, RuntimeError, ValueError) as error:
                row["fault"] = str(error).splitlines()[0]
        print(*row.values(), sep=", ", flush=True)
        with whole_file(args.json) as part:
            part.write_text(json.dumps(rows, indent=1) + "\n")
    raise SystemExit(not rows or any("own_ms" not in row for row in rows))


if __name__ == "__main__":
    main()
