"""Everything that needs a GPU, without network: `make gpu` builds, tests, confirms and measures; `make gpu-sanitize`.

    python tools/on_gpu.py [--sanitize]

Each takes under nine minutes on 16 cores. Every step runs, whatever the ones before gave; exits with 1 where one
failed, could not run or had no time. JSON and logs go to build/gpu, or to the folder that OUT names: `make gpu` writes
gpu.log, and `make gpu-sanitize` another one, and one for each tool, so that neither deletes what the other has found.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import threading
import time
from contextlib import suppress
from itertools import chain
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen, TimeoutExpired
from typing import IO

import torch
from confirm import FAMILIES, test_fault, time_fault
from tune_table import measured_on

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "gpu"
OUT = Path(os.environ.get("OUT", BUILD)).resolve()
SITE = BUILD / "site"
TOTAL = 520  # seconds
DYING = 20.0  # seconds in which a killed command must end; one that waits inside of the driver may never do
LOG = "gpu.log"
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
SANITIZE_LOGS = {step: f"sanitize-{step}.log" for step in ("build", *TOOLS)}
CUDA = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"
TESTS = [
    "tests/cuda/test_gpu.py",
    *sorted(f"tests/cuda/{path.name}" for path in ROOT.glob("tests/cuda/test_*_cuda.py")),
]
# Small shapes for tools that slow kernels down a hundred times. In bfloat16 they run every kernel, Hopper's too. Rows
# of int8 and products of float32 are other code in attention's kernels, and have cases of their own. float16 has none:
# its kernels differ from bfloat16's in the type of their products alone.
FEW = (
    "gpu and ((bfloat16 and (width-13 or width-7-9 or block-edges-visible or one-long-projected"
    " or (test_request_reduce and 200) or (test_jagged_select and 24) or (test_accuracy and 97)"
    " or (test_forward_and_backward and (one-slab-more or cluster-odd or some-wide or many-wide))"
    " or (test_the_same_as_rows_in_order and shared-cluster) or (test_many_rows and 4001)))"
    " or (test_the_oracle_and_the_cpu and ("
    "(bfloat16 and (5-of-64-64 or 33-of-64-64 or 33-of-128-None or width-1024)) or (float32 and 33-of-40-24)))"
    " or (float32 and test_forward_and_backward and (width-13-torch or width-513 or width-7-9))"
    " or (test_all_are_added_up and shared-0))"
)


def kill(process: "Popen[str]") -> None:
    """Ends a command with all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def keep(title: str, output: IO[str], log: Path) -> None:
    """Shows each line as it comes, and keeps it, so that a run that is ended from outside leaves what it has said."""
    with log.open("a", buffering=1) as kept:
        for line in chain([title], output):
            print(line, end="", flush=True)
            kept.write(line)


def run(command: list[str], seconds: float, title: str, log: str = LOG, **env: str) -> str:
    """Runs a command from the root, its output both shown and kept in the log: "ok", or what went wrong."""
    # This interpreter's cmake and ninja first, and the toolkit's nvcc where no other is.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], str(CUDA)])
    packages = os.pathsep.join([str(SITE), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {**os.environ, "PATH": path, "PYTHONPATH": packages, "PYTHONUNBUFFERED": "1", **env}
    if seconds < 1:
        return "NOT RUN: out of time"
    try:
        process = Popen(
            command, cwd=ROOT, env=settings, stdout=PIPE, stderr=STDOUT, errors="replace", start_new_session=True
        )
    except OSError as error:
        return f"NOT RUN: {error}"
    assert process.stdout is not None
    arguments = f"=== {title}: {' '.join(command)}\n", process.stdout, OUT / log
    # The pipe is open as long as any process has it, and one that cannot be killed must not keep this one from its end.
    keeper = threading.Thread(target=keep, args=arguments, daemon=True)
    keeper.start()
    outcome = ""
    try:
        process.wait(seconds)
    except TimeoutExpired:
        outcome = f"FAILED: stopped after {seconds:.0f} s"
    finally:
        if process.poll() is None:  # its time is over, or this program was ended: no child goes on with the GPU
            kill(process)
    try:
        code = process.wait(DYING)
    except TimeoutExpired:
        return f"{outcome}, and has not ended {DYING:.0f} s later"
    keeper.join(DYING)
    return outcome or ("ok" if code == 0 else f"FAILED: exit code {code}")


def build(seconds: float, log: str) -> str:
    """The package for this GPU's architecture, into a folder of its own; what is built already is kept."""
    major, minor = torch.cuda.get_device_capability()
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.copytree(ROOT / "stca", SITE / "stca", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    tree = str(BUILD / "native")
    options = [
        f"-DSTCA_TORCH_DIR={Path(torch.__file__).parent}",
        f"-DCMAKE_INSTALL_PREFIX={SITE / 'stca'}",
        "-DSTCA_CUDA=ON",
        f"-DSTCA_CUDA_ARCHS={major}{minor}{'a' if major == 9 else ''}",
    ]
    end = time.monotonic() + seconds
    outcome = run(["cmake", "-G", "Ninja", "-S", ".", "-B", tree, *options], seconds, "configure", log)
    if outcome == "ok":
        outcome = run(["cmake", "--build", tree, "--target", "install"], end - time.monotonic(), "build", log)
    return outcome


def pytest(
    seconds: float, title: str, *arguments: str, before: tuple[str, ...] = (), log: str = LOG, **env: str
) -> str:
    """Tests on the GPU; neither -P nor a conftest.py puts the root first, whose stca has no built part."""
    settings = ["-P", "-m", "pytest", "-p", "no:cacheprovider", "--confcutdir=tests", "-m", ""]  # slow ones too
    return run([*before, sys.executable, *settings, *arguments], seconds, title, log, **env)


def confirm(family: str, seconds: float) -> str:
    """Runs a family's tests and benchmarks, in processes of their own: "ok", or why they do not speak for it."""
    report, timings = BUILD / f"{family}.xml", OUT / f"{family}.json"
    for stale in (report, timings):
        stale.unlink(missing_ok=True)
    op, tests = FAMILIES[family]
    end = time.monotonic() + seconds
    files = [f"tests/cuda/{name}" for name in tests]
    tested = pytest(seconds / 2, family, "-k", "hopper-gpu", f"--junitxml={report}", *files)
    fault = test_fault(FAMILIES[family], report) or ("" if tested == "ok" else tested)
    if fault:
        return f"not confirmed: {fault}"
    left = end - time.monotonic()
    script = ["benchmarks/gpu_sm90.py", op, "--json", str(timings), "--seconds", f"{max(left - 15, 1):.0f}"]
    timed = run([sys.executable, *script], left, family)
    fault = time_fault(timings) or ("" if timed == "ok" else timed)
    return f"not confirmed: {fault}" if fault else "ok"


def write_confirmed(outcomes: dict[str, str]) -> None:
    """Writes sm90.json, which tools/tune_table.py makes the default."""
    families = [family for family, outcome in outcomes.items() if outcome == "ok"]
    others = {family: outcome for family, outcome in outcomes.items() if outcome != "ok"}
    (OUT / "sm90.json").write_text(
        json.dumps(measured_on() | {"confirmed": families, "others": others}, indent=1) + "\n"
    )
    print(f"confirmed: {', '.join(families) or 'none'}; tools/tune_table.py {OUT} makes that the default")


def confirm_all(seconds: float) -> dict[str, str]:
    """Streams, graphs and modules with Hopper's kernels, for all families; then each family by itself."""
    end = time.monotonic() + seconds
    general = pytest(seconds / 4, "Hopper's kernels", "tests/cuda/test_gpu.py", STCA_SM90="1")
    outcomes = {}
    for left, family in zip(range(len(FAMILIES), 0, -1), FAMILIES, strict=True):
        outcome = confirm(family, (end - time.monotonic()) / left)
        outcomes[family] = f"not confirmed: test_gpu.py: {general}" if outcome == "ok" != general else outcome
    write_confirmed(outcomes)
    return {f"family {name}": outcome for name, outcome in outcomes.items()}


def benchmarks(seconds: float) -> str:
    """Against what torch offers, with Hopper's kernels where sm90.json confirms all of them."""
    confirmed = OUT / "sm90.json"
    on = confirmed.exists() and len(json.loads(confirmed.read_text())["confirmed"]) == len(FAMILIES)
    script = ["benchmarks/gpu.py", "--json", str(OUT / "gpu.json"), "--seconds", f"{max(seconds - 30, 1):.0f}"]
    return run([sys.executable, *script], seconds, "benchmarks", STCA_SM90=str(int(on)))


def sanitize(tool: str, seconds: float) -> str:
    """compute-sanitizer on a few tests, each allocation of torch's an allocation of CUDA's."""
    found = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=str(CUDA))
    if found is None:
        return "NOT RUN: no compute-sanitizer here"
    before = [found, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
    if tool != "initcheck":  # which has to see what others write
        before += ["--kernel-name", "kns=stca"]
    files = [*TESTS, *(f"tests/cuda/{name}" for family in FAMILIES.values() for name in family.tests)]
    settings, log = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, SANITIZE_LOGS[tool]
    outcome = pytest(seconds, tool, "-x", "-k", FEW, *files, before=(*before,), log=log, **settings)
    said = (OUT / log).read_text() if (OUT / log).exists() else ""  # the tool's own log, of this run alone
    if outcome != "ok" and "Device not supported" in said:
        return "NOT RUN: compute-sanitizer does not support this machine's device"
    return outcome


def outcomes_of(sanitizing: bool, end: float) -> dict[str, str]:
    """What became of each step."""

    def left() -> float:
        return end - time.monotonic()

    outcomes = {"build": build(300, SANITIZE_LOGS["build"] if sanitizing else LOG)}
    if outcomes["build"] != "ok":
        return outcomes
    if sanitizing:
        for others, tool in zip(range(len(TOOLS), 0, -1), TOOLS, strict=True):
            outcomes[tool] = sanitize(tool, left() / others)
        return outcomes
    outcomes["tests"] = pytest(min(100, left()), "tests", "-k", "gpu", *TESTS, STCA_SM90="0")
    if torch.cuda.get_device_capability()[0] == 9:
        outcomes |= confirm_all(min(240, left()))
    return outcomes | {"benchmarks": benchmarks(left())}


def main() -> None:
    """All steps in turn, then what became of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sanitize", action="store_true", help="run compute-sanitizer instead of tests and benchmarks")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(f"make gpu: torch {torch.__version__} sees no GPU here")
    for folder in (OUT, BUILD):
        folder.mkdir(parents=True, exist_ok=True)
    for stale in SANITIZE_LOGS.values() if arguments.sanitize else (LOG, "sm90.json", "gpu.json"):
        (OUT / stale).unlink(missing_ok=True)
    began = time.monotonic()
    outcomes = outcomes_of(arguments.sanitize, began + TOTAL)
    print()
    for step, outcome in outcomes.items():
        print(f"{step:36} {outcome}")
    print(f"{time.monotonic() - began:.0f} s; files in {OUT}")
    sys.exit(any(outcome != "ok" for outcome in outcomes.values()))


if __name__ == "__main__":
    main()
