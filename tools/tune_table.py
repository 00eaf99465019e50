"""Writes csrc/kernels/cuda/tuned.h, which the launchers read, from what a GPU has measured.

    python tools/tune_table.py [FOLDER]

FOLDER is where `make gpu-tune` or `make gpu` left sm90-tuned.json or sm90.json on a machine with a GPU: what is there
takes the place of the files in benchmarks/results first. Commit those and the header together.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from confirm import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
HEADER = ROOT / "csrc" / "kernels" / "cuda" / "tuned.h"
FILES = ("sm90-tuned.json", "sm90.json")


def measured_on() -> dict[str, Any]:
    """This machine's GPU, its driver and today: how a result begins."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        driver = "driver unknown"
    return {"gpu": torch.cuda.get_device_name(), "driver": driver, "date": time.strftime("%Y-%m-%d")}


def source_of(result: dict[str, Any], without: str) -> str:
    """The GPU, driver and date of a result, or what it is where none has been measured."""
    return ", ".join(str(result[name]) for name in ("gpu", "driver", "date")) if result["gpu"] else without


def header(tuned: dict[str, Any], sm90: dict[str, Any]) -> str:
    """The text of tuned.h."""
    unknown = set(sm90["confirmed"]) - set(FAMILIES)
    if unknown:
        raise ValueError(f"sm90.json: confirmed must be among {', '.join(FAMILIES)}, got {', '.join(sorted(unknown))}")
    families = [f"  X({name}, {str(name in sm90['confirmed']).lower()})" for name in FAMILIES]
    macro = ["#define STCA_FOR_EACH_SM90_FAMILY(X)", *families]
    width = max(map(len, macro[:-1])) + 1  # where the formatter puts the ends of lines
    return "\n".join(
        [
            "// Numbers of choice.h, and which families of Hopper's kernels are on by default. Written by",
            "// tools/tune_table.py from benchmarks/results/sm90-tuned.json and sm90.json: change those, then run it.",
            "#pragma once",
            "",
            "namespace stca {",
            "namespace cuda {",
            "namespace tuned {",
            "",
            f"// Source: {source_of(tuned, 'chosen by hand, some by the H200 run of benchmarks/NOTES.md')}.",
            *(f"constexpr int {name} = {number};" for name, number in tuned["choices"].items()),
            "",
            "}  // namespace tuned",
            "}  // namespace cuda",
            "}  // namespace stca",
            "",
            "// X(family, confirmed): whether tests and times on a GPU speak for the family.",
            f"// Source: {source_of(sm90, 'no GPU has confirmed any')}.",
            *(f"{line:{width}}\\" for line in macro[:-1]),
            macro[-1],
            "",
        ]
    )


def main() -> None:
    """Reads the command line."""
    for name in FILES if len(sys.argv) > 1 else ():
        if (measured := Path(sys.argv[1]) / name).exists():
            shutil.copyfile(measured, RESULTS / name)
    HEADER.write_text(header(*(json.loads((RESULTS / name).read_text()) for name in FILES)))
    print(f"wrote {HEADER.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
