"""The pictures of report.py, from the rows of compare.py and the curves of growth.py."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from stca.files import whole_file

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

Row = dict[str, Any]


@contextmanager
def _picture(path: Path, rows: int, columns: int, size: tuple[float, float]) -> Iterator[Any]:
    """Axes [rows, columns] of a figure that is written to `path` at the end."""
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    try:
        yield axes
        for axis in axes.flat:
            axis.grid(alpha=0.3)
        with whole_file(path) as part:
            figure.savefig(part, dpi=110, format="png")
    finally:
        plt.close(figure)


def _log_ratios(axis: Any, name: str) -> None:
    """A logarithmic axis, "x" or "y", of ratios around 1."""
    getattr(axis, f"set_{name}scale")("log")
    ticks = getattr(axis, f"{name}axis")
    ticks.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ticks.set_major_formatter("{x:g}")
    ticks.set_minor_formatter(NullFormatter())


def draw_speeds(groups: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Every case's ratio to its best peer as a dot and their geometric mean as a bar: {row: {series: ratios}}."""
    with _picture(path, 1, 1, (9, 4.2)) as axes:
        axis, names = axes[0, 0], list(groups)
        series = list(dict.fromkeys(each for of_row in groups.values() for each in of_row))
        for number, each in enumerate(series):
            at = np.arange(len(names))[::-1] - (number - (len(series) - 1) / 2) * 0.8 / len(series)
            for place, name in zip(at, names, strict=True):
                ratios = groups[name].get(each)
                if ratios is None:
                    continue
                mean = float(np.exp(np.mean(np.log(ratios))))
                label = each if name == names[0] else None
                axis.barh(place, mean - 1, 0.8 / len(series), left=1, color=f"C{number}", alpha=0.75, label=label)
                axis.scatter(ratios, [place] * len(ratios), s=5, color="black", alpha=0.35, zorder=3)
        axis.axvline(1, color="black", linewidth=1)
        _log_ratios(axis, "x")
        axis.set_yticks(range(len(names)), names[::-1])
        axis.set(xlabel="time of the best peer / time of stca (right of 1: stca is faster)")
        axis.legend(fontsize=8, loc="lower right")


def draw_ratios(groups: Mapping[tuple[str, str, str], Sequence[Row]], path: Path) -> None:
    """Every case's ratio to its best peer, by (op, dtype, direction)."""
    with _picture(path, 1, 1, (9, 4)) as axes:
        axis, names = axes[0, 0], list(dict.fromkeys(op for op, _, _ in groups))
        for (op, dtype, direction), each in groups.items():
            offset = 0.2 * (direction != "forward") + 0.1 * (dtype != "float32") - 0.15
            color = {"float32": "C0", "bfloat16": "C1"}[dtype]
            marker = "o" if direction == "forward" else "s"
            at, ratios = [names.index(op) + offset] * len(each), [row["ratio"] for row in each]
            axis.scatter(at, ratios, s=12, c=color, marker=marker, alpha=0.6)
        axis.axhline(1, color="gray", linewidth=1)
        _log_ratios(axis, "y")
        axis.set_xticks(range(len(names)), names, rotation=20, ha="right", fontsize=8)
        title = "circles forward, squares forward+backward; blue float32, orange bfloat16"
        axis.set(ylabel="best peer's time / ours", title=title)


def draw_growth(curves: Sequence[Row], path: Path) -> None:
    """Time above, memory below, one column per variable."""
    with _picture(path, 2, 3, (13, 7)) as axes:
        for column, variable in enumerate(("L", "m", "R")):
            time, memory = axes[:, column]
            for c in curves:
                if c["variable"] == variable:
                    label = f"{c['op']}, {c['direction']}: {variable}^{c['exponent']:.2f}"
                    time.plot(c["values"], c["ms"], marker="o", markersize=3, label=label)
                    memory.plot(c["values"], np.maximum(c["peak_mb"], 0.1), marker="o", markersize=3)
            time.set(xscale="log", yscale="log", ylabel="ms", title=f"against {variable}")
            memory.set(xscale="log", yscale="log", ylabel="peak extra MB", xlabel=variable)
            time.legend(fontsize=6)
