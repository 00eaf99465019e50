"""libstca_ops-*.so is the operators, whole, for a process without the package, and for one without Python."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stca.native import LIBRARY, _library

PROGRAM = """
import sys, torch
torch.ops.load_library(sys.argv[1])
gathered, = torch.ops.stca.request_gather([torch.eye(2)], torch.tensor([0, 2, 3]), None)
print(gathered.tolist(), "stca" in sys.modules)
"""


def _symbols(*options: str) -> list[str]:
    lines = subprocess.check_output(["nm", "--dynamic", *options, LIBRARY], text=True).splitlines()
    return [line.split()[-1].split("@")[0] for line in lines]


def test_it_needs_no_python() -> None:
    needed = _symbols("--undefined-only")
    assert any("c10" in name for name in needed)
    assert [name for name in needed if re.match(r"_?Py", name)] == []
    libraries = subprocess.check_output(["readelf", "--dynamic", LIBRARY], text=True)
    assert re.findall(r"NEEDED.*(python|torch_python)", libraries) == []


def test_what_others_see_of_it_is_its_c_functions() -> None:
    own = [name for name in _symbols("--defined-only", "--no-demangle") if "stca" in name]
    assert own == sorted(
        ["stca_build_info", "stca_cpu_isa", "stca_set_cpu_isa", "stca_sm90_kernels"],
    )


def test_it_runs_without_the_package(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, LIBRARY], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]] False", done.stderr


def test_each_torch_takes_its_library(tmp_path: Path) -> None:
    assert LIBRARY.stem == f"libstca_ops-{'.'.join(torch.__version__.split('.')[:2])}"
    for version in ("2.11", "2.9", "2.13"):
        (tmp_path / f"libstca_ops-{version}.so").touch()
    assert _library(tmp_path, "2.11.0+cu130").name == "libstca_ops-2.11.so"
    assert _library(tmp_path, "2.13.1").name == "libstca_ops-2.13.so"


def test_a_newer_torch_takes_the_newest_library_and_says_so(tmp_path: Path) -> None:
    for version in ("2.9", "2.11"):
        (tmp_path / f"libstca_ops-{version}.so").touch()
    with pytest.warns(UserWarning, match=r"^stca: built for torch 2\.9, 2\.11, untested with 2\.16\.0a0\+git$"):
        assert _library(tmp_path, "2.16.0a0+git").name == "libstca_ops-2.11.so"


def test_an_older_torch_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=f"^stca: {tmp_path} holds no library of operators: is it the source"):
        _library(tmp_path, "2.11.0")
    (tmp_path / "libstca_ops-2.13.so").touch()
    with pytest.raises(ImportError, match=r"^stca: this installation is built for torch 2\.13, got 2\.11\.0$"):
        _library(tmp_path, "2.11.0")
