"""Chooses among the variants of the CUDA kernels on a GPU, in one run without network: `make gpu-tune`.

    python tools/gpu_tune.py [--library build/tune/libstca_tune.so]

`make tune` has compiled the library, which brings CUDA's runtime along: neither nvcc nor a build is needed where this
runs. Every variant's results are compared with the common kernels' or with torch's; one that is wrong, or that does
not run, is left out. Variants run in turn, timed by events of the device (benchmarks/gpu_clock.py). Then each threshold
between two kernels is put where all sizes together take least. Times and choices go to sm90-tuned.json in build/gpu, or
in the folder that OUT names; `python tools/tune_table.py FOLDER` makes them the launchers' table.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import tuning
from trials import Trial, trials_of
from tune_table import measured_on

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from gpu_clock import Clock  # noqa: E402

SHARED_BYTES = 227 * 1024  # of a block on sm_90
SECONDS = 480  # no choice begins after that
ALWAYS = 1 << 30
NEVER = 0
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


def right_variants(kernels: tuning.Kernels, name: str, trials: list[Trial]) -> Iterator[tuple[int, str]]:
    """Each variant, and what is wrong with it, "" where nothing is."""
    for variant in variants_of(kernels, name):
        with kernels.chosen(**FORCED, **{name: variant}):
            try:
                yield variant, next(filter(None, (trial.fault() for trial in trials)), "")
            except RuntimeError as error:
                yield variant, str(error).splitlines()[0]


def time_variants(kernels: tuning.Kernels, name: str, clock: Clock, device: str) -> tuple[int, Times, list[str]]:
    """The best variant, times of each by case, and what is wrong with others."""
    trials = trials_of(kernels, name, device)
    found = dict(right_variants(kernels, name, trials))
    faults = [f"{name} {variant}: {fault}" for variant, fault in found.items() if fault]
    before = kernels.choices()[name][0]
    ms: dict[int, list[float]] = {variant: [] for variant, fault in found.items() if not fault}

    def call(variant: int, trial: Trial) -> Callable[[], None]:
        def run() -> None:
            kernels.choose(**{name: variant})
            trial.run()

        return run

    with kernels.chosen(**FORCED):
        for trial in trials:
            medians = clock.medians({str(variant): call(variant, trial) for variant in ms})
            for variant in ms:
                ms[variant].append(medians[str(variant)])
    best = tuning.best_variant(ms, before) if ms else before
    return best, {str(variant): times for variant, times in ms.items()}, faults


def one_side(kernels: tuning.Kernels, name: str, trial: Trial, value: int) -> Callable[[], object]:
    """A trial on one side of a threshold: the kernel up to it where this is ALWAYS, the one beyond it where NEVER."""

    def run() -> None:
        kernels.choose(**FORCED | {name: value})
        trial.run()

    return trial.instead if trial.instead is not None and value == ALWAYS else run


def time_threshold(kernels: tuning.Kernels, name: str, clock: Clock, device: str) -> tuple[int, Times, list[str]]:
    """The threshold, and the times of the kernels up to it and beyond it by size."""
    ms: dict[int, tuple[float, float]] = {}
    faults = []
    for size in SIZES[name]:
        (trial,) = trials_of(kernels, name, device, size)
        sides = {side: one_side(kernels, name, trial, value) for side, value in (("up to", ALWAYS), ("beyond", NEVER))}
        with kernels.chosen(**FORCED):
            if fault := trial.fault():
                faults.append(f"{name} {size}: {fault}")
                continue
            medians = clock.medians(sides)
        ms[size] = medians["up to"], medians["beyond"]
    before = kernels.choices()[name][0]
    first = name in ("attention_wide_rows", "ffn_least_tiles")  # say where the second kernel begins
    best = tuning.threshold(ms, before - first) + first if ms else before
    return best, {str(size): list(times) for size, times in ms.items()}, faults


def tune(kernels: tuning.Kernels, clock: Clock, device: str, seconds: float) -> Iterator[dict[str, Any]]:
    """All choices in turn, variants before thresholds; those that there is no time for stay as they are.

    What was found so far is given after each, since a variant that hangs or faults may be the last that this process
    tries.
    """
    began = time.monotonic()
    names = sorted(kernels.choices(), key=lambda name: name in SIZES)
    result: dict[str, Any] = {"ms": {}, "faults": [], "out of time": []}
    for name in names:
        if time.monotonic() - began > seconds:
            result["out of time"].append(name)
            yield result | {"choices": {name: value for name, (value, _) in kernels.choices().items()}}
            continue
        try:
            best, ms, faults = (time_threshold if name in SIZES else time_variants)(kernels, name, clock, device)
        except RuntimeError as error:  # after a fault of one variant the device may refuse all others
            best, ms, faults = kernels.choices()[name][0], {}, [f"{name}: {str(error).splitlines()[0]}"]
        kernels.choose(**{name: best})
        result["ms"][name] = ms
        result["faults"] += faults
        print(f"{name:26} {best:4}  {ms}  {' '.join(faults)}", flush=True)
        yield result | {"choices": {name: value for name, (value, _) in kernels.choices().items()}}


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, default=ROOT / "build" / "tune" / "libstca_tune.so")
    arguments = parser.parse_args()
    if not arguments.library.exists():
        sys.exit(f"make gpu-tune: {arguments.library} is missing: it is what `make tune` builds, and has to come along")
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        sys.exit(f"make gpu-tune: torch {torch.__version__} sees no GPU of compute capability 9 here")
    torch.manual_seed(0)
    about = torch.cuda.get_device_properties(0)
    reports = torch.zeros(64, dtype=torch.int32, device="cuda")
    kernels = tuning.Kernels(arguments.library, about.multi_processor_count, SHARED_BYTES, reports.data_ptr())
    out = Path(os.environ.get("OUT", ROOT / "build" / "gpu")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    machine = measured_on()
    for result in tune(kernels, Clock("cuda"), "cuda", SECONDS):
        (out / "sm90-tuned.json").write_text(json.dumps(machine | result, indent=1) + "\n")
    print(f"wrote {out / 'sm90-tuned.json'}; {len(result['faults'])} faults, {len(result['out of time'])} out of time")
    sys.exit(bool(result["faults"] or result["out of time"]))


if __name__ == "__main__":
    main()
