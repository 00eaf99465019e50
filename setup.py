"""Hands the native part over to CMake and Ninja; everything else is in pyproject.toml."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.dist_info import dist_info

ROOT = Path(__file__).resolve().parent
VERSION = "0.1.0" + os.environ.get("STCA_LOCAL_VERSION", "")  # "+cu13", by tools/build_wheel.py


def torch_folders() -> list[Path]:
    """Of each torch to build for: those of STCA_TORCH_DIRS, by tools/build_wheel.py, else the installed one, if any."""
    if named := os.environ.get("STCA_TORCH_DIRS"):
        return [Path(folder) for folder in named.split(os.pathsep)]
    spec = importlib.util.find_spec("torch")
    return [] if spec is None or spec.origin is None else [Path(spec.origin).parent]


def needed_torch_folders() -> list[Path]:
    """The same, or a line that says what to do."""
    return torch_folders() or sys.exit(
        "stca builds against the torch it will run with: install torch, then `pip install --no-build-isolation .`"
    )


def torch_minor(folder: Path) -> str:
    """Such as 2.13: what the library's name ends with."""
    found = re.search(r"__version__ = '(\d+\.\d+)", (folder / "version.py").read_text())
    assert found is not None, f"{folder}/version.py names no version"
    return found[1]


class Metadata(dist_info):
    """What pip asks for first: without a torch to build with it stops here, before it fetches one to run with."""

    def run(self) -> None:
        """Stops, or writes."""
        needed_torch_folders()
        super().run()


class CMakeBuild(build_ext):
    """Builds the library for each torch by CMake, in a folder that is kept for the next build with the same options."""

    def get_ext_filename(self, fullname: str) -> str:
        """A library like any other, without Python's version in its name; a source distribution knows no torch."""
        return "-".join([fullname.replace(".", "/"), *map(torch_minor, torch_folders()[:1])]) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Configures, builds and installs beside the package's Python files; the kernels are compiled once."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        options = os.environ.get("STCA_CMAKE_ARGS", "")
        chosen = " ".join(filter(None, (options, os.environ.get("CUDACXX"), os.environ.get("CUDA_HOME"))))
        build = ROOT / "build" / ("cmake" + re.sub(r"[^\w.]+", "-", chosen))  # CMake never changes its compiler
        # First the interpreter's own cmake and ninja, where they are installed beside it, and CUDA_HOME's nvcc.
        first = [str(Path(sys.executable).parent)]
        if cuda := os.environ.get("CUDA_HOME"):
            first.append(str(Path(cuda) / "bin"))
        env = {**os.environ, "PATH": os.pathsep.join([*first, os.environ["PATH"]])}
        for stale in target.glob("libstca_ops-*.so"):  # setuptools keeps what it built for another torch
            stale.unlink()
        for torch in needed_torch_folders():
            configure = [
                "cmake",
                "-G",
                "Ninja",
                "-S",
                str(ROOT),
                "-B",
                str(build),
                f"-DSTCA_TORCH_DIR={torch}",
                f"-DCMAKE_INSTALL_PREFIX={target}",
                f"-DSTCA_VERSION={VERSION}",
                *options.split(),
            ]
            for command in (configure, ["cmake", "--build", str(build)], ["cmake", "--install", str(build), "--strip"]):
                subprocess.run(command, check=True, env=env)


class AnyPython(bdist_wheel):
    """The wheel serves every Python: what is compiled knows none."""

    def get_tag(self) -> tuple[str, str, str]:
        """Any Python 3, this platform."""
        return "py3", "none", super().get_tag()[2]


setup(
    version=VERSION,
    ext_modules=[Extension("stca.libstca_ops", sources=[])],
    cmdclass={"dist_info": Metadata, "build_ext": CMakeBuild, "bdist_wheel": AnyPython},
)
