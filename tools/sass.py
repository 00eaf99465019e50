"""Reads machine code that nvcc made: the instructions of each kernel, and the way through a loop that does its work."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+ )?([A-Z][\w.]*)([^;]*);")


class Instruction(NamedTuple):
    """One of a kernel."""

    address: int
    predicate: str  # "" where it is always executed
    opcode: str
    operands: str


def cuobjdump() -> str:
    """The toolkit's, or the one that comes with Triton."""
    spec = find_spec("triton")
    inside = [] if spec is None or spec.origin is None else list(Path(spec.origin).parent.rglob("cuobjdump"))
    found = shutil.which("cuobjdump") or next(map(str, inside), None)
    if found is None:
        sys.exit("no cuobjdump here, neither a toolkit's nor Triton's")
    return found


def _dump(option: str, arch: str, library: str | Path) -> str:
    command = [cuobjdump(), option, "--gpu-architecture", f"sm_{arch}", str(library)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def kernels(library: str | Path, arch: str) -> dict[str, list[Instruction]]:
    """The instructions of each kernel, by its mangled name."""
    found: dict[str, list[Instruction]] = {}
    own: list[Instruction] = []
    for line in _dump("--dump-sass", arch, library).splitlines():
        if function := re.search(r"Function : (\S+)", line):
            own = found[function[1]] = []
        elif at := _LINE.match(line):
            own.append(Instruction(int(at[1], 16), (at[2] or "").strip(), at[3], at[4].strip()))
    return found


def resources(library: str | Path, arch: str) -> dict[str, dict[str, int]]:
    """Registers of a thread (REG), bytes of stack (STACK) and of local memory (LOCAL), by mangled name."""
    text = _dump("--dump-resource-usage", arch, library)
    found = re.findall(r"Function (\S+):\s+(REG:.*)", text)
    return {name: {k: int(v) for k, v in re.findall(r"([A-Z]+):(\d+)", line)} for name, line in found}


def _target(instruction: Instruction) -> int | None:
    at = re.search(r"0x([0-9a-f]+)", instruction.operands)
    return int(at[1], 16) if at else None


def loops(code: list[Instruction]) -> list[tuple[int, int]]:
    """Where each loop begins and ends: places in `code` of its first instruction and of the branch back to it."""
    place = {each.address: i for i, each in enumerate(code)}
    found = []
    for i, each in enumerate(code):
        target = _target(each) if each.opcode == "BRA" else None
        if target is not None and target < each.address:
            found.append((place[target], i))
    return found


def way_through(
    code: list[Instruction], begin: int, end: int, worth: Callable[[Instruction], float]
) -> list[Instruction]:
    """The instructions that one turn of a loop executes, on the way that is worth most; loops inside are taken once."""
    place = {each.address: i for i, each in enumerate(code)}
    joins: dict[str, int] = {}  # where threads that wait for each other go on, by the register that BSSY gives it
    after: list[list[int]] = []
    for i in range(begin, end + 1):
        each, next_ones = code[i], [i + 1]
        target = _target(each)
        if each.opcode == "BSSY" and target is not None:
            joins[each.operands.split(",")[0]] = place[target]
        elif each.opcode == "BSYNC":
            next_ones = [joins.get(each.operands, i + 1)]
        elif each.opcode in ("EXIT", "RET"):
            next_ones = [i + 1] if each.predicate else []
        elif each.opcode == "BRA" and target is not None:
            conditional = each.predicate or "," in each.operands
            next_ones = ([place[target]] if place[target] > i else []) + ([i + 1] if conditional else [])
        after.append([n for n in next_ones if i < n <= end])
    best: dict[int, tuple[float, int | None]] = {end: (worth(code[end]), None)}
    for i in range(end - 1, begin - 1, -1):
        ways = [(best[n][0], n) for n in after[i - begin] if n in best]
        if ways:
            value, n = max(ways)
            best[i] = (value + worth(code[i]), n)
    way, at = [], begin if begin in best else None
    while at is not None:
        way.append(code[at])
        at = best[at][1]
    return way
