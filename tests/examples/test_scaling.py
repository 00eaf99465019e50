"""examples/scaling.py: an interrupted grid goes on unchanged, and the report's numbers are those of its JSON."""

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scaling
import torch
from ranker import scaling_report
from ranker.batches import WINDOWS
from ranker.train import Training

SCHEMES = {
    "fixed": scaling.Scheme(16, 16, capacity="S"),
    "Beta 0.3": scaling.Scheme(16, 64, capacity="S"),
    "full": scaling.Scheme(64, 64, capacity="S"),
}


@pytest.fixture
def grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: Callable[[int], None]
) -> Callable[..., dict[str, Any]]:
    """Makes a small grid of 3 schemes and 2 seeds in a folder of that name."""
    rng = np.random.default_rng(0)
    path = tmp_path / "tiny.csv"
    rows = [f"{rng.integers(3)},{rng.integers(20)},{t // 3},{rng.integers(2)}" for t in range(450)]
    path.write_text("\n".join(["user_id,item_id,timestamp,label", *rows]))
    monkeypatch.setattr(scaling, "make_schemes", lambda *_: SCHEMES)
    threads(1)  # the steps are tiny: more threads would only wait for each other

    def make(folder: str, *more: str) -> dict[str, Any]:
        words = ["--log", str(path), "--out", str(tmp_path / folder), "--average", "16", "--maximum", "64"]
        return scaling.main([*words, "--seeds", "2", "--epochs", "2", "--quick", *more])

    return make


def _without_seconds(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in run.items() if key != "seconds"} for run in report["runs"]]


def test_an_interrupted_grid_goes_on_at_the_run_it_was_in(
    grid: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = scaling_report.draw
    monkeypatch.setattr(scaling_report, "draw", lambda *_: None)  # takes longer than the training
    undisturbed = grid("undisturbed")
    epochs: list[str] = []
    save = Training._save

    def count(training: Training) -> None:
        save(training)
        epochs.append(training.checkpoint.stem)  # type: ignore[union-attr]

    def stop_in_the_third_run(training: Training) -> None:
        count(training)
        if len(epochs) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Training, "_save", stop_in_the_third_run)
    with pytest.raises(KeyboardInterrupt):
        grid("interrupted")
    assert not (tmp_path / "interrupted" / "tiny.md").exists()
    monkeypatch.setattr(Training, "_save", count)
    resumed = grid("interrupted")
    # Two epochs each of six runs: none was made twice.
    assert epochs == [f"{name.replace(' ', '-')}-{seed}" for seed in (0, 1) for name in SCHEMES for _ in (0, 1)]
    assert _without_seconds(resumed) == _without_seconds(undisturbed)
    assert grid("interrupted") == resumed
    assert len(epochs) == 12
    with pytest.raises(ValueError, match=r"fixed-0\.json: must be of runs_per_step = 7 \(.*\), got runs_per_step = "):
        grid("interrupted", "--runs-per-step", "7")
    folder = tmp_path / "interrupted"
    report = json.loads((folder / "tiny.json").read_text())
    draw(report, folder / "tiny.png")
    assert report == resumed
    assert (folder / "tiny.md").read_text() == scaling_report.markdown(report)
    assert (folder / "tiny.png").stat().st_size > 10_000
    # Only shorter windows cost less.
    cost = {name: scaling_report.cost_of(report, name, "tokens") for name in SCHEMES}
    assert max(cost["fixed"], cost["Beta 0.3"]) < cost["full"]
    _check_numbers(report)


def _check_numbers(report: dict[str, Any]) -> None:
    """Whatever the JSON holds, the text says."""
    report = copy.deepcopy(report)
    auc = {
        "fixed": {"1": 0.5, "16": 0.6, "64": 0.55, "256": 0.55},
        "Beta 0.3": {"1": 0.5, "16": 0.6, "64": 0.68, "256": 0.7},
        "full": {"1": 0.5, "16": 0.6, "64": 0.7, "256": 0.7},
    }
    for run in report["runs"]:
        lengths = {length: {"auc": auc[run["scheme"]][length] + 0.01 * run["seed"]} for length in auc["full"]}
        run |= {"served": lengths, "tokens": 900 if run["scheme"] == "full" else 300, "seconds": 2.0}
    text = scaling_report.markdown(report)
    assert "AUC 0.7050 ± 0.0071 instead of 0.6050 ± 0.0071, a gain of 0.1000 ± 0.0000." in text
    assert (
        "Beta 0.3, trained at 16 on average, served at 64: +0.0800 AUC, 80% of that gain, for 33% of the tokens and "
        "100% of the CPU time."
    ) in text
    assert "- fixed: with longer histories served, AUC falls by 0.0500 ± 0.0000 from 16 to 64." in text
    assert "- Beta 0.3: with longer histories served, AUC never falls." in text
    assert "| full | 0.5050 ± 0.0071 | 0.6050 ± 0.0071 | 0.7050 ± 0.0071 | 0.7050 ± 0.0071 |" in text
    for run in report["runs"]:
        run["served"]["64"]["auc"] = 0.5
    assert "On this log longer histories do not help." in scaling_report.markdown(report)


def test_the_grid_compares_lengths_windows_and_sizes() -> None:
    schemes = scaling.make_schemes(512, 4096, 20_000, "M")
    assert {scheme.alpha for name, scheme in schemes.items() if name.startswith("Beta")} == {0.1, 0.3, 1.0}
    assert {scheme.window for scheme in schemes.values()} == set(WINDOWS)
    assert {scheme.capacity for scheme in schemes.values()} == set(scaling.CAPACITIES)
    assert schemes["Beta 0.3 wide"].maximum == 16_384
    assert "Beta 0.3 wide" not in scaling.make_schemes(512, 4096, 5000, "M")


def test_the_whole_grid_is_drawn(tmp_path: Path) -> None:
    schemes = {name: asdict(how) for name, how in scaling.make_schemes(512, 4096, 20_000, "M").items()}
    served = {length: {"auc": 0.7} for length in ("64", "512", "4096")}
    cost = {"seed": 0, "tokens": 100, "seconds": 1.0, "dense_parameters": 5}
    runs = [{"scheme": name, "served": served, **cost} for name in schemes]
    report = {"log": "all", "average": 512, "maximum": 4096, "schemes": schemes, "runs": runs}
    scaling_report.draw(report, tmp_path / "all.png")
    assert (tmp_path / "all.png").stat().st_size > 10_000


def test_windows_lie_within_what_may_be_seen() -> None:
    visible, offsets = torch.tensor([[10, 40], [10, 43], [10, 50]]), torch.tensor([0, 3])
    eight = torch.full((3,), 8)
    torch.manual_seed(0)
    assert WINDOWS["suffix"](visible, eight, offsets).tolist() == [[32, 40], [35, 43], [42, 50]]
    assert WINDOWS["prefix"](visible, eight, offsets).tolist() == [[10, 18]] * 3
    starts = set()
    for _ in range(50):
        window = WINDOWS["random"](visible, eight, offsets)
        assert (window == window[0]).all()
        assert window[0, 0] >= 10
        assert window[0, 1] == window[0, 0] + 8 <= 40
        starts.add(int(window[0, 0]))
    assert len(starts) > 10
    assert WINDOWS["random"](visible, eight + 91, offsets).tolist() == [[10, 40]] * 3
