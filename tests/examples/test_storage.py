"""examples/storage.py as a user runs it, on a small log."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import storage
from pyarrow import csv
from ranker.generate import generate_log


def test_the_whole_program(tmp_path: Path, capsys: pytest.CaptureFixture[str], threads: Callable[[int], None]) -> None:
    threads(1)
    log = tmp_path / "events.csv"
    csv.write_csv(generate_log(num_users=2, requests_per_user=60, num_items=1100), log)
    storage.main(["--log", str(log), "--out", str(tmp_path), "--length", "128", "--dim", "16"])
    found = json.loads((tmp_path / "events.csv.json").read_text())
    forms = "rows", "keys_values"
    assert list(found) == [f"{form} {name}" for form in forms for name in ("float32", "bfloat16", "float16", "int8")]
    assert "| keys_values int8 | " in capsys.readouterr().out
    exact = found["rows float32"]
    for name, bound in (("float32", 1e-6), ("bfloat16", 0.02), ("float16", 0.005), ("int8", 0.02)):
        for form in forms:
            assert abs(found[f"{form} {name}"]["auc"] - exact["auc"]) <= bound
            assert name == "float32" or found[f"{form} {name}"] != exact
