"""Installs tools that pyproject.toml lists, for the Python that runs this.

.venv/bin/python tools/install.py build    what the package is built with
.venv/bin/python tools/install.py wheel    what wheels are made with
.venv/bin/python tools/install.py nvcc     a CUDA compiler, in .venv/cuda, which CMake takes for a toolkit
"""

import argparse
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def requirements(tools: str) -> list[str]:
    """What pyproject.toml lists."""
    listed = tomllib.loads(PYPROJECT.read_text())
    found: list[str] = (
        listed["build-system"]["requires"] if tools == "build" else listed["project"]["optional-dependencies"][tools]
    )
    return found


def link_toolkit(parts: Path, toolkit: Path) -> None:
    """Makes the installed parts of the compiler look like a toolkit, which has a lib64 and a libcudart.so."""
    for link, target in (
        (toolkit, parts),
        (parts / "lib64", Path("lib")),
        (parts / "lib" / "libcudart.so", Path("libcudart.so.13")),
    ):
        link.unlink(missing_ok=True)
        link.symlink_to(target)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tools", choices=("build", "wheel", "nvcc"))
    tools: str = parser.parse_args().tools
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *requirements(tools)], check=True)
    if tools == "nvcc":
        spec = find_spec("nvidia")
        if spec is None or spec.submodule_search_locations is None:
            sys.exit(f"install.py: {', '.join(requirements(tools))} did not bring the package nvidia")
        link_toolkit(Path(spec.submodule_search_locations[0], "cu13"), Path(sys.prefix, "cuda"))


if __name__ == "__main__":
    main()
