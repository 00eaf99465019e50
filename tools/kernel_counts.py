"""What nvcc made of the attention kernels, and the time that follows from it at the earliest: `make counts`.

    python tools/kernel_counts.py build/kernels [--arch 90a] [--dtype bfloat16]

First a line for each loop of a kernel that does its work: registers, bytes spilled, and, on the way through it that a
full tile takes, the instructions of a warp; how many find addresses and conditions, also for each copy of 16 bytes;
and which unit of a multiprocessor is busy longest, with the share of wgmma's peak that this unit lets through. Then,
for the cases of benchmarks/gpu.py, the time which that unit needs on an H200: no kernel is faster, most are slower,
since waiting counts as nothing here. These are predictions; benchmarks/NOTES.md has what was measured.
"""

import argparse
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import sass

# Of a multiprocessor of sm_90, each cycle.
PEAK = 4096  # FLOPs of wgmma
UNITS = {"issue": 4, "mma.sync": 2540 / 4096, "integers": 2, "exponentials": 0.5, "shared memory": 128}
CLOCK, MULTIPROCESSORS, COPY_GBS = 1.75e9, 132, 4260
INTEGERS = (
    "IMAD",
    "IADD",
    "VIADD",
    "LEA",
    "ISETP",
    "LOP",
    "SHF",
    "SEL",
    "IMNMX",
    "VIMNMX",
    "MOV",
    "R2UR",
    "S2R",
    "PRMT",
)
ROWS = {1024: 32, 64: 64}  # query rows of a tile of the forward pass, by width; 16 where they are few
# Products of each loop of a kernel: scores, dp, dk and dv; dq of ds that was kept; scores, dp and dq, where none is,
# which is with more query rows than these.
PRODUCTS = {"fwd_few": (2,), "fwd_kernel": (2,), "bwd_dkv": (4, 1), "bwd_dq": (3,)}
MOST_KEPT = {1024: 256, 64: 2048}


class Counts(NamedTuple):
    """Of one turn of a kernel's loop, for a warp."""

    instructions: int
    integers: int
    copies: int
    products: int
    units: dict[str, float]  # cycles that each unit is busy

    @property
    def busiest(self) -> str:
        """The unit that is busy longest."""
        return max(self.units, key=lambda unit: self.units[unit])

    @property
    def flops_per_cycle(self) -> float:
        """What the busiest unit lets through."""
        return 4096 * self.products / self.units[self.busiest]


def shared_bytes(instruction: sass.Instruction) -> int:
    """What a warp's instruction moves to or from shared memory."""
    opcode, last = instruction.opcode, instruction.opcode.split(".")[-1]
    if opcode.startswith("LDSM"):
        return 128 * (int(last) if last.isdigit() else 1)
    if opcode.startswith(("LDS", "STS", "LDGSTS")):
        return 4 * (int(last) if last.isdigit() else 32)
    return 0


def worth(instruction: sass.Instruction) -> float:
    """A full tile's way has all products, all copies of 16 bytes, and nothing that can be left out."""
    if instruction.opcode.startswith(("HMMA", "HGMMA")):
        return 1000
    return 100 if instruction.opcode.startswith("LDGSTS") and instruction.opcode.endswith("128") else -1


def work_loops(code: list[sass.Instruction]) -> list[list[sass.Instruction]]:
    """The ways through loops with products, but for loops around one that their way takes, and loops within one."""
    ways = {loop: sass.way_through(code, *loop, worth) for loop in sass.loops(code)}
    ways = {loop: way for loop, way in ways.items() if any(each.opcode.startswith("HMMA") for each in way)}
    own = {loop: way for loop, way in ways.items() if not any(code[end] in way for b, end in ways if (b, end) != loop)}
    return [
        way
        for (begin, end), way in sorted(own.items())
        if not any(b <= begin and end <= e and (b, e) != (begin, end) for b, e in own)
    ]


def counts_of(way: list[sass.Instruction]) -> Counts:
    """Those of a way through a loop."""
    kinds = Counter(each.opcode.split(".")[0] for each in way)
    integers = sum(n for kind, n in kinds.items() if kind.startswith(INTEGERS))
    work = {
        "issue": len(way),
        "mma.sync": kinds["HMMA"],
        "integers": integers,
        "exponentials": kinds["MUFU"],
        "shared memory": sum(map(shared_bytes, way)),
    }
    units = {unit: work[unit] / speed for unit, speed in UNITS.items()}
    return Counts(len(way), integers, kinds["LDGSTS"], kinds["HMMA"], units)


def names_of(mangled: list[str]) -> list[str]:
    """Short ones, as the source has them: target_attention_fwd_kernel<Forward<bfloat16, 64, false>>."""
    text = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True).stdout
    plain = [re.sub(r"\(anonymous namespace\)::|stca::|cuda::|^void ", "", line) for line in text.splitlines()]
    return [line[: line.find("(")] if "(" in line else line for line in plain]


def predictions(kernels: dict[str, list[Counts]]) -> None:
    """The busiest unit's time for the cases of benchmarks/gpu.py."""
    cases = [("reordered", 1024, "true", 16, 64, 10_000, m) for m in (1, 8, 64)]
    cases += [("projected", 64, "false", 1, 16 * 16, 7_500, m) for m in (1, 8, 64, 300)]
    print(f"\n{'prediction, H200, bf16':40} {'forward ms':>10} {'backward ms':>12}")
    for order, width, shared, group, requests, length, m in cases:
        rows = m * group
        few = rows <= 16 and width <= 128
        read = 2.0 * requests * length * width * (1 if shared == "true" else 2) / (1e9 * COPY_GBS)
        line = ""
        kept = rows <= MOST_KEPT[width]
        for kinds, passes in ((["fwd_few" if few else "fwd_kernel"], 1), (["bwd_dkv"] + ["bwd_dq"] * (not kept), 2)):
            spent = 0.0
            for kind in kinds:
                tile = 16 if kind == "fwd_few" else ROWS[width]
                product = 2.0 * -(-rows // tile) * tile * length * width * requests
                wanted = re.compile(rf"_{kind}.*, {width}, {shared}(, \w+)?>")
                own = next(counts for name, counts in kernels.items() if wanted.search(name))
                for counts, products in zip(own, PRODUCTS[kind], strict=True):
                    if products > 1 or kept:
                        spent += products * product / (counts.flops_per_cycle * MULTIPROCESSORS * CLOCK)
            line += f" {1e3 * max(spent, passes * read):>11.2f}"
        print(f"{order} width {width}, m {m}, L {length}, {requests} x {rows} query rows".ljust(40), line)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=Path, help="where `make kernels` has built")
    parser.add_argument("--arch", default="90a")
    parser.add_argument("--dtype", default="bfloat16")
    arguments = parser.parse_args()
    library = arguments.build / "libstca_cuda.a"
    code, resources = sass.kernels(library, arguments.arch), sass.resources(library, arguments.arch)
    kernels: dict[str, list[Counts]] = {}
    print(f"{'kernel, sm_' + arguments.arch:66} reg spill instr copies int int/copy products FLOP/cycle peak  busiest")
    for mangled, name in zip(code, names_of(list(code)), strict=True):
        loops = [counts_of(way) for way in work_loops(code[mangled])]
        if not loops or arguments.dtype not in name:
            continue
        kernels[name] = loops
        own = resources[mangled]
        for counts in loops:
            per_copy = f"{counts.integers / counts.copies:8.1f}" if counts.copies else f"{'-':>8}"
            print(
                f"{name[:66]:66} {own['REG']:3} {own['STACK'] + own['LOCAL']:5} {counts.instructions:5} "
                f"{counts.copies:6} {counts.integers:3} {per_copy} {counts.products:8} {counts.flops_per_cycle:10.0f} "
                f"{counts.flops_per_cycle / PEAK:4.0%}  {counts.busiest}"
            )
    if kernels:
        predictions(kernels)


if __name__ == "__main__":
    main()
