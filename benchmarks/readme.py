"""The README's speed section, from the JSON of compare.py and of examples/rlb_savings.py."""

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from result import kept_ratio

Row = dict[str, Any]
ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- benchmarks/report.py: begin -->\n", "<!-- benchmarks/report.py: end -->\n"
DIRECTIONS = {"forward": "forward", "forward+backward": "with gradients"}
# The README's rows, and how the names of their ops begin.
SUMMARY = {
    "`TargetAttention`": ("TargetAttention",),
    "`target_attention`, reordered": ("target_attention reordered",),
    "`target_attention`, projected": ("target_attention projected",),
    "`swiglu_ffn_norm`": ("swiglu_ffn_norm",),
    "`request_gather`, `jagged_select`": ("request_gather", "jagged_select"),
    "`STCA`": ("STCA",),
}


def mean_ratio(rows: Iterable[Row]) -> float:
    """Geometric mean of the times of the best peer over those of stca."""
    return geometric_mean(row["ratio"] for row in rows)


def geometric_mean(values: Iterable[float]) -> float:
    """The exponential of the mean logarithm."""
    return float(np.exp(np.mean(np.log(list(values)))))


def kept_text(rows: Iterable[Row]) -> str:
    """Geometric mean and least of the ratios with hidden rows or scores kept; nothing where none was measured."""
    ratios = [ratio for row in rows if (ratio := kept_ratio(row)) is not None]
    return f"{geometric_mean(ratios):.2f} ({min(ratios):.2f})" if ratios else ""


def runs(folder: Path, kind: str) -> list[Path]:
    """The JSON of every run on machines of a kind, "cpu" or "gpu"."""
    return [path for path in sorted(folder.glob(f"{kind}*.json")) if not path.name.endswith(".machine.json")]


def load(run: Path) -> tuple[list[Row], dict[str, Any]]:
    """A run's rows, and the machine that it ran on."""
    return json.loads(run.read_text()), json.loads(run.with_suffix(".machine.json").read_text())


def paragraph(text: str) -> list[str]:
    """Lines of Markdown, and an empty one."""
    return [*textwrap.wrap(text, 140, break_long_words=False, break_on_hyphens=False), ""]


def summary(folder: Path) -> dict[str, dict[tuple[str, str], list[Row]]]:
    """The cases of each of the README's rows, by instruction set and direction."""
    found: dict[str, dict[tuple[str, str], list[Row]]] = {name: {} for name in SUMMARY}
    for run in runs(folder, "cpu"):
        rows, machine = load(run)
        isa = machine["build_info"]["cpu_isa"]
        for name, ops in SUMMARY.items():
            for row in rows:
                if row["op"].startswith(ops):
                    found[name].setdefault((isa, row["direction"]), []).append(row)
    return {name: columns for name, columns in found.items() if columns}


def readme_section(folder: Path) -> list[str]:
    """What lies between the README's markers."""
    rows = summary(folder)
    columns = list(dict.fromkeys(column for each in rows.values() for column in each))
    lines = ["| | " + " | ".join(f"{isa}, {DIRECTIONS[direction]}" for isa, direction in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    slower = []
    for name, each in rows.items():
        cells = [_cell(each[column]) if column in each else "" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        for direction, text in DIRECTIONS.items():
            means = [mean_ratio(each[column]) for column in columns if column[1] == direction and column in each]
            if means and min(means) < 1:
                slower.append(f"{name} {text} ({_span(means)})")
    machines = [load(run)[1] for run in runs(folder, "cpu")]
    threads = " and ".join(dict.fromkeys(f"{machine['threads']} threads of {machine['cpu']}" for machine in machines))
    return [
        "![Speed over the best peer](benchmarks/results/speed.png)",
        "",
        *paragraph(
            f"Speed over the fastest of torch's and fbgemm's ways, each in the form that suits it best, on {threads}: "
            "geometric mean (worst case), and how many of the cases are lost."
        ),
        *lines,
        "",
        *paragraph(f"Slower than the best peer on average: {'; '.join(slower) or 'nothing'}."),
        *(line for run in runs(folder, "cpu") for line in kept_and_behind(run)),
        *(line for run in runs(folder, "gpu") for line in gpu_summary(run)),
        *savings(ROOT / "examples/reports/rlb_savings/report.json"),
    ]


def kept_and_behind(run: Path) -> list[str]:
    """What keeping gains on a CPU, and how many cases two runs found behind; nothing of a run that measured neither."""
    rows, machine = load(run)
    if "behind" not in machine:
        return []
    trained = [row for row in rows if row["direction"] == "forward+backward"]
    kept = {name: kept_text(row for row in trained if row["op"].startswith(ops)) for name, ops in SUMMARY.items()}
    means = ", ".join(f"{name} {text}" for name, text in kept.items() if text)
    return paragraph(
        f"On {machine['build_info']['cpu_isa']}, with gradients and with hidden rows or scores kept "
        f"(`recompute=False`): {means or 'not measured'}. More than 5 % "
        f"behind the best peer in two runs, kept or not: {len(machine['behind'])} of {len(rows)} cases, "
        f"{sum(each['dtype'] == 'float32' for each in machine['behind'])} of them in float32 "
        "([which](benchmarks/RESULTS.md))."
    )


def _cell(rows: list[Row]) -> str:
    lost = sum(row["ratio"] < 1 for row in rows)
    return f"**{mean_ratio(rows):.2f}** ({min(row['ratio'] for row in rows):.2f}), {lost} of {len(rows)}"


def _span(values: list[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def gpu_summary(run: Path) -> list[str]:
    """How a run on a GPU ended."""
    rows, machine = load(run)
    compared = [row for row in rows if row["ratio"] is not None]
    return paragraph(f"{machine['device']}, {machine['date']}, over the best peer: {_cell(compared)} cases lost.")


def savings(report: Path, targets: int = 8, length: int = 10_000) -> list[str]:
    """What request-level batches save, by examples/rlb_savings.py."""
    content = json.loads(report.read_text())
    [case] = [each for each in content["cases"] if (each["targets"], each["length"]) == (targets, length)]
    ratio = {name: case["request-level"][name] / value for name, value in case["point-wise"].items()}
    return paragraph(
        f"Request-level against point-wise batches, at {targets} targets a request and histories of {length:,} rows: "
        f"{1 - ratio['disk_bytes']:.0%} less disk, {1 - ratio['batch_bytes']:.0%} fewer bytes to the model, "
        f"{ratio['targets_per_s']:.1f} times the training speed ([report](examples/reports/rlb_savings/report.md))."
    )


def with_section(readme: Path, lines: list[str]) -> str:
    """The README's text with these lines between its markers."""
    text = readme.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{readme}: must hold the lines {BEGIN.strip()!r} and {END.strip()!r} once each")
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + "\n".join(lines) + END + rest.split(END)[1]
