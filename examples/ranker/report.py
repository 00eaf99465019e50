"""The result as a table, as JSON and as a picture."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stca.files import check_output, whole_file

Report = dict[str, Any]


class Clock:
    """Where the time goes: wall and CPU seconds (two threads that work count twice) of each part of a program."""

    def __init__(self) -> None:
        self.parts: dict[str, tuple[float, float]] = {}
        self._last = time.perf_counter(), time.process_time()

    def done(self, part: str) -> None:
        """What passed since the last part, or since the start, was this one."""
        now = time.perf_counter(), time.process_time()
        self.parts[part] = now[0] - self._last[0], now[1] - self._last[1]
        self._last = now


def make_ready(paths: Iterable[Path], log: Path | None) -> None:
    """Makes the folders of files that will be written, and refuses what cannot be, before there is work to lose."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_output(path)
        if log is not None and path.resolve() == log.resolve():
            raise ValueError(f"{path}: must not be the log itself")


def write_text(text: str, path: Path) -> None:
    """Writes a whole file, or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        part.write_text(text)


def print_report(report: Report) -> None:
    """Prints everything side by side."""
    print(f"\n{'model':<34}{'AUC':>9}{'log loss':>11}")
    for name, result in report["baselines"].items():
        print(f"{name:<34}{result['auc']:>9.4f}{result['logloss']:>11.4f}")
    for length, result in report["served"].items():
        print(f"{f'STCA, last {int(length):,} events':<34}{result['auc']:>9.4f}{result['logloss']:>11.4f}")
    print(f"\n{'training':<34}{'targets/s':>11}{'peak memory':>14}{'bytes/target':>14}")
    for name, speed in report["throughput"].items():
        memory = report["peak_memory_mb"][name]
        print(f"{name:<34}{speed:>11,.0f}{memory:>11,.0f} MB{report['bytes_per_target'][name]:>14,.0f}")
    print(f"\n{'where the time went':<34}{'seconds':>11}{'of CPU':>14}")
    for part, (wall, cpu) in report["seconds"].items():
        print(f"{part:<34}{wall:>11.1f}{cpu:>14.1f}")


def write_json(report: Report, path: Path) -> None:
    """Writes the report as JSON."""
    write_text(json.dumps(report, indent=2) + "\n", path)


def draw(report: Report, path: Path) -> None:
    """AUC against served length, with the baselines as lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    lengths = [int(length) for length in report["served"]]
    axes.plot(lengths, [result["auc"] for result in report["served"].values()], marker="o", label="STCA")
    for style, (name, result) in zip((":", "--", "-."), report["baselines"].items(), strict=False):
        axes.axhline(result["auc"], linestyle=style, color="gray", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set_xlabel("history served (events)")
    axes.set_ylabel("AUC")
    axes.set_title(f"Served length, {report['log']}")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        figure.savefig(part, dpi=150, format="png")
    plt.close(figure)
