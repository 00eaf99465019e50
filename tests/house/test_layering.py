"""Each layer knows nothing of the one above, an op has one name everywhere, and files stay short."""

import inspect
import re
from pathlib import Path

import pytest
from registered import OPS

import stca

ROOT = Path(__file__).parents[2]
NATIVE = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".cpp", ".h", ".cu", ".cuh"})
FOLDERS = ("stca", "tests", "examples", "benchmarks", "tools")
PYTHON = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))


def _under(folder: str) -> list[Path]:
    return [path for path in NATIVE if path.is_relative_to(ROOT / "csrc" / folder)]


def _matches(paths: list[Path], pattern: str) -> list[str]:
    """file:line of every match."""
    return [
        f"{path.relative_to(ROOT)}:{number}"
        for path in paths
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if re.search(pattern, line)
    ]


def test_something_is_searched() -> None:
    assert {path.name for path in _under("kernels")} >= {"dtype.h", "target_attention.h"}
    assert _matches(_under("ops"), r"#include <ATen/")
    assert "target_attention" in OPS


def test_kernels_know_no_torch_and_no_python() -> None:
    assert not _matches(_under("kernels"), r"#\s*include\s*[<\"](torch|ATen|c10|Python|pybind11)\b")
    assert not _matches(_under("kernels"), r"\b(at|torch|c10|pybind11|py)::")


def test_kernels_include_nothing_above_them() -> None:
    assert not _matches(_under("kernels"), r"#\s*include\s*\".*(ops/|library|module)")
    assert not _matches(_under("kernels"), r"\b(exit|abort)\s*\(")


def test_native_ops_know_no_autograd_and_no_python() -> None:
    assert not _matches(_under("ops"), r"#\s*include\s*[<\"](torch/(csrc|extension|autograd)|Python|pybind11)")
    assert not _matches(_under("ops"), r"(?i)autograd|requires_grad")


def test_c_api_knows_no_torch() -> None:
    assert not _matches([ROOT / "csrc" / "c_api.cpp"], r"#\s*include\s*[<\"](torch|ATen|c10)\b")


def test_library_holds_every_schema() -> None:
    found = _matches(NATIVE, r"\bTORCH_LIBRARY(_FRAGMENT)?\s*\(")
    assert [place.split(":")[0] for place in found] == ["csrc/library.cpp"]
    assert not _matches(PYTHON, r"torch\.library\.(define|custom_op)\(|torch\.library\.Library\(")


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_one_name(op: str) -> None:
    assert op in stca.ops.__all__
    assert getattr(stca.ops, op).__module__ == f"stca.ops.{op}"
    assert (ROOT / "csrc" / "ops" / f"{op}.cpp").exists()
    assert list((ROOT / "tests" / "ops").glob(f"test_{op}*.py"))
    assert hasattr(stca.reference, op)


@pytest.mark.parametrize("op", stca.ops.__all__)
def test_the_oracle_can_stand_in_for_the_op(op: str) -> None:
    assert inspect.signature(getattr(stca.reference, op)) == inspect.signature(getattr(stca.ops, op))


@pytest.mark.parametrize("op", stca.ops.__all__)
def test_an_op_documents_itself(op: str) -> None:
    text = inspect.getdoc(getattr(stca.ops, op)) or ""
    for section in ("Args:", "Returns:", "Raises:", "Source:", "Example:", ">>> "):
        assert section in text, section
    for name in inspect.signature(getattr(stca.ops, op)).parameters:
        assert re.search(rf"^    {name}(, \w+)*: |^    (\w+, )+{name}(, \w+)*: ", text, re.MULTILINE), name


def test_commits_run_what_make_lint_runs() -> None:
    lint = re.findall(r"^\t\$\(BIN\)/(ruff|mypy|clang-format)(.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    hooks = re.findall(r"entry: \.venv/bin/([\w-]+)(.*)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert len(hooks) == 4
    for (program, options), (hooked, entry) in zip(lint, hooks, strict=True):
        assert program == hooked
        assert options.split(" $")[0].removesuffix(" .") == entry


@pytest.mark.parametrize("path", NATIVE + PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path: Path) -> None:
    most = 400 if path in NATIVE else 250
    assert len(path.read_text().splitlines()) <= most
