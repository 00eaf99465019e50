"""Element types are listed once: no kernel, launch or check outside of a few files knows one by name."""

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
NATIVE = sorted(path for path in CSRC.rglob("*") if path.suffix in {".cpp", ".h", ".cu", ".cuh"})

# What a new element type touches, and for what.
PLACES = {
    "kernels/dtype.h": "how it is stored, and a line in the list of the devices that take it",
    "ops/common.cpp": "torch's number for it, where torch has no C++ type of that name",
    "kernels/cpu_isa.h": "which copies of the CPU kernels compute in it, where not all do",
    "kernels/cpu/vec.h": "conversions, one number and a vector at a time",
    "kernels/cpu/operand.h": "products of pairs, where a CPU has them",
    "kernels/cuda/ptx.cuh": "conversions and mma",
    "kernels/cuda/choice.h": "for which variants of kernels are compiled to be timed",
    "kernels/cuda/sm90/wgmma.cuh": "wgmma, pairs and tensor maps, if it has 16 bits",
}
NAMES = r"\b(b?float16|kB?Float\d+|at::k(Half|Double|BFloat16)|CU_TENSOR_MAP_DATA_TYPE_\w+)\b"


def _named(text: str) -> set[str]:
    """Element types that the code names, comments apart."""
    return {match[0] for match in re.finditer(NAMES, re.sub(r"//[^\n]*", "", text))}


@pytest.mark.parametrize("path", NATIVE, ids=lambda path: str(path.relative_to(CSRC)))
def test_element_types_are_named_where_they_are_listed(path: Path) -> None:
    place = str(path.relative_to(CSRC))
    assert place in PLACES or not _named(path.read_text())


def test_every_place_names_one() -> None:
    assert all(_named((CSRC / place).read_text()) for place in PLACES)


def test_a_ladder_of_types_is_found() -> None:
    assert _named("size = p.dtype == Dtype::kFloat32 ? 4 : 2;") == {"kFloat32"}
    assert _named("if constexpr (std::is_same_v<T, bfloat16>) {}") == {"bfloat16"}
    assert not _named("visit_cuda_dtype(p.dtype, f);  // of float16")
