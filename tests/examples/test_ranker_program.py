"""examples/train_ranker.py as a user runs it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import train_ranker
from pyarrow import csv
from ranker.generate import generate_log

FORMS = {"shared by requests", "request-level", "point-wise", "shared, distinct rows"}


def test_the_whole_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], threads: Callable[[int], None]
) -> None:
    """Table, JSON and picture of a small log; a second run finds its checkpoints and says the same."""
    threads(1)
    monkeypatch.chdir(tmp_path)
    csv.write_csv(generate_log(num_users=2, requests_per_user=60, num_items=1100), "events.csv")
    sizes = "--epochs 1 --dim 16 --average-length 64 --max-length 128"
    reports, printed = [], []
    for name in ("first.json", "second.json"):
        command = f"train_ranker.py --log events.csv --event-time {sizes} --out out --json {name}"
        monkeypatch.setattr(sys, "argv", command.split())
        train_ranker.main()
        reports.append(json.loads(Path(name).read_text()))
        printed.append(capsys.readouterr().out)
        measured = {form: dict.fromkeys(("targets_per_s", "peak_memory_mb", "bytes_per_target"), 1.0) for form in FORMS}
        monkeypatch.setattr(train_ranker, "compare", lambda *_, measured=measured: measured)  # once is enough
    first, second = reports
    assert first["served"].keys() == {"64", "256", "1024"}
    assert first["baselines"].keys() == {"bias only", "mean pooled"}
    for result in (*first["served"].values(), *first["baselines"].values()):
        assert 0 < result["auc"] < 1
        assert result["logloss"] > 0
    for measure in ("throughput", "peak_memory_mb", "bytes_per_target"):
        assert first[measure].keys() == FORMS
    assert first["bytes_per_target"]["request-level"] < first["bytes_per_target"]["point-wise"]
    assert Path("out/served_length.png").read_bytes().startswith(b"\x89PNG")
    assert (second["served"], second["baselines"]) == (first["served"], first["baselines"])
    assert "STCA, last 1,024 events" in printed[0]
    assert "P/N = " in printed[0]
    assert "STCA: out/events.csv-STCA.pt holds 1 of 1 epochs" in printed[1]
