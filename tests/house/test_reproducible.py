"""One commit, one library: the folder that it is built in leaves no trace. `make wheel-twice` compares whole wheels."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from runpy import run_path

import pytest
import torch

from stca.native import LIBRARY

ROOT = Path(__file__).parents[2]
OBJECTS = ("CMakeFiles/stca_ops.dir/csrc/c_api.cpp.o", "csrc/kernels/CMakeFiles/stca_kernels.dir/cpu_isa.cpp.o")


def _tool(name: str) -> str:
    return shutil.which(name, path=f"{Path(sys.executable).parent}:/usr/bin") or name


def _configured(tree: Path) -> Path:
    """The build folder of a copy of the sources, with debug information."""
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    shutil.copy(ROOT / "CMakeLists.txt", tree)
    build = tree / "build"
    options = [f"-DSTCA_TORCH_DIR={torch.__path__[0]}", "-DSTCA_CUDA=OFF", "-DCMAKE_CXX_FLAGS=-g"]
    options += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}"]
    subprocess.run([_tool("cmake"), "-S", str(tree), "-B", str(build), *options], check=True, capture_output=True)
    return build


def _objects(tree: Path) -> list[bytes]:
    """Of two files that name their folder."""
    build = _configured(tree)
    for name in ("c_api.cpp", "kernels/cpu_isa.cpp"):
        with (tree / "csrc" / name).open("a") as source:
            source.write("extern const char* const kFile;\nconst char* const kFile = __FILE__;\n")
    subprocess.run([_tool("ninja"), "-C", build, *OBJECTS], check=True, capture_output=True)
    return [(build / name).read_bytes() for name in OBJECTS]


def test_two_folders_give_the_same_objects(tmp_path: Path) -> None:
    one, other = _objects(tmp_path / "one"), _objects(tmp_path / "a-longer-name" / "other")
    assert one == other
    assert all(str(tmp_path).encode() not in made for made in one)


def test_the_kernels_are_compiled_once_for_every_torch(tmp_path: Path) -> None:
    command = [_tool("ninja"), "-C", str(_configured(tmp_path)), "-t", "commands"]
    kernels, library = (
        subprocess.check_output([*command, target], text=True) for target in ("stca_kernels", "stca_ops")
    )
    assert "target_attention.cpp" in kernels
    assert torch.__path__[0] in library
    assert torch.__path__[0] not in kernels


def test_the_library_names_no_folder_of_its_build() -> None:
    folders = (str(ROOT), str(Path(torch.__path__[0]).parent))
    assert [folder for folder in folders if folder.encode() in LIBRARY.read_bytes()] == []
    assert "RUNPATH" not in subprocess.check_output(["readelf", "--dynamic", LIBRARY], text=True)


def _wheel(path: Path, *entries: tuple[str, bytes], year: int = 2026) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in entries:
            wheel.writestr(zipfile.ZipInfo(name, (year, 1, 1, 0, 0, 0)), content)
    return path


def test_differences_of_wheels_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    differences = run_path(str(ROOT / "tools" / "wheel_twice.py"))["differences"]
    one = _wheel(tmp_path / "one.whl", ("a", b"same"), ("b", b"1234"))
    assert differences(one, _wheel(tmp_path / "equal.whl", ("a", b"same"), ("b", b"1234"))) == []
    other = _wheel(tmp_path / "other.whl", ("a", b"same"), ("b", b"12x45"), ("c", b""))
    assert differences(one, other) == ["c: in one of them", "b: 2 of 5 bytes"]
    later = _wheel(tmp_path / "later.whl", ("a", b"same"), ("b", b"1234"), year=2027)
    assert differences(one, later) == ["a: its time or its mode", "b: its time or its mode"]
    turned = _wheel(tmp_path / "turned.whl", ("b", b"1234"), ("a", b"same"))
    assert differences(one, turned) == ["the order or the compression of their entries"]
