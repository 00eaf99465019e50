"""examples/train.py: learns, goes on exactly, is the same in two processes, and no target sees its future."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import train
from ranker.generate import generate_log
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from stca.batch import RequestBatch, bce_loss
from stca.data import RequestDataset
from stca.lengths import BetaLengths


@pytest.fixture(scope="module")
def events() -> pa.Table:
    return generate_log(num_users=20, requests_per_user=60, num_items=1100)


@pytest.fixture
def run(tmp_path: Path, events: pa.Table, threads: Callable[[int], None]) -> Callable[..., Any]:
    """Trains on the events in a folder of that name, with these options; AUC and weights."""
    pq.write_table(events, tmp_path / "log.parquet")
    threads(1)

    def run(folder: str, *options: str) -> tuple[float, dict[str, Tensor]]:
        words = ["--log", str(tmp_path / "log.parquet"), "--out", str(tmp_path / folder), "--average-length", "64"]
        auc = train.train(train.parse([*words, "--budget", "2000", "--max-length", "512", *options]))
        return auc, _weights(tmp_path / folder)

    return run


def _weights(folder: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    return weights


def test_it_learns_more_than_biases(run: Callable[..., Any], events: pa.Table) -> None:
    column = {name: torch.from_numpy(events[name].to_numpy().copy()) for name in events.column_names}
    early = column["timestamp"] <= np.quantile(column["timestamp"], 0.9)
    bias = torch.zeros(len(events))
    for name in ("user_id", "item_id"):
        ids = column[name][early]
        positive, count = (torch.bincount(ids, x, 1100) for x in (column["label"][early], None))
        bias += ((positive + 1) / (count + 2)).logit()[column[name]]
    floor = binary_auroc(bias[~early].sigmoid(), column["label"][~early].long())
    auc, _ = run("out", "--steps", "120")
    assert auc > floor + 0.03


def test_an_interrupted_run_goes_on_exactly(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    options = "--steps", "10", "--every", "4", "--batches", "2"
    auc, weights = run("undisturbed", *options)
    steps = 0

    def stop(*args: Any) -> Tensor:
        nonlocal steps
        steps += 1
        if steps == 13:  # in the midst of the seventh step
            raise KeyboardInterrupt
        return bce_loss(*args)

    monkeypatch.setattr(train, "bce_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        run("interrupted", *options)
    torch.manual_seed(123)
    again, resumed = run("interrupted", *options)
    assert steps == 13 + 12  # from the fourth step on
    assert again == auc
    for name, x in weights.items():
        assert torch.equal(resumed[name], x)
    with pytest.raises(ValueError, match=r"checkpoint.pt: must be of steps = 11 \(or .*\), got steps = 10$"):
        run("interrupted", "--steps", "11", *options[2:])


def test_two_processes_train_as_one(run: Callable[..., Any], tmp_path: Path) -> None:
    options = "--steps", "6", "--batches", "2", "--learning-rate", "1e-4"
    auc, weights = run("one", *options)
    words = ["--log", str(tmp_path / "log.parquet"), "--out", str(tmp_path / "two"), "--average-length", "64"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = ["--", train.__file__, *words, "--budget", "2000", "--max-length", "512", *options]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, *script], env=env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"AUC {auc:.3f}" in done.stderr + done.stdout
    for name, x in _weights(tmp_path / "two").items():
        torch.testing.assert_close(x, weights[name], rtol=1e-4, atol=1e-5)


def _logits(events: pa.Table, path: Path) -> dict[tuple[int, ...], float]:
    """Of every target, by user, item and time, by a model of random weights on shortened histories."""
    pq.write_table(events, path)
    requests = path.with_name("requests.parquet")
    train.write(path, requests, 512, 2000)
    torch.manual_seed(0)
    model, lengths = train.Ranker().eval(), BetaLengths(8, 512, 64)
    logits: dict[tuple[int, ...], float] = {}
    for batch in RequestDataset(requests, 2000):
        batch = train.shortened(batch, lengths, (0,))
        keys = zip(*(batch.targets[name].tolist() for name in ("user_id", "item_id", "timestamp")), strict=True)
        logits |= dict(zip(keys, model(batch).tolist(), strict=True))
    return logits


def _check_that_the_future_is_unseen(events: pa.Table, path: Path) -> None:
    """Other labels from a moment on, and other items behind it, change nothing up to that moment."""
    time, rng = events["timestamp"].to_numpy(), np.random.default_rng(0)
    now = np.median(time)
    item, label = (events[name].to_numpy().copy() for name in ("item_id", "label"))
    item[time > now] = rng.permutation(item[time > now])
    label[time >= now] = 1 - label[time >= now]
    before = _logits(events, path)
    after = _logits(
        pa.table({**{name: events[name] for name in events.column_names}, "item_id": item, "label": label}), path
    )
    past = [key for key in before if key[2] <= now]
    assert len(past) > 3000
    assert sum(after[key] != before[key] for key in past) == 0  # a count: pytest would compare the lists for minutes


def test_no_target_sees_its_future(events: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _check_that_the_future_is_unseen(events, tmp_path / "log.parquet")

    def leak(batch: RequestBatch, *_: Any) -> RequestBatch:
        return replace(batch, visible=None)

    monkeypatch.setattr(train, "shortened", leak)
    with pytest.raises(AssertionError):
        _check_that_the_future_is_unseen(events, tmp_path / "log.parquet")


def test_what_gives_a_process_nothing_is_refused(run: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"99 batches a step take as many row groups, got \d"):
        run("out", "--batches", "99")
    with pytest.raises(ValueError, match="--batches must be at least 1, one for each process, got -1"):
        run("out", "--batches", "-1")
