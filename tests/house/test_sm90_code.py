"""What `make kernels` refuses of Hopper's kernels: words of the compiler, and machine code, both made up here."""

import subprocess
from pathlib import Path

import pytest
import sm90_code
from sass import Instruction

COMPILE = Path(__file__).parents[2] / "csrc" / "kernels" / "cuda" / "sm90" / "compile.sh"
LOOP = ["WARPGROUP.ARRIVE", "HGMMA.64x256x16.F32.BF16", "HGMMA.64x256x16.F32.BF16", "WARPGROUP.DEPBAR.LE"]
SERIAL = ["WARPGROUP.ARRIVE", "HGMMA.64x64x16.F32", "WARPGROUP.ARRIVE", "HGMMA.64x64x16.F32"]


def _code(*loops: list[str], before: str = "MOV") -> list[Instruction]:
    """Machine code of loops, one after the other."""
    code = [Instruction(0, "", before, "")]
    for loop in loops:
        begin = 16 * len(code)
        code += [Instruction(begin + 16 * i, "", opcode, "") for i, opcode in enumerate(loop)]
        code.append(Instruction(16 * len(code), "@P0", "BRA", f" 0x{begin:x}"))
    return [*code, Instruction(16 * len(code), "", "EXIT", "")]


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (_code(LOOP, ["FADD"], LOOP), ""),
        (_code(LOOP, ["FADD"]), "has 1 loops of products, expected 2"),
        (_code(LOOP, LOOP, ["HMMA.16816.F32"]), "has products of a warp (HMMA)"),
        (_code(LOOP, SERIAL), "has products that are made one after the other"),
        (_code(LOOP, LOOP, before="STL.64"), "has 1 accesses of local memory"),
        (_code(LOOP, LOOP, ["LDL"]), "has 1 accesses of local memory"),
    ],
)
def test_machine_code(code: list[Instruction], fault: str) -> None:
    kernels = {f"_Z{name}": _code(*[LOOP] * loops) for name, loops in sm90_code.LOOPS.items()} | {
        "common_kernel": _code(["LDL"])
    }
    assert sm90_code.faults(kernels) == []
    name = "_Ztarget_attention_sm90_kernel"
    assert sm90_code.faults(kernels | {name: code}) == ([f"{name}: {fault}"] if fault else [])


def test_kernels_that_are_missing_or_new_are_faults() -> None:
    found = sm90_code.faults({"_Zother_sm90_kernel": _code(LOOP)})
    assert found[:-1] == [f"{name}: is not there" for name in sm90_code.LOOPS]
    assert "has no place in LOOPS" in found[-1]


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        ("ptxas info    : Used 168 registers", 0, 0),
        ("", 3, 3),
        ("ptxas info    : (C7508) Potential Performance Loss: wgmma.mma_async", 0, 1),
        ("wgmma.mma_async instructions are serialized due to a function call", 0, 1),
    ],
)
def test_words_of_the_compiler(words: str, code: int, expected: int) -> None:
    command = ["sh", str(COMPILE), "sh", "-c", f"echo '{words}' >&2; exit {code}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == expected
    assert words in done.stdout
