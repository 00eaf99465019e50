"""Chooses among the variants of the CUDA kernels on a GPU, in one run without network: `make gpu-tune`.

    python tools/gpu_tune.py [--library build/tune/libstca_tune.so]

`make tune` has compiled the library, which brings CUDA's runtime along: neither nvcc nor a build is needed where this
runs. Every variant's results are compared with the common kernels' or with torch's, call after call; one that is
wrong, or that does not run, is left out. Variants run in turn, timed by events of the device (benchmarks/gpu_clock.py).
Then each threshold between two kernels is put where all sizes together take least. All that is in a process of its
own: where a variant hangs or kills it, or leaves it a device that takes no more, another one goes on without that
variant. Times and choices go to sm90-tuned.json in build/gpu, or in the folder that OUT names; `python
tools/tune_table.py FOLDER` makes them the launchers' table.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tuning
from progress import Progress, supervise
from trials import Trial, trials_of
from tune_table import measured_on

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from gpu_clock import Clock  # noqa: E402

SHARED_BYTES = 227 * 1024  # of a block on sm_90
SECONDS = 480  # no choice begins after that
LAST = 30  # seconds that the last choice may take
REPEATS = 20  # calls of a variant whose results must be right, before it is timed beside others
ALWAYS = 1 << 30
NEVER = 0
SIDES = {"up to": ALWAYS, "beyond": NEVER}
# While variants are timed: Hopper's kernels take every call.
FORCED = {"few_rows": NEVER, "attention_least_width": NEVER, "attention_wide_rows": NEVER, "ffn_least_tiles": NEVER}
# Numbers that are tried like variants, and sizes at which two kernels are compared, the first up to the threshold.
NUMBERS = {"ffn_swath": (1, 2, 4, 8)}
SIZES = {
    "projected_one_group": (16, 32, 64, 128, 256),
    "few_rows": (1, 4, 8, 16, 32, 64),
    "attention_least_width": (64, 128, 192, 256),
    "attention_wide_rows": (16, 32, 64, 128),
    "ffn_least_tiles": (1, 2, 4, 8),
}

Times = dict[str, list[float]]


def variants_of(kernels: tuning.Kernels, name: str) -> list[int]:
    """Values of a choice that are tried."""
    return list(NUMBERS.get(name, range(kernels.choices()[name][1])))


def right_variants(
    kernels: tuning.Kernels, name: str, trials: list[Trial], clock: Clock, progress: Progress
) -> list[int]:
    """The variants that give right results in each of many calls; what is wrong with others is noted."""
    right = []
    for variant in variants_of(kernels, name):
        what = f"{name} {variant}"
        if not progress.trying(what):
            continue
        with kernels.chosen(**FORCED, **{name: variant}):
            if fault := fault_of(trials, clock):
                progress.fault(what, fault)
                end_if_lost(clock)
            else:
                right.append(variant)
    return right


def fault_of(trials: list[Trial], clock: Clock) -> str:
    """What is wrong with the results of some calls of the trials, or nothing.

    A GPU is asked many times, since a race may show in one call of many; the CPU's order of threads is always the same.
    """
    try:
        for trial in trials:
            for _ in range(REPEATS if clock.cuda else 1):
                if fault := trial.fault():
                    return fault
        clock.wait()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


def end_if_lost(clock: Clock) -> None:
    """Ends the process where, after a fault that is noted, its device takes no more from it: another one goes on.

    It is no RuntimeError, which would be noted as a fault of whatever is around what was tried.
    """
    try:
        clock.wait()
    except RuntimeError as error:
        sys.exit(f"the device takes no more from this process: {str(error).splitlines()[0]}")


def time_variants(
    kernels: tuning.Kernels, name: str, clock: Clock, device: str, progress: Progress
) -> tuple[int, Times]:
    """The best variant, and times of each by case."""
    trials = trials_of(kernels, name, device)
    ms: dict[int, list[float]] = {each: [] for each in right_variants(kernels, name, trials, clock, progress)}
    before = kernels.choices()[name][0]

    def call(variant: int, trial: Trial) -> Callable[[], None]:
        def run() -> None:
            kernels.choose(**{name: variant})
            trial.run()

        return run

    progress.trying(name)
    with kernels.chosen(**FORCED):
        for trial in trials:
            medians = clock.medians({str(variant): call(variant, trial) for variant in ms})
            for variant in ms:
                ms[variant].append(medians[str(variant)])
    return tuning.best_variant(ms, before) if ms else before, {str(variant): times for variant, times in ms.items()}


def one_side(kernels: tuning.Kernels, name: str, trial: Trial, value: int) -> Callable[[], object]:
    """A trial on one side of a threshold: the kernel up to it where this is ALWAYS, the one beyond it where NEVER."""

    def run() -> None:
        kernels.choose(**FORCED | {name: value})
        trial.run()

    return trial.instead if trial.instead is not None and value == ALWAYS else run


def time_threshold(
    kernels: tuning.Kernels, name: str, clock: Clock, device: str, progress: Progress
) -> tuple[int, Times]:
    """The threshold, and the times of the kernels up to it and beyond it by size."""
    ms: dict[int, tuple[float, float]] = {}
    for size in SIZES[name]:
        what = f"{name} {size}"
        if not progress.trying(what):
            continue
        trials = trials_of(kernels, name, device, size)
        sides = {side: one_side(kernels, name, trials[0], value) for side, value in SIDES.items()}
        with kernels.chosen(**FORCED):
            if fault := fault_of(trials, clock):
                progress.fault(what, fault)
                end_if_lost(clock)
                continue
            medians = clock.medians(sides)
        ms[size] = medians["up to"], medians["beyond"]
    before = kernels.choices()[name][0]
    first = name in ("attention_wide_rows", "ffn_least_tiles")  # say where the second kernel begins
    best = tuning.threshold(ms, before - first) + first if ms else before
    return best, {str(size): list(times) for size, times in ms.items()}


def tune(kernels: tuning.Kernels, clock: Clock, device: str, seconds: float, progress: Progress) -> None:
    """All choices in turn, variants before thresholds; those that there is no time for stay as they are.

    What was found is noted after each, and goes on from what was found before.
    """
    began = time.monotonic()
    result = progress.result
    kernels.choose(**result["choices"])
    for name in sorted(kernels.choices(), key=lambda name: name in SIZES):
        if name in result["ms"]:
            continue
        if time.monotonic() - began > seconds:
            result["out of time"].append(name)
            progress.write()
            continue
        if not progress.trying(name):
            continue
        try:
            best, ms = (time_threshold if name in SIZES else time_variants)(kernels, name, clock, device, progress)
        except RuntimeError as error:  # of memory, or of a device that takes no more from this process
            progress.fault(name, str(error).splitlines()[0])
            end_if_lost(clock)
            continue
        kernels.choose(**{name: best})
        result["choices"][name], result["ms"][name] = best, ms
        progress.write()
        print(f"{name:26} {best:4}  {ms}", flush=True)


def work(library: Path, file: Path, seconds: float) -> None:
    """Goes on with what the file says has been found."""
    torch.manual_seed(0)
    about = torch.cuda.get_device_properties(0)
    reports = torch.zeros(64, dtype=torch.int32, device="cuda")
    kernels = tuning.Kernels(library, about.multi_processor_count, SHARED_BYTES, reports.data_ptr())
    tune(kernels, Clock("cuda", ahead=True), "cuda", seconds, Progress(file))


def begin(library: Path) -> dict[str, Any]:
    """A result in which everything is as it stands."""
    choices = tuning.Kernels(library, 1, SHARED_BYTES, 0).choices()
    return {"choices": {name: value for name, (value, _) in choices.items()}, "ms": {}, "faults": [], "out of time": []}


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, default=ROOT / "build" / "tune" / "libstca_tune.so")
    parser.add_argument("--go-on", type=Path, help="with this file, begun by another process")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="no choice begins after that")
    arguments = parser.parse_args()
    if arguments.go_on is not None:
        work(arguments.library, arguments.go_on, arguments.seconds)
        return
    if not arguments.library.exists():
        sys.exit(f"make gpu-tune: {arguments.library} is missing: it is what `make tune` builds, and has to come along")
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        sys.exit(f"make gpu-tune: torch {torch.__version__} sees no GPU of compute capability 9 here")
    out = Path(os.environ.get("OUT", ROOT / "build" / "gpu")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    file = out / "sm90-tuned.json"
    Progress(file, measured_on() | begin(arguments.library))
    command = [sys.executable, __file__, "--library", str(arguments.library), "--go-on", str(file), "--seconds"]
    supervise(lambda left: [*command, f"{left - LAST:.0f}"], file, arguments.seconds + LAST)
    result = Progress(file).result
    undone = [name for name in result["choices"] if name not in result["ms"]]
    for line in (*result["faults"], *(f"{name}: not timed, stays as it is" for name in undone)):
        print(line)
    print(f"wrote {file}; {len(result['faults'])} faults, {len(undone)} choices not timed")
    sys.exit(bool(result["faults"] or undone))


if __name__ == "__main__":
    main()
