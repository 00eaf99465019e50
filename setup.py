"""Hands the native part over to CMake and Ninja; everything else is in pyproject.toml."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
VERSION = "0.1.0"

if importlib.util.find_spec("torch") is None:
    sys.exit("stca builds against the torch it will run with: install torch, then `pip install --no-build-isolation .`")


class CMakeBuild(build_ext):
    """Builds libstca_ops.so by CMake in a folder per torch, kept for the next build."""

    def get_ext_filename(self, fullname: str) -> str:
        """A library like any other: no Python's name in it."""
        return f"{fullname.replace('.', '/')}.so"

    def build_extension(self, ext: Extension) -> None:
        """Configures, builds and installs beside the package's Python files."""
        import torch

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = ROOT / "build" / f"cmake-torch-{torch.__version__}"
        configure = [
            "cmake",
            "-G",
            "Ninja",
            "-S",
            str(ROOT),
            "-B",
            str(build),
            f"-DSTCA_TORCH_DIR={Path(torch.__file__).parent}",
            f"-DSTCA_TORCH_VERSION={torch.__version__}",
            f"-DCMAKE_INSTALL_PREFIX={target}",
            f"-DSTCA_VERSION={VERSION}",
            *os.environ.get("STCA_CMAKE_ARGS", "").split(),
        ]
        # First the interpreter's own cmake and ninja, where they are installed beside it, and CUDA_HOME's nvcc.
        first = [str(Path(sys.executable).parent)]
        if cuda := os.environ.get("CUDA_HOME"):
            first.append(str(Path(cuda) / "bin"))
        env = {**os.environ, "PATH": os.pathsep.join([*first, os.environ["PATH"]])}
        for command in (configure, ["cmake", "--build", str(build)], ["cmake", "--install", str(build)]):
            subprocess.run(command, check=True, env=env)


setup(
    version=VERSION,
    ext_modules=[Extension("stca.libstca_ops", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
