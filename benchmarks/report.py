"""Turns the JSON of compare.py and growth.py into the README's tables and pictures: nothing is typed in by hand.

    python benchmarks/report.py [--results benchmarks/results] [--readme README.md]

Reads growth.json, every cpu-ISA.json with its cpu-ISA.machine.json and, where it was run, gpu.json of the folder; draws
growth.png and ratios-ISA.png beside them; writes what lies between the README's markers.
"""

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from grid import all_cases

from stca.files import whole_file
from stca.nn import TargetAttention

Row = dict[str, Any]
BEGIN, END = "<!-- benchmarks/report.py: begin -->\n", "<!-- benchmarks/report.py: end -->\n"
_AUTO = 1.1  # an automatic choice within 10 % of the better one is as good


def mean_ratio(rows: Iterable[Row]) -> float:
    """Geometric mean of the times of the best peer over those of stca."""
    return float(np.exp(np.mean([np.log(row["ratio"]) for row in rows])))


def groups(rows: list[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Rows of the same op, dtype and direction; small calls apart."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        op = f"{row['op']}, {row['case'].split(' ')[0]}" if row["op"] == "STCA" else row["op"]
        op = "small call" if "small call" in row["case"] else op
        found.setdefault((op, row["dtype"], row["direction"]), []).append(row)
    return found


def table(rows: list[Row]) -> list[str]:
    """A line per op, dtype and direction."""
    lines = [
        "| | dtype | cases | as fast as the best peer x: mean (least) | slower than it | share of the floor: median | "
        "extra memory / that of the best peer |",
        "|---|---|---|---|---|---|---|",
    ]
    for (op, dtype, direction), each in sorted(groups(rows).items(), key=lambda item: (item[0][0], item[0][1:])):
        memory = [max(r["peak_mb"], 0.1) / max(r["peer_peak_mb"], 0.1) for r in each]
        least = min(r["ratio"] for r in each)
        lines.append(
            f"| {op}, {direction} | {dtype} | {len(each)} | {mean_ratio(each):.2f} ({least:.2f}) "
            f"| {sum(r['ratio'] < 1 for r in each)} | {np.median([r['floor_share'] for r in each]):.0%} "
            f"| {np.exp(np.mean(np.log(memory))):.2f} |"
        )
    return lines


def automatic(rows: list[Row]) -> str:
    """How often order="auto" takes the faster order, or one within 10 % of it, by the times of both."""
    choices = []
    for row in rows:
        if "stca reordered" in row["all_ms"]:
            D, H, m, L, R = (int(re.search(rf"\b{name}=(\d+)", row["case"])[1]) for name in "DHmLR")  # type: ignore[index]
            order = TargetAttention(D, H, device="meta").chosen_order(m * R, L * R, R)
            times = {each: row["all_ms"][f"stca {each}"] for each in ("reordered", "projected")}
            choices.append(times[order] / min(times.values()))
    good = sum(ratio <= _AUTO for ratio in choices)
    return (
        f'`TargetAttention(order="auto")` takes the faster order, or one within 10 % of it, in {good} of '
        f"{len(choices)} cases; at worst it takes {max(choices):.2f} times as long."
    )


def cpu_runs(folder: Path) -> list[Path]:
    """The JSON of every run of compare.py, one per instruction set."""
    return [path for path in sorted(folder.glob("cpu-*.json")) if not path.name.endswith(".machine.json")]


def picture(run: Path) -> Path:
    """Where the picture of a run goes."""
    return run.with_name(run.stem.replace("cpu-", "ratios-") + ".png")


def cpu_section(run: Path) -> list[str]:
    """What compare.py found on a CPU."""
    rows, machine = json.loads(run.read_text()), json.loads(run.with_suffix(".machine.json").read_text())
    cases = sum(len(case.directions) for case in all_cases(quick=False))
    grid = [row for row in rows if row["op"].startswith("target_attention") and "small call" not in row["case"]]
    means = ", ".join(
        f"{direction} {mean_ratio([row for row in grid if row['direction'] == direction]):.2f}"
        for direction in ("forward", "forward+backward")
    )
    return [
        f"**CPU**: {machine['cpu']}, {machine['threads']} threads, {machine['build_info']['cpu_isa']}, torch "
        f"{machine['torch']}, float32 GEMM {machine['gemm_gflops']:.0f} GFLOP/s, reads {machine['read_gbs']:.0f} GB/s, "
        f"{machine['date']}; `python benchmarks/compare.py`: {len(rows)} of {cases} cases of the grid. Every way "
        "runs in turn, in the form that suits it best, malloc keeping freed pages; the floor is the larger of FLOPs "
        f"over float32 GEMM speed and bytes over reading speed.{bfloat16_peers(machine)}",
        "",
        *table(rows),
        "",
        f"All cases of `target_attention`, geometric mean of the best peer's time over ours: {means}. "
        + automatic(rows),
        "",
        f"![Every case against its best peer](benchmarks/results/{picture(run).name})",
        "",
    ]


def bfloat16_peers(machine: dict[str, Any]) -> str:
    """A note where they were not run in bfloat16."""
    if machine.get("bfloat16_peers", "bfloat16") == "bfloat16":
        return ""
    return f" Peers that multiply ran in {machine['bfloat16_peers']} in bfloat16 cases, which is faster for them here."


def growth_section(folder: Path) -> list[str]:
    """What growth.py found."""
    curves = json.loads((folder / "growth.json").read_text())
    lines = ["| time grows as | L | m | R |", "|---|---|---|---|"]
    for op, direction in dict.fromkeys((c["op"], c["direction"]) for c in curves):
        fitted = {c["variable"]: c["exponent"] for c in curves if (c["op"], c["direction"]) == (op, direction)}
        powers = " | ".join(f"{v}^{fitted[v]:.2f}" if v in fitted else "" for v in ("L", "m", "R"))
        lines.append(f"| {op}, {direction} | {powers} |")
    return [*lines, "", "![Time and memory against L, m and R](benchmarks/results/growth.png)", ""]


def gpu_section(folder: Path) -> list[str]:
    """What gpu.py found, if it was run."""
    if not (folder / "gpu.json").exists():
        return ["**GPU**: an H200's figures so far are in `benchmarks/NOTES.md`; the grid awaits `make gpu`.", ""]
    rows, machine = json.loads((folder / "gpu.json").read_text()), json.loads((folder / "gpu.machine.json").read_text())
    lines = ["| | ms | TFLOP/s | GB/s | best peer | its time / ours |", "|---|---|---|---|---|---|"]
    for row in rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        speeds = f"{row['stca_ms']:.3f} | {row['tflops']:.0f} | {row['gbs']:.0f}"
        name = f"{row['op']}, {row['case']}, {row['dtype']}, {row['direction']}"
        lines.append(f"| {name} | {speeds} | {row['best_peer'] or ''} | {ratio} |")
    return [f"**GPU**: {machine['device']}, torch {machine['torch']}, {machine['date']}; `make gpu`.", "", *lines, ""]


def draw_ratios(rows: list[Row], path: Path) -> None:
    """Every case's ratio to its best peer, by op."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
    names = list(dict.fromkeys(op for op, _, _ in groups(rows)))
    for (op, dtype, direction), each in groups(rows).items():
        offset = 0.2 * (direction != "forward") + 0.1 * (dtype != "float32") - 0.15
        color = {"float32": "C0", "bfloat16": "C1"}[dtype]
        marker = "o" if direction == "forward" else "s"
        axis.scatter(
            [names.index(op) + offset] * len(each), [r["ratio"] for r in each], s=12, c=color, marker=marker, alpha=0.6
        )
    axis.axhline(1, color="gray", linewidth=1)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xticks(range(len(names)), names, rotation=20, ha="right", fontsize=8)
    title = "circles forward, squares forward+backward; blue float32, orange bfloat16"
    axis.set(ylabel="best peer's time / ours", title=title)
    axis.grid(alpha=0.3)
    with whole_file(path) as part:
        figure.savefig(part, dpi=110, format="png")
    plt.close(figure)


def draw_growth(curves: list[Row], path: Path) -> None:
    """Time above, memory below, one column per variable."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    for column, variable in enumerate(("L", "m", "R")):
        for c in curves:
            if c["variable"] != variable:
                continue
            label = f"{c['op']}, {c['direction']}: {variable}^{c['exponent']:.2f}"
            axes[0, column].plot(c["values"], c["ms"], marker="o", markersize=3, label=label)
            axes[1, column].plot(c["values"], np.maximum(c["peak_mb"], 0.1), marker="o", markersize=3)
        axes[0, column].set(xscale="log", yscale="log", ylabel="ms", title=f"against {variable}")
        axes[1, column].set(xscale="log", yscale="log", ylabel="peak extra MB", xlabel=variable)
        axes[0, column].legend(fontsize=6)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    with whole_file(path) as part:
        figure.savefig(part, dpi=110, format="png")
    plt.close(figure)


def rewrite(readme: Path, lines: list[str]) -> None:
    """Puts the lines between the markers."""
    text = readme.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{readme}: must hold the lines {BEGIN.strip()!r} and {END.strip()!r} once each")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    with whole_file(readme) as part:
        part.write_text(before + BEGIN + "\n" + "\n".join(lines) + END + after)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--readme", type=Path, default=Path(__file__).parents[1] / "README.md")
    args = parser.parse_args()
    lines = []
    for run in cpu_runs(args.results):
        draw_ratios(json.loads(run.read_text()), picture(run))
        lines += cpu_section(run)
    draw_growth(json.loads((args.results / "growth.json").read_text()), args.results / "growth.png")
    rewrite(args.readme, [*lines, *growth_section(args.results), *gpu_section(args.results)])


if __name__ == "__main__":
    main()
