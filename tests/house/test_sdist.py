"""A source distribution is made without torch; a build from it needs one, and says so before pip fetches anything."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("setup.py", "pyproject.toml", "CMakeLists.txt", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE")
# pip's calls, as of an environment that holds what pyproject.toml requires and no more.
WITHOUT_TORCH = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else find(name, package)
"""
CALL = "from setuptools import build_meta; build_meta.{}({!r})"


def _call(hook: str, out: Path, folder: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", before + CALL.format(hook, str(out))]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip unpacks."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("out")
    for name in SOURCES:
        shutil.copy(ROOT / name, tree)
    for name in ("csrc", "stca"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    done = _call("build_sdist", out, tree, WITHOUT_TORCH)
    assert done.returncode == 0, done.stderr
    (made,) = out.glob("stca-*.tar.gz")
    with tarfile.open(made) as archive:
        archive.extractall(out, filter="data")
    (folder,) = out.glob("stca-*/")
    return folder


def test_it_holds_what_a_build_needs(unpacked: Path) -> None:
    for name in ("csrc", "stca"):
        sources = {path.relative_to(ROOT) for path in (ROOT / name).rglob("*.*")}
        wanted = {path for path in sources if path.suffix not in (".so", ".pyc") and "__pycache__" not in path.parts}
        assert [str(path) for path in sorted(wanted) if not (unpacked / path).exists()] == []
    assert [name for name in SOURCES if not (unpacked / name).exists()] == []


@pytest.mark.parametrize("hook", ["prepare_metadata_for_build_wheel", "build_wheel"])
def test_without_torch_it_stops_in_one_line(hook: str, unpacked: Path, tmp_path: Path) -> None:
    done = _call(hook, tmp_path, unpacked, WITHOUT_TORCH)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == (
        "stca builds against the torch it will run with: install torch, then `pip install --no-build-isolation .`"
    )
    assert list(tmp_path.iterdir()) == []


def test_with_torch_it_says_what_it_is(unpacked: Path, tmp_path: Path) -> None:
    done = _call("prepare_metadata_for_build_wheel", tmp_path, unpacked)
    assert done.returncode == 0, done.stderr
    (metadata,) = tmp_path.glob("stca-*.dist-info/METADATA")
    assert "Requires-Dist: torch>=2.11" in metadata.read_text().splitlines()
