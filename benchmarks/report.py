"""Turns the JSON of the benchmarks into the README's speed section, RESULTS.md and pictures; nothing is typed by hand.

    python benchmarks/report.py [--results benchmarks/results] [--readme README.md] [--full benchmarks/RESULTS.md]

Reads growth.json, every cpu-ISA.json with its cpu-ISA.machine.json, every gpu*.json likewise, and the report of
examples/rlb_savings.py. Writes what lies between the README's markers, all of RESULTS.md, and the pictures beside the
JSON: speed.png, growth.png, ratios-ISA.png.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from charts import draw_growth, draw_ratios, draw_speeds
from grid import all_cases
from readme import (
    DIRECTIONS,
    ROOT,
    Row,
    geometric_mean,
    kept_text,
    load,
    mean_ratio,
    paragraph,
    readme_section,
    runs,
    summary,
    with_section,
)

from stca.files import whole_file
from stca.nn import TargetAttention

_AUTO = 1.1  # an automatic choice within 10 % of the better one is as good


def picture(run: Path) -> Path:
    """Where the picture of a run goes."""
    return run.with_name(run.stem.replace("cpu-", "ratios-") + ".png")


def is_small(row: Row) -> bool:
    """Whether a call is so small that its time is that of any call."""
    return "small call" in row["case"]


def groups(rows: list[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Rows of the same op, dtype and direction; small calls apart."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        op = f"{row['op']}, {row['case'].split(' ')[0]}" if row["op"] == "STCA" else row["op"]
        op = "small call" if is_small(row) else op
        found.setdefault((op, row["dtype"], row["direction"]), []).append(row)
    return found


def table(rows: list[Row]) -> list[str]:
    """A line per op, dtype and direction."""
    lines = [
        "| | dtype | cases | as fast as the best peer x: mean (least) | with rows or scores kept | slower than it | "
        "share of the floor: median | extra memory / that of the best peer |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (op, dtype, direction), each in sorted(groups(rows).items(), key=lambda item: (item[0][0], item[0][1:])):
        memory = [max(r["peak_mb"], 0.1) / max(r["peer_peak_mb"], 0.1) for r in each]
        least = min(r["ratio"] for r in each)
        lines.append(
            f"| {op}, {direction} | {dtype} | {len(each)} | {mean_ratio(each):.2f} ({least:.2f}) | {kept_text(each)} "
            f"| {sum(r['ratio'] < 1 for r in each)} | {np.median([r['floor_share'] for r in each]):.0%} "
            f"| {geometric_mean(memory):.2f} |"
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


def cpu_section(run: Path) -> list[str]:
    """What compare.py found on a CPU."""
    rows, machine = load(run)
    cases = sum(len(case.directions) for case in all_cases(quick=False))
    grid = [row for row in rows if row["op"].startswith("target_attention") and not is_small(row)]
    means = ", ".join(
        f"{text} {mean_ratio([row for row in grid if row['direction'] == direction]):.2f}"
        for direction, text in DIRECTIONS.items()
        if any(row["direction"] == direction for row in grid)
    )
    return [
        f"## CPU: {machine['build_info']['cpu_isa']}",
        "",
        *paragraph(
            f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, {machine['date']}; float32 "
            f"GEMM {machine['gemm_gflops']:.0f} GFLOP/s, reads {machine['read_gbs']:.0f} GB/s. "
            f"`python benchmarks/compare.py`: {len(rows)} of {cases} cases of the grid.{bfloat16_peers(machine)}"
        ),
        *table(rows),
        "",
        *paragraph(
            f"All cases of `target_attention`, geometric mean of the best peer's time over ours: {means}. "
            + automatic(rows)
        ),
        *behind(machine, len(rows)),
        f"![Every case against its best peer](results/{picture(run).name})",
        "",
    ]


def behind(machine: dict[str, Any], cases: int) -> list[str]:
    """The cases that two runs found behind, where there were two."""
    if "behind" not in machine:
        return []
    found = machine["behind"]
    text = "More than 5 % behind the best peer in two runs, with rows or scores kept or not"
    lines = [f"{text}: {len(found)} of {cases}."]
    if found:
        lines += ["", "| | dtype | best peer | as fast as it x: first run, second |", "|---|---|---|---|"]
    for each in found:
        first, second = each["leads"]
        name = f"{each['op']}, {each['case']}, {each['direction']}"
        lines.append(f"| {name} | {each['dtype']} | {each['best_peer']} | {first:.2f}, {second:.2f} |")
    return [*lines, ""]


def bfloat16_peers(machine: dict[str, Any]) -> str:
    """A note where they were not run in bfloat16."""
    if machine.get("bfloat16_peers", "bfloat16") == "bfloat16":
        return ""
    return f" Peers that multiply ran in {machine['bfloat16_peers']} in bfloat16 cases, which is faster for them here."


def growth_section(folder: Path) -> list[str]:
    """What growth.py found."""
    curves = json.loads((folder / "growth.json").read_text())
    lines = ["## Growth", "", "| time grows as | L | m | R |", "|---|---|---|---|"]
    for op, direction in dict.fromkeys((c["op"], c["direction"]) for c in curves):
        fitted = {c["variable"]: c["exponent"] for c in curves if (c["op"], c["direction"]) == (op, direction)}
        powers = " | ".join(f"{v}^{fitted[v]:.2f}" if v in fitted else "" for v in ("L", "m", "R"))
        lines.append(f"| {op}, {direction} | {powers} |")
    return [*lines, "", "![Time and memory against L, m and R](results/growth.png)", ""]


def gpu_section(run: Path) -> list[str]:
    """What gpu.py found on a GPU."""
    rows, machine = load(run)
    lines = ["| | ms | TFLOP/s | GB/s | best peer | its time / ours |", "|---|---|---|---|---|---|"]
    for row in rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        speeds = f"{row['stca_ms']:.3f} | {row['tflops']:.0f} | {row['gbs']:.0f}"
        name = f"{row['op']}, {row['case']}, {row['dtype']}, {row['direction']}"
        lines.append(f"| {name} | {speeds} | {row['best_peer'] or ''} | {ratio} |")
    return [
        f"## GPU: {machine['device']}",
        "",
        *paragraph(
            f"torch {machine['torch']}, {machine['date']}; bfloat16 GEMM "
            f"{machine['gemm_tflops_bfloat16']:.0f} TFLOP/s, copies {machine['copy_gbs']:,.0f} GB/s. Which kernels "
            'these figures are of, and what has changed since: [NOTES.md](NOTES.md), "CUDA on an H200".'
        ),
        *lines,
        "",
    ]


def full_report(folder: Path) -> list[str]:
    """All of RESULTS.md."""
    text = (
        "Written by `benchmarks/report.py` from the JSON in `benchmarks/results`. Every implementation runs in turn "
        "with the others, in the form that suits it best; its results are checked first, and malloc keeps freed pages. "
        "The floor is the larger of FLOPs over float32 GEMM speed and bytes over reading speed. What was tried for "
        "each kernel is in [NOTES.md](NOTES.md)."
    )
    lines = ["# Results", "", *paragraph(text)]
    for run in runs(folder, "cpu"):
        lines += cpu_section(run)
    lines += growth_section(folder)
    for run in runs(folder, "gpu"):
        lines += gpu_section(run)
    return lines[:-1]


def draw(folder: Path) -> None:
    """All pictures, beside the JSON."""
    for run in runs(folder, "cpu"):
        draw_ratios(groups(load(run)[0]), picture(run))
    draw_growth(json.loads((folder / "growth.json").read_text()), folder / "growth.png")
    speeds = {
        name.replace("`", ""): {
            f"{isa}, {DIRECTIONS[direction]}": [row["ratio"] for row in rows] for (isa, direction), rows in each.items()
        }
        for name, each in summary(folder).items()
    }
    draw_speeds(speeds, folder / "speed.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--full", type=Path, default=ROOT / "benchmarks/RESULTS.md")
    args = parser.parse_args()
    draw(args.results)
    readme, full = with_section(args.readme, readme_section(args.results)), "\n".join(full_report(args.results)) + "\n"
    for path, text in ((args.readme, readme), (args.full, full)):
        with whole_file(path) as part:
            part.write_text(text)


if __name__ == "__main__":
    main()
