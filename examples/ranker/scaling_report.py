"""The result of examples/scaling.py as Markdown, as JSON and as a picture; every number comes from the JSON."""

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranker.report import write_json, write_text
from stca.files import whole_file

Report = dict[str, Any]
Floats = NDArray[np.float64]
PAPER = "The paper, at 10,000 rows: about 80 % of the gain for a third of the cost, and no dip."


def runs_of(report: Report, scheme: str) -> list[dict[str, Any]]:
    """The runs of a scheme, one a seed."""
    return [run for run in report["runs"] if run["scheme"] == scheme]


def lengths_of(report: Report) -> list[int]:
    """Served lengths, ascending."""
    return [int(length) for length in report["runs"][0]["served"]]


def auc_of(report: Report, scheme: str) -> Floats:
    """AUC [seeds, served lengths]."""
    return np.array([[result["auc"] for result in run["served"].values()] for run in runs_of(report, scheme)])


def cost_of(report: Report, scheme: str, field: str) -> float:
    """Mean over the seeds of the tokens or seconds of training."""
    return float(np.mean([run[field] for run in runs_of(report, scheme)]))


def spread(values: Floats) -> float:
    """Standard deviation over the seeds; 0 of one seed."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def shown(values: Floats, digits: int = 4) -> str:
    """Mean and spread."""
    return f"{values.mean():.{digits}f}" + (f" ± {spread(values):.{digits}f}" if len(values) > 1 else "")


def at(report: Report, scheme: str, length: int) -> Floats:
    """AUC [seeds] at one served length."""
    return auc_of(report, scheme)[:, lengths_of(report).index(length)]


def gain(report: Report, scheme: str) -> Floats:
    """AUC [seeds] of a scheme served at the full length, above that of fixed windows served as they were trained."""
    return at(report, scheme, report["maximum"]) - at(report, "fixed", report["average"])


def deepest_dip(report: Report, scheme: str) -> tuple[int, int, Floats]:
    """Between which served lengths the mean AUC falls most, the longer one later, and by how much, [seeds]."""
    auc, lengths = auc_of(report, scheme), lengths_of(report)
    mean = auc.mean(axis=0)
    tops = [int(mean[: i + 1].argmax()) for i in range(len(mean))]
    low = int(np.argmax([mean[top] - mean[i] for i, top in enumerate(tops)]))
    return lengths[tops[low]], lengths[low], auc[:, tops[low]] - auc[:, low]


def describe_dip(report: Report, scheme: str) -> str:
    """Whether longer is ever worse."""
    top, low, drop = deepest_dip(report, scheme)
    if drop.mean() <= 0:
        return "never falls"
    inside = " (within the spread)" if drop.mean() < spread(drop) else ""
    return f"falls by {shown(drop)} from {top:,} to {low:,}{inside}"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def statements(report: Report) -> list[str]:
    """What the grid says, in numbers."""
    average, maximum, whole = report["average"], report["maximum"], gain(report, "full")
    helps = whole.mean() > spread(whole)
    lines = [
        f"- Trained and served at {maximum:,} instead of {average:,} events: AUC {shown(at(report, 'full', maximum))} "
        f"instead of {shown(at(report, 'fixed', average))}, a gain of {shown(whole)}."
        + ("" if helps else " **On this log longer histories do not help.**")
    ]
    for scheme in ("fixed", *(name for name in report["schemes"] if name.startswith("Beta"))):
        own, trained = gain(report, scheme), report["schemes"][scheme]["average"]
        kept = f", {own.mean() / whole.mean():.0%} of that gain" if helps else ""
        tokens, seconds = (cost_of(report, scheme, x) / cost_of(report, "full", x) for x in ("tokens", "seconds"))
        lines.append(
            f"- {scheme}, trained at {trained:,} on average, served at {maximum:,}: {own.mean():+.4f} AUC{kept}, for "
            f"{tokens:.0%} of the tokens and {seconds:.0%} of the CPU time."
        )
    lines += [
        f"- {scheme}: with longer histories served, AUC {describe_dip(report, scheme)}." for scheme in report["schemes"]
    ]
    return [*lines, f"- {PAPER}"]


def markdown(report: Report) -> str:
    """The whole report."""
    lengths, schemes = lengths_of(report), report["schemes"]
    seeds = len(runs_of(report, "fixed"))
    auc_rows = [[name, *(shown(values) for values in auc_of(report, name).T)] for name in schemes]
    cost_rows = []
    for name, scheme in schemes.items():
        run = runs_of(report, name)[0]
        cost_rows.append(
            [
                name,
                f"{scheme['average']:,} of {scheme['maximum']:,}",
                scheme["window"],
                f"{scheme['capacity']}: {run['dense_parameters']:,} / {run['parameters']:,}",
                f"{cost_of(report, name, 'tokens') / 1e6:.2f}",
                f"{cost_of(report, name, 'seconds'):.1f}",
                shown(at(report, name, report["maximum"])),
            ]
        )
    return "\n".join(
        [
            f"# Served length: {report['log']}",
            "",
            f"By `{report['command']}` ({report['machine']}). {report['events']:,} events; AUC over the "
            f"{report['test_targets']:,} targets of the last tenth of time, whose longest history is "
            f"{report['longest_history']:,} events. Trained for {report['epochs']} epoch(s) on the "
            f"{report['train_targets']:,} latest targets before, {seeds} seed(s); ± is their standard deviation. "
            "All schemes train on the same targets in about as many steps, and are served with the most recent events.",
            "",
            f"![AUC against served length and training cost]({report['log']}.png)",
            "",
            *statements(report),
            "",
            "## AUC at served lengths",
            "",
            *table(["trained", *(f"{length:,}" for length in lengths)], auc_rows),
            "",
            "## Cost of training",
            "",
            *table(
                [
                    "trained",
                    "events, average of most",
                    "window",
                    "parameters, STCA and head / all",
                    "million tokens",
                    "CPU seconds",
                    f"AUC at {report['maximum']:,}",
                ],
                cost_rows,
            ),
            "",
            "Tokens are history rows encoded in training.",
            "",
        ]
    )


def draw(report: Report, path: Path) -> None:
    """AUC against served length (by lengths, by window, by capacity) and against cost (tokens, seconds)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    lengths, schemes = lengths_of(report), list(report["schemes"])
    colors = {name: f"C{i}" for i, name in enumerate(schemes)}
    markers = dict(zip(schemes, cycle("osD^vP*<>X"), strict=False))
    figure, axes = plt.subplots(2, 3, figsize=(14, 8), layout="constrained")
    by_length = [name for name in schemes if name.startswith("Beta") or name in ("fixed", "full")]
    panels = {
        f"Lengths in training (average {report['average']:,}, full {report['maximum']:,})": by_length,
        "Window in training (Beta 0.3)": ["Beta 0.3", *(name for name in schemes if name.endswith("window"))],
        "Capacity (Beta 0.3)": sorted(
            ["Beta 0.3", *(name for name in schemes if name.startswith("size"))],
            key=lambda name: int(runs_of(report, name)[0]["dense_parameters"]),
        ),
    }
    other = {1: "most recent", 2: f"size {report['schemes']['Beta 0.3']['capacity']}"}
    for i, (axis, (title, names)) in enumerate(zip(axes[0], panels.items(), strict=True)):
        for name in names:
            auc = auc_of(report, name)
            axis.errorbar(
                lengths,
                auc.mean(axis=0),
                yerr=[spread(values) for values in auc.T],
                label=other.get(i, name) if name == "Beta 0.3" else name,
                color=colors[name],
                marker=markers[name],
                markersize=5,
                capsize=3,
            )
        axis.axvline(report["maximum"], color="gray", linestyle=":", linewidth=1)
        axis.set_xscale("log", base=2)
        axis.set_xticks(lengths, [f"{length:,}" for length in lengths], rotation=45)
        axis.set(title=title, xlabel="history served (events)", ylabel="AUC")
        axis.legend()
    low = min(axis.get_ylim()[0] for axis in axes[0])
    high = max(axis.get_ylim()[1] for axis in axes[0])
    for axis in axes[0]:
        axis.set_ylim(low, high)
    for axis, field, unit in zip(
        axes[1], ("tokens", "seconds"), ("million history rows encoded", "CPU seconds"), strict=False
    ):
        for name in schemes:
            auc = at(report, name, report["maximum"])
            axis.errorbar(
                cost_of(report, name, field) / (1e6 if field == "tokens" else 1),
                auc.mean(),
                yerr=spread(auc),
                label=name,
                color=colors[name],
                marker=markers[name],
                markersize=8,
                capsize=3,
                linestyle="none",
            )
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set(title=f"Cost of training: {field}", xlabel=unit, ylabel=f"AUC served at {report['maximum']:,}")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    axes[1, 2].axis("off")
    axes[1, 2].legend(*axes[1, 0].get_legend_handles_labels(), loc="center left", title="trained")
    figure.suptitle(f"Trained short, served long: {report['log']}")
    with whole_file(path) as part:
        figure.savefig(part, dpi=120, format="png")
    plt.close(figure)


def write_report(report: Report, folder: Path) -> None:
    """Writes all three."""
    write_json(report, folder / f"{report['log']}.json")
    write_text(markdown(report), folder / f"{report['log']}.md")
    draw(report, folder / f"{report['log']}.png")
