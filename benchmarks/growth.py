"""How time and memory grow with the history's length L, the targets m and the requests R.

    python benchmarks/growth.py [--quick] --json FILE

Measures target_attention in both forms and a training step of STCA at D = 256, H = 8, float32, one variable at a time,
and fits time ~ variable^exponent to the larger half of its values. FILE gets a list of objects with keys op, direction,
variable, values, ms, peak_mb, exponent; benchmarks/report.py draws them.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attention
import numpy as np
import stack
import torch
from measure import interleaved_ms, keep_freed_memory, peak_extra_mb
from problem import DIRECTIONS, Direction, Problem, Runner
from ragged import Requests
from tqdm import tqdm

from stca.files import whole_file

D, H = 256, 8
VALUES = {
    "L": (512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 100_000),
    "m": (1, 2, 4, 8, 16, 32, 64, 128, 300, 1000),
    "R": (1, 2, 4, 8, 16, 32, 64),
}
_OTHERS = {"L": 4096, "m": 8, "R": 1}  # what the other two are
_STEP = {"L": 2048, "m": 8, "R": 1}  # for the whole stack
_MOST_ROWS = 32_768  # of its history: 4 seconds a step
_SECONDS = 1.0


def attention_problem(form: Callable[..., Problem]) -> Callable[[Requests], Problem]:
    """The op in one form."""
    return lambda requests: form(requests, D, H, torch.float32, False)


OPS: dict[str, tuple[Callable[[Requests], Problem], tuple[Direction, ...]]] = {
    "target_attention reordered": (attention_problem(attention.reordered), DIRECTIONS),
    "target_attention projected": (attention_problem(attention.projected), DIRECTIONS),
    "STCA": (lambda requests: stack.training(requests, D, H, torch.float32), ("forward+backward",)),
}


def exponent(values: list[int], ms: list[float]) -> float:
    """Of time as a power of the variable, over the larger half of its values, where constant costs no longer count."""
    half = len(values) // 2
    slope: float = np.polyfit(np.log(values[half:]), np.log(ms[half:]), 1)[0]
    return slope


def _size(op: str, variable: str, value: int) -> dict[str, int]:
    return (_STEP if op == "STCA" else _OTHERS) | {variable: value}


def curve(op: str, direction: Direction, variable: str, values: list[int], seconds: float) -> dict[str, Any]:
    """Time and peak memory of stca at every value."""
    make, _ = OPS[op]
    ms, peak_mb = [], []
    for value in values:
        size = _size(op, variable, value)
        torch.manual_seed(0)
        problem = make(Requests(size["m"], [size["L"]] * size["R"]))
        out = Runner(problem.ways["stca"], problem.leaves).result()
        call = Runner(problem.ways["stca"], problem.leaves, torch.ones_like(out)).call(direction)
        ms.append(interleaved_ms({"stca": call}, seconds=seconds)["stca"])
        peak_mb.append(peak_extra_mb(call))
    fitted = exponent(values, ms)
    found = {"op": op, "direction": direction, "variable": variable, "values": values}
    return found | {"ms": ms, "peak_mb": peak_mb, "exponent": fitted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="every second value, up to 8192")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    keep_freed_memory()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    wanted = [(op, way, variable) for op, (_, ways) in OPS.items() for way in ways for variable in VALUES]
    curves = []
    for op, direction, variable in tqdm(wanted, unit="curve"):
        values = [v for v in VALUES[variable] if not args.quick or v <= 8192]
        values = values[::-2][::-1] if args.quick else values
        values = [v for v in values if op != "STCA" or math.prod(_size(op, variable, v)[n] for n in "LR") <= _MOST_ROWS]
        curves.append(curve(op, direction, variable, values, 0.1 if args.quick else _SECONDS))
        with whole_file(args.json) as part:
            part.write_text(json.dumps(curves, indent=1) + "\n")
        tqdm.write(f"{op}, {direction}: time grows as {variable}^{curves[-1]['exponent']:.2f}")


if __name__ == "__main__":
    main()
