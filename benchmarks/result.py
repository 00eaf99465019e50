"""A row of results: what JSON files hold of a case and direction, and how it is printed."""

from collections.abc import Callable, Mapping
from typing import Any

from problem import Case, Direction, Problem
from tqdm import tqdm

Row = dict[str, Any]


def row(
    case: Case,
    direction: Direction,
    problem: Problem,
    ms: Mapping[str, float],
    floor_ms: float,
    peak_mb: Callable[[str], float],
    cannot: Mapping[str, str],
) -> Row:
    """Everything known of a case and direction; `peak_mb` measures the way of that name."""
    peers = {name: value for name, value in ms.items() if not problem.ways[name].ours and name != "stca"}
    best = min(peers, key=lambda name: peers[name], default=None)
    best_ms = None if best is None else peers[best]
    return {
        "op": case.op,
        "case": case.name,
        "dtype": str(case.dtype).removeprefix("torch."),
        "direction": direction,
        "stca_ms": ms["stca"],
        "best_peer": best,
        "best_peer_ms": best_ms,
        "ratio": None if best_ms is None else best_ms / ms["stca"],
        "floor_share": floor_ms / ms["stca"],
        "peak_mb": peak_mb("stca"),
        "peer_peak_mb": None if best is None else peak_mb(best),
        "all_ms": dict(ms),
        "cannot": dict(cannot),
    }


def kept_ratio(row: Row) -> float | None:
    """Speed over the best peer's with hidden rows or scores kept for the backward pass; None where not measured."""
    kept = [ms for name, ms in row["all_ms"].items() if name.startswith("stca, ")]
    return float(row["best_peer_ms"] / kept[0]) if kept and row["best_peer_ms"] is not None else None


def lead(row: Row) -> float:
    """Speed over the best peer's with hidden rows and scores kept or not, the faster; infinity without a peer."""
    if row["ratio"] is None:
        return float("inf")
    return max(float(row["ratio"]), kept_ratio(row) or 0.0)


def show(row: Row) -> None:
    """Prints a row: stca first, then every peer from the fastest on, then what cannot."""
    lines = [f"{row['op']}, {row['case']}, {row['dtype']}, {row['direction']}"]
    against = "no peer runs"
    peak = f"peak {row['peak_mb']:.1f} MB"
    if row["best_peer"] is not None:
        against = f"{row['ratio']:.2f} x as fast as {row['best_peer']}"
        peak += f" against {row['peer_peak_mb']:.1f} MB"
    lines.append(f"  {row['stca_ms']:9.3f} ms stca: {against}, {row['floor_share']:.0%} of the floor, {peak}")
    for name, ms in sorted(row["all_ms"].items(), key=lambda each: each[1]):
        if name != "stca":
            lines.append(f"  {ms:9.3f} ms {name}")
    lines += [f"          - {name}: {reason}" for name, reason in row["cannot"].items()]
    tqdm.write("\n".join(lines))
