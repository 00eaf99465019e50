"""Builds for Arm64 and runs tests there, on a machine of another kind: `make arm64`.

    make arm64 ARM64_TESTS='tests/ops/test_request_gather.py -k empty'      other tests than those of TESTS

Ends with a table of what was run, as docs/start.md has it.

Debian's g++-aarch64-linux-gnu compiles, its qemu-user runs, with Python out of Debian's packages for Arm64 and torch
out of its wheel for Arm64, 5 GB. All of them stay in build/arm64; nothing of them is installed.
"""

import os
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "build" / "arm64"
DEBIAN = ("python3-minimal", "libpython3-stdlib", "libstdc++6", "libgomp1")
TEST_TOOLS = ("numpy", "pytest", "pytest-timeout", "hypothesis", "expecttest")
# A Neoverse N1: torch reads this as it loads, and would crash where it read of this machine's CPU.
CPU = """processor\t: {}
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

"""
# Small cases of each operator, forward and backward, in every dtype.
SMALL_TESTS = [
    "tests/ops/test_target_attention.py::test_scale",
    "tests/ops/test_target_attention.py::test_large_scores",
    "tests/ops/test_int8_history.py::test_the_oracle",
    "tests/ops/test_swiglu_ffn_norm.py::test_accuracy",
    "tests/ops/test_request_gather.py",
    "tests/ops/test_request_reduce.py",
    "tests/ops/test_jagged_select.py",
]
# Not what compiles, nor what starts processes, which would be of this machine's kind.
TESTS = [*SMALL_TESTS, "-k", "not in_torch and not million and not long_request"]


def fetch_python() -> Path:
    """A folder with Debian's Python for Arm64 and the libraries that it needs, as they lie under /."""
    root = HERE / "root"
    if not root.exists():
        state = HERE / "apt"
        for folder in ("lists/partial", "archives/partial"):
            (state / folder).mkdir(parents=True, exist_ok=True)
        (state / "status").touch()
        options = [f"Dir::State={state}", f"Dir::State::status={state}/status", f"Dir::Cache={state}"]
        options += ["APT::Architecture=arm64", "APT::Architectures::=arm64"]
        apt = ["apt-get", "-qq", *(part for option in options for part in ("-o", option))]
        subprocess.run([*apt, "update"], check=True)
        download = ["install", "--yes", "--download-only", "--no-install-recommends", *DEBIAN]
        subprocess.run([*apt, *download], check=True)
        for package in (state / "archives").glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, HERE / "unpacked"], check=True)
        (HERE / "unpacked" / "proc").mkdir()
        (HERE / "unpacked" / "proc" / "cpuinfo").write_text("".join(map(CPU.format, range(os.cpu_count() or 1))))
        (HERE / "unpacked").rename(root)
    return root


def fetch_wheels(python: str) -> Path:
    """A folder with torch and what the tests import."""
    site = HERE / "site"
    if not site.exists():
        kind = ["--python-platform", "aarch64-manylinux_2_28", "--python-version", python, "--only-binary", ":all:"]
        install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--target", str(HERE / "fetched"), *kind]
        subprocess.run(
            [*install, "torch==2.13.0", *TEST_TOOLS], check=True, env={**os.environ, "UV_CACHE_DIR": str(HERE / "uv")}
        )
        shutil.rmtree(HERE / "uv")
        (HERE / "fetched").rename(site)
    return site


def build(torch: Path) -> Path:
    """A folder with the package, its library for Arm64, and the tests."""
    package = HERE / "package"
    shutil.rmtree(package, ignore_errors=True)
    not_ours = shutil.ignore_patterns("*.so", "__pycache__")
    for folder in ("stca", "tests"):
        shutil.copytree(ROOT / folder, package / folder, ignore=not_ours)
    shutil.copy(ROOT / "pyproject.toml", package)
    kind = ["CMAKE_SYSTEM_NAME=Linux", "CMAKE_SYSTEM_PROCESSOR=aarch64", "CMAKE_CXX_COMPILER=aarch64-linux-gnu-g++"]
    torch_and_target = [f"STCA_TORCH_DIR={torch}", f"CMAKE_INSTALL_PREFIX={package}/stca", "STCA_VERSION=0.1.0"]
    defined = [f"-D{each}" for each in (*kind, *torch_and_target, "STCA_CUDA=OFF")]
    subprocess.run(["cmake", "-G", "Ninja", "-S", ROOT, "-B", HERE / "cmake", *defined], check=True)
    subprocess.run(["cmake", "--build", HERE / "cmake"], check=True)
    subprocess.run(["cmake", "--install", HERE / "cmake"], check=True)
    return package


def table(report: Path) -> str:
    """Cases by file and outcome, of pytest's report, as rows of Markdown."""
    files: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for case in ElementTree.parse(report).iter("testcase"):
        told = next((part.tag for part in case if part.tag in ("failure", "error", "skipped")), "passed")
        files[case.attrib["classname"].replace(".", "/")][told] += 1
    rows = [
        f"| `{name}.py` | {', '.join(f'{n} {told}' for told, n in counts.items())} |" for name, counts in files.items()
    ]
    return "\n".join(rows)


def main() -> None:
    """Fetches, builds, runs `python -m stca.check` and the tests; exits with their status."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    root = fetch_python()
    binary = (root / "usr" / "bin" / "python3").resolve()
    site = fetch_wheels(binary.name.removeprefix("python"))
    package = build(site / "torch")
    run = ["qemu-aarch64", "-cpu", "neoverse-n1", "-L", str(root), str(binary), "-m"]
    env = {**os.environ, "PYTHONPATH": f"{package}:{site}"}
    subprocess.run([*run, "stca.check"], check=True, cwd=package, env=env)
    tests = sys.argv[1:] or TESTS
    report = package / "report.xml"
    done = subprocess.run([*run, "pytest", "--timeout", "0", f"--junitxml={report}", *tests], cwd=package, env=env)
    if report.exists():
        print(table(report))
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
