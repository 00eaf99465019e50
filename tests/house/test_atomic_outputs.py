"""What the package and the examples write is whole or absent, and what was written wrong is refused by its name."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scaling
import torch
import train_ranker
from batches import make_requests
from ranker.model import Ranker
from ranker.report import make_ready
from ranker.requests import COUNTER_BUCKETS, TIME_BUCKETS, Requests, item_counters, split_by_time, time_parts
from ranker.requests import make_requests as requests_of
from ranker.train import Config, Training

from stca.batch import RequestBatch
from stca.data import RequestDataset, write_requests


def _items(path: Path) -> list[int]:
    return sorted(item for batch in RequestDataset(path, budget=1000) for item in batch.targets["item"].tolist())


def test_two_writers_of_requests(tmp_path: Path) -> None:
    path, first, second = tmp_path / "log.parquet", make_requests(30, seed=1), make_requests(30, seed=2)

    def overtaken() -> Iterator[RequestBatch]:
        yield first
        write_requests(second, path)

    with pytest.raises(FileExistsError, match=f"^{path}: was written by another process meanwhile"):
        write_requests(overtaken(), path)
    assert _items(path) == second.targets["item"].tolist()
    assert list(tmp_path.iterdir()) == [path]


def test_an_output_that_cannot_be_written_is_refused_before_work(tmp_path: Path) -> None:
    def never() -> Iterator[RequestBatch]:
        pytest.fail("the log was read")
        yield make_requests(1)

    (tmp_path / "folder").mkdir()
    for path, message in ((tmp_path / "no" / "x", "the folder must exist"), (tmp_path / "folder", "got a folder")):
        with pytest.raises(ValueError, match=f"^{path}: .*{message}"):
            write_requests(never(), path)
    with pytest.raises(ValueError, match="write_requests: tokens and nbytes must be at least 1, got 0 and"):
        write_requests(never(), tmp_path / "x", tokens=0)


def test_an_output_may_be_the_input(tmp_path: Path) -> None:
    path, batch = tmp_path / "log.parquet", make_requests(60)
    write_requests(batch, path, tokens=100)
    write_requests(RequestDataset(path, budget=50), path, tokens=300)
    assert _items(path) == batch.targets["item"].tolist()


STOPPED = """
import os, resource, signal, sys
sys.path[:0] = [os.getcwd(), "tests/helpers"]
from batches import make_requests
from stca.data import write_requests
def batches():
    for seed in range(50):
        yield make_requests(20, seed)
        if sys.argv[2] == "kill" and seed == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        if sys.argv[2] == "full" and seed == 9:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
write_requests(batches(), sys.argv[1], tokens=500)
"""


@pytest.mark.parametrize("how", ["kill", "full"])
def test_a_stopped_writer_leaves_the_older_file(tmp_path: Path, how: str) -> None:
    path, old = tmp_path / "log.parquet", make_requests(5)
    write_requests(old, path)
    done = subprocess.run([sys.executable, "-c", STOPPED, path, how], capture_output=True, text=True)
    assert done.returncode == (-signal.SIGKILL if how == "kill" else 1), done.stderr
    assert _items(path) == old.targets["item"].tolist()
    left = [p.name for p in tmp_path.iterdir() if p != path]
    assert len(left) == (1 if how == "kill" else 0)
    assert all(name.startswith(".log.parquet.") for name in left)


def _requests(labels_from: int = 0) -> Requests:
    rng = np.random.default_rng(0)
    columns = {
        name: rng.integers(0, high, 300) for name, high in (("user_id", 4), ("item_id", 20), ("timestamp", 10**6))
    }
    return requests_of(pa.table(columns | {"label": ((np.arange(300) + labels_from) % 2).astype(np.float32)}))


def test_checkpoints_of_others(tmp_path: Path) -> None:
    path, requests = tmp_path / "run.pt", _requests()
    split, config = split_by_time(requests), Config(epochs=1, budget=400, max_length=20, average_length=9, min_length=1)

    def start(requests: Requests, split: Any = split) -> Training:
        torch.manual_seed(0)
        return Training(Ranker(20, 4, dim=8), requests, split, config, path)

    start(requests)._save()
    assert start(requests).resumed
    for other in ((_requests(labels_from=1), split), (requests, replace(split, train=split.train[1:]))):
        with pytest.raises(ValueError, match=r"run\.pt: must be of .*checksum of .* = \d+ \(.*\), got .*checksum of"):
            start(*other)
    whole = path.read_bytes()
    for wrong in (whole[: len(whole) // 2], b"", b"PAR1", whole[:-1]):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"run\.pt: must be a whole checkpoint \(--restart forgets it\)"):
            start(requests)
    others: tuple[Any, ...] = {"model": {}}, [1, 2], "settings"
    for foreign in others:
        torch.save(foreign, path)
        with pytest.raises(ValueError, match=r"run\.pt: must be a whole checkpoint"):
            start(requests)


@pytest.mark.parametrize("text", ["", '{"settings": {"a"', "[1]", "3", '{"settings": {}}'])
def test_results_of_others(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json: must be a whole result of a run"):
        scaling.made_or_make(tmp_path / "run.json", {}, lambda _: pytest.fail("it was made anew"))


def _counters(item: list[int], time: list[int], label: list[float]) -> list[list[int]]:
    """By Python's integers, an event at a time."""
    span, rows = max(time) - min(time), []
    for own, now in zip(item, time, strict=True):
        row: list[float] = []
        for window in (span // 64, span // 8, span):
            seen = [y for i, t, y in zip(item, time, label, strict=True) if i == own and now - window <= t < now]
            share = 1 + 20 * sum(seen) / len(seen) if seen else 0
            row += [2 * np.log2(1 + len(seen)), 2 * np.log2(1 + sum(seen)), share]
        rows.append([int(min(x, COUNTER_BUCKETS - 1)) for x in row])
    return rows


@pytest.mark.parametrize("span", [0, 40, 365 * 86400 * 10**6, 2**62, 2**64 - 2])
@pytest.mark.parametrize("items", [3, 300_000, 2**63 - 1])
def test_counters_of_any_times_and_items(span: int, items: int) -> None:
    rng = np.random.default_rng(0)
    some = rng.integers(-items if items > 2**60 else 0, items, 5)
    item = some[rng.integers(0, 5, 200)]
    time = np.array([int(share * span) - 2**63 + 1 if span > 2**62 else int(share * span) for share in rng.random(200)])
    label = rng.integers(0, 2, 200).astype(np.float64)
    assert item_counters(item, time, label).tolist() == _counters(item.tolist(), time.tolist(), label.tolist())


@pytest.mark.parametrize("span", [1, 63, 64, 1000, 365 * 86400 * 10**9])
def test_buckets_of_any_times(span: int) -> None:
    time = np.sort(np.concatenate([[5, 5 + span], np.random.default_rng(0).integers(5, 5 + span, 298)]))
    expected = [(int(t) - 5) * TIME_BUCKETS // (span + 1) for t in time]
    times = torch.from_numpy(time)
    assert torch.bucketize(times, time_parts(times), right=True).tolist() == expected


def test_examples_refuse_outputs_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log.csv"
    log.write_text("an input")
    (tmp_path / "report.json").mkdir()
    with pytest.raises(ValueError, match=r"log\.csv: must not be the log itself"):
        make_ready([tmp_path / "out" / "a.json", log], log)
    for module in (train_ranker, scaling):
        monkeypatch.setattr(module, "read_requests", lambda _: pytest.fail("the log was read"))
    monkeypatch.setattr(sys, "argv", ["train_ranker.py", "--log", str(log), "--out", str(tmp_path)])
    with pytest.raises(ValueError, match=r"report\.json: must be a file, or none yet, got a folder"):
        train_ranker.main()
    (tmp_path / "log.md").mkdir()
    with pytest.raises(ValueError, match=r"log\.md: must be a file, or none yet, got a folder"):
        scaling.main(["--log", str(log), "--out", str(tmp_path)])
    assert log.read_text() == "an input"
