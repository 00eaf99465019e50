"""Instruction sets of the CPU kernels: each is one line of cpu_isa.h and one of CMakeLists.txt."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import stca

KERNELS = Path(__file__).parents[2] / "csrc" / "kernels"
CMAKE = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{Path('/usr/bin')}") or "cmake"
PROGRAM = """
#include <cstdio>
#include <initializer_list>
#include "cpu_isa.h"
namespace stca {
STCA_DECLARE_CPU_KERNEL(int, number, int x)
}
#define DEFINE(isa, ...) int stca::isa::number(int x) { return x + int(stca::CpuIsa::isa); }
STCA_FOR_EACH_CPU_ISA(DEFINE)
int main() {
  const bool known = stca::set_cpu_isa("fifth");
  const stca::CpuIsa isa = stca::cpu_isa();
  std::printf("%d %s %d", known, stca::cpu_isa_name(isa), STCA_CPU_KERNEL(isa, number)(10) - int(isa));
  for (auto dtype : {stca::Dtype::kBFloat16, stca::Dtype::kFloat32}) {
    std::printf(" %s", stca::cpu_isa_name(stca::cpu_isa(dtype)));
  }
}
"""


def _insert(path: Path, before: str, line: str) -> None:
    """Puts a line before the first that starts with `before`."""
    text = path.read_text()
    place = re.search(rf"^{re.escape(before)}", text, re.MULTILINE)
    assert place is not None, f"{before} starts no line of {path.name}"
    path.write_text(text[: place.start()] + line + "\n" + text[place.start() :])


def test_a_new_one_is_two_lines(tmp_path: Path) -> None:
    kernels = tmp_path / "kernels"
    shutil.copytree(KERNELS, kernels)
    _insert(kernels / "cpu_isa.h", "  X(avx2,", "  X(fifth, true, dtype == Dtype::kBFloat16, __VA_ARGS__) \\")
    _insert(kernels / "CMakeLists.txt", "stca_add_isa(baseline)", "stca_add_isa(fifth)")

    (tmp_path / "main.cpp").write_text(PROGRAM)
    sources = ["main.cpp", "kernels/cpu_isa.cpp", "-Ikernels", "-std=c++17", "-o", "program"]
    subprocess.run(["c++", *sources], cwd=tmp_path, check=True)
    assert subprocess.check_output([tmp_path / "program"], text=True) == "1 fifth 10 fifth baseline"

    subprocess.run([CMAKE, "-S", kernels, "-B", tmp_path / "build"], check=True, capture_output=True)
    targets = subprocess.check_output([CMAKE, "--build", tmp_path / "build", "--target", "help"], text=True)
    assert "stca_cpu_fifth" in targets


def test_they_are_named_nowhere_else() -> None:
    names = [name for name in stca.build_info()["cpu_isas"] if name != "baseline"]
    mentions = re.compile(rf"\b({'|'.join(names)})\b") if names else re.compile("(?!)")
    found = {
        str(path.relative_to(KERNELS.parent))
        for path in KERNELS.parent.rglob("*.*")
        if mentions.search(path.read_text())
    }
    assert found == ({"kernels/cpu_isa.h", "kernels/CMakeLists.txt"} if names else set())
