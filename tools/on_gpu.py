"""Everything that needs a GPU, in one command, `make gpu`: build, tests, compute-sanitizer, benchmarks. No network.

Takes under nine minutes on 16 cores. Every step runs, whatever the ones before gave; exits with 1 where one failed or
could not run. Files go to build/gpu, or to the folder that OUT names.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tune_table import measured_on

ROOT = Path(__file__).resolve().parents[1]
OUT = Path(os.environ.get("OUT", ROOT / "build" / "gpu")).resolve()
SITE = ROOT / "build" / "gpu" / "site"
TOTAL = 520  # seconds
TESTS = [
    "tests/cuda/test_gpu.py",
    *sorted(f"tests/cuda/{path.name}" for path in ROOT.glob("tests/cuda/test_*_cuda.py")),
]
# Families of Hopper's kernels, by the benchmark's operators; and how much longer a case may take with them than without
# them, which is what the clock may err by.
CASES = {
    "target_attention reordered": "target_attention",
    "target_attention projected": "target_attention_projected",
    "swiglu_ffn_norm": "swiglu_ffn_norm",
}
BEHIND = 1.02
# Small shapes of every kernel, for tools that slow them down a hundred times.
FEW = (
    "gpu and bfloat16 and (width-13 or width-7-9 or block-edges-visible or one-long-projected"
    " or (test_request_reduce and 200) or (test_jagged_select and 24) or (test_accuracy and 97))"
)


def run(command: list[str], seconds: float, log: str, **env: str) -> str:
    """Runs a command from the root, its output both shown and kept: "ok", or what went wrong."""
    settings = {**os.environ, "PYTHONPATH": str(SITE), "PYTHONUNBUFFERED": "1", **env}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        end = threading.Timer(max(seconds, 1), os.killpg, (process.pid, signal.SIGKILL))
        end.start()
        assert process.stdout is not None
        with (OUT / log).open("w") as kept:
            for line in process.stdout:
                sys.stdout.write(line)
                kept.write(line)
        code = process.wait()
        end.cancel()
    if code == -9:
        return f"FAILED: stopped after {seconds:.0f} s"
    return "ok" if code == 0 else f"FAILED: exit code {code}"


def build(seconds: float) -> str:
    """The package for this GPU's architecture, into a folder of its own."""
    major, minor = torch.cuda.get_device_capability()
    arch = f"{major}{minor}{'a' if major == 9 else ''}"
    shutil.rmtree(SITE, ignore_errors=True)
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--quiet", "--target", str(SITE)]
    settings = f"-DSTCA_CUDA=ON -DSTCA_CUDA_ARCHS={arch}"
    return run([sys.executable, "-m", "pip", "install", *options, "."], seconds, "build.log", STCA_CMAKE_ARGS=settings)


def pytest(seconds: float, log: str, *arguments: str, before: tuple[str, ...] = (), **env: str) -> str:
    """The tests on the GPU; neither -P nor a conftest.py puts the root first, whose stca has no built part."""
    settings = ["-P", "-m", "pytest", "-p", "no:cacheprovider", "--confcutdir=tests", "-m", ""]  # slow ones too
    command = [*before, sys.executable, *settings, *arguments, *TESTS]
    return run(command, seconds, log, **env)


def sanitize(tool: str, seconds: float) -> str:
    """compute-sanitizer on a few tests, each allocation of torch's an allocation of CUDA's."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    found = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=f"{home}/bin")
    if found is None:
        return "NOT RUN: no compute-sanitizer here"
    before = (found, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all")
    log = f"{tool}.log"
    outcome = pytest(seconds, log, "-x", "-k", FEW, before=before, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    if "Device not supported" in (OUT / log).read_text():
        return "NOT RUN: compute-sanitizer does not support this machine's device"
    return outcome


def confirmed(own: list[dict[str, Any]], common: list[dict[str, Any]]) -> list[str]:
    """Families whose kernels are ahead of the common ones: in no case of 16 bits behind, and in all together faster.

    Args:
        own: Rows of benchmarks/gpu.py with Hopper's kernels.
        common: Rows of it without them.
    """

    def times(rows: list[dict[str, Any]]) -> dict[tuple[str, ...], float]:
        return {(*(row[name] for name in ("op", "case", "dtype", "direction")),): row["stca_ms"] for row in rows}

    before = times(common)
    ratios: dict[str, list[float]] = {family: [] for family in CASES.values()}
    for case, ms in times(own).items():
        if case in before and case[0] in CASES and case[2] != "float32":
            ratios[CASES[case[0]]].append(ms / before[case])
    return [name for name, all_of in ratios.items() if all_of and max(all_of) <= BEHIND and fmean(all_of) < 1]


def write_confirmed(correct: bool) -> str:
    """Writes sm90.json, which tools/tune_table.py makes the default: none where tests or benchmarks failed."""
    try:
        own, common = (json.loads((OUT / name).read_text()) for name in ("gpu-sm90.json", "gpu.json"))
    except OSError as error:
        return f"NOT RUN: {error}"
    families = confirmed(own, common) if correct else []
    (OUT / "sm90.json").write_text(json.dumps(measured_on() | {"confirmed": families}, indent=1) + "\n")
    print(f"confirmed: {', '.join(families) or 'none'}; tools/tune_table.py {OUT} makes that the default")
    return "ok"


def main() -> None:
    """All steps in turn, then what became of them."""
    if not torch.cuda.is_available():
        sys.exit(f"make gpu: torch {torch.__version__} sees no GPU here")
    OUT.mkdir(parents=True, exist_ok=True)
    for stale in ("gpu.json", "gpu-sm90.json", "sm90.json"):
        (OUT / stale).unlink(missing_ok=True)
    began = time.monotonic()

    def left() -> float:
        return TOTAL - (time.monotonic() - began)

    outcomes = {"build": build(300)}
    if outcomes["build"] == "ok":
        outcomes["tests"] = pytest(min(200, left()), "tests.log", "-k", "gpu", "--durations=5", STCA_SM90="0")
        hopper = torch.cuda.get_device_capability()[0] == 9
        if hopper:  # its own kernels: families that this and the times speak for are to become the default
            chosen = ("-k", "gpu and (attention or stack or feed or swiglu)")
            outcomes["tests, sm90"] = pytest(min(100, left()), "tests-sm90.log", *chosen, STCA_SM90="1")
            only = "(reordered|projected).*bfloat|STCA|Target|swiglu"
            script = ["benchmarks/gpu.py", "--json", str(OUT / "gpu-sm90.json"), "--only", only]
            script += ["--seconds", f"{max(min(60, left() - 30), 1):.0f}"]
            outcomes["benchmarks, sm90"] = run([sys.executable, *script], left(), "benchmarks-sm90.log", STCA_SM90="1")
        for tool in ("memcheck", "racecheck"):
            outcomes[tool] = sanitize(tool, min(40, left() - 90))
        script = ["benchmarks/gpu.py", "--json", str(OUT / "gpu.json"), "--seconds", f"{max(left() - 30, 1):.0f}"]
        outcomes["benchmarks"] = run([sys.executable, *script], left(), "benchmarks.log", STCA_SM90="0")
        if hopper:
            needed = "tests, sm90", "benchmarks, sm90", "benchmarks"
            outcomes["families, sm90"] = write_confirmed(all(outcomes[name] == "ok" for name in needed))
    print()
    for step, outcome in outcomes.items():
        print(f"{step:24} {outcome}")
    print(f"{time.monotonic() - began:.0f} s; files in {OUT}")
    sys.exit(any(outcome != "ok" for outcome in outcomes.values()))


if __name__ == "__main__":
    main()
