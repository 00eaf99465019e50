"""The parts of examples/train_ranker.py: no target sees its own future, and an interrupted run goes on unchanged."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from ranker.batches import group_requests, make_batch
from ranker.generate import generate_log
from ranker.model import Ranker
from ranker.requests import Requests, make_requests, read_requests, split_by_time
from ranker.train import Config, Training, evaluate

from stca.batch import to_pointwise

CSV = "request_id,user_id,item_id,timestamp,label\n0,7,3,100,1\n0,7,4,100,0\n1,9,3,100,0\n2,7,4,100,1\n3,7,5,200,1\n"


def _requests(seed: int = 0) -> Requests:
    """Few users, many equal times: requests at one moment must not see each other."""
    rng, events = np.random.default_rng(seed), 400
    columns = {"timestamp": rng.integers(0, 60, events) * 86400}
    columns |= {"user_id": rng.integers(0, 4, events), "item_id": rng.integers(0, 30, events)}
    return make_requests(pa.table(columns | {"label": rng.integers(0, 2, events).astype(np.float32)}))


def test_a_log_is_read_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text(CSV)
    requests = read_requests(path)
    assert requests.history.tolist() == [0, 0, 0, 1]
    # Requests 0 and 2 of user 7 share a moment: neither is the other's history. Request 3 sees both.
    assert requests.seen.tolist() == [0, 0, 3, 0]
    inter = tmp_path / "log.inter"
    inter.write_text("user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t2\t4\t10\n1\t3\t3\t20\n")
    assert read_requests(inter).batch.labels["label"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CSV.replace("label", "clicked"), "column label .* is missing"),
        (CSV.replace("item_id", "item"), "column item_id .* is missing"),
        (CSV.replace(",1\n", ",2\n", 1), r"column label must be 0 or 1, got 2\.0"),
        (CSV.replace("200", "soon"), "column timestamp must be numbers"),
        (CSV.replace("0,7,3,100", "0,,3,100"), "column user_id must not have empty values, got 1"),
        (CSV.splitlines()[0] + "\n", "must hold at least one event, got none"),
    ],
)
def test_a_bad_log_names_file_and_column(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"bad.csv: {message}"):
        read_requests(path)


@pytest.mark.parametrize("per_history", [1, 5, 32])
@pytest.mark.parametrize("length", [1, 7, 1000])
def test_no_target_sees_its_own_time_or_later(per_history: int, length: int) -> None:
    requests = _requests()
    log = {name: x.numpy() for name, x in requests.batch.targets.items()} | {"label": requests.batch.labels["label"]}
    every = np.arange(len(requests.time))
    runs = group_requests(requests, every, per_history, max_span=10 * 86400)
    assert np.concatenate([np.arange(*run) for run in runs]).tolist() == every.tolist()
    assert (runs[:, 1] - runs[:, 0]).max() <= per_history
    batch = make_batch(requests, runs, length).validate()
    asked = np.repeat(requests.time[runs[:, 0]], batch.target_lengths)  # of the run's first request
    alone = to_pointwise(batch)
    for t, (begin, end) in enumerate(pairwise(alone.history_offsets.tolist())):
        seen = np.flatnonzero((log["user_id"] == log["user_id"][t]) & (log["timestamp"] < log["timestamp"][t]))[
            -length:
        ]
        for name in ("item_id", "label"):
            assert alone.history[name][begin:end].tolist() == log[name][seen].tolist()
        age = np.maximum(asked[t] - log["timestamp"][seen], 0) / 60
        assert alone.history["time_bucket"][begin:end].tolist() == np.trunc(2 * np.log2(age + 1)).tolist()


def test_counters_are_of_strictly_earlier_events() -> None:
    batch = _requests().batch
    item, time, counters = (batch.targets[name].numpy() for name in ("item_id", "timestamp", "counters"))
    for event in range(batch.T):
        before = (item == item[event]) & (time < time[event])
        count, positive = int(before.sum()), batch.labels["label"].numpy()[before].sum()
        share = 0 if count == 0 else int(1 + 20 * positive / count)
        assert counters[event, 6:].tolist() == [int(2 * np.log2(1 + count)), int(2 * np.log2(1 + positive)), share]


def test_other_forms_of_a_batch_give_the_same_logits() -> None:
    requests = _requests()
    torch.manual_seed(0)
    model = Ranker(requests.num_items, requests.num_users, dim=16).eval()
    runs = group_requests(requests, np.arange(len(requests.time)), 8)
    by_age, by_time = (make_batch(requests, runs, 50, event_time) for event_time in (False, True))
    every = by_time.expand()
    for name in ("item_id", "label"):
        assert torch.equal(every.history[name], by_age.history[name])
    assert len(by_time.history["item_id"]) < by_time.N == by_age.N
    codes = np.stack([x.numpy() for x in by_time.history.values()])
    assert np.unique(codes, axis=1).shape == codes.shape
    for batch, other in ((by_age, to_pointwise(by_age)), (by_time, every), (by_time, to_pointwise(by_time))):
        assert other.nbytes() > batch.nbytes()
        torch.testing.assert_close(model(other), model(batch), rtol=1e-4, atol=1e-4)
    # The time of a row is its own: not later than its request's.
    alone = to_pointwise(by_time)
    latest = alone.history["time_bucket"][alone.history_offsets[1:] - 1]
    seen = alone.history_offsets.diff() > 0
    assert (latest[seen] <= alone.targets["time_bucket"][seen]).all()


def test_an_interrupted_training_goes_on_unchanged(tmp_path: Path) -> None:
    requests = _requests()
    split = split_by_time(requests, 0.8, 0.2)
    config = Config(epochs=2, budget=200, max_length=100, average_length=80, min_length=8, save_every=1, patience=2)

    def start(path: Path | None) -> Training:
        torch.manual_seed(0)
        return Training(Ranker(requests.num_items, requests.num_users, dim=16), requests, split, config, path)

    undisturbed = start(None)
    undisturbed.run("undisturbed")
    path = tmp_path / "run.pt"
    interrupted = start(path)
    steps = 0
    save = interrupted._save

    def stop_in_the_second_epoch() -> None:
        nonlocal steps
        save()
        steps += interrupted.state["epoch"]
        if steps == 3:
            raise KeyboardInterrupt

    interrupted._save = stop_in_the_second_epoch  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        interrupted.run("interrupted")
    torch.manual_seed(123)
    resumed = Training(Ranker(requests.num_items, requests.num_users, dim=16), requests, split, config, path)
    assert resumed.state["epoch"] == 1
    resumed.run("resumed")
    for a, b in zip(undisturbed.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    model, longer = Ranker(requests.num_items, requests.num_users, dim=16), replace(config, epochs=9)
    narrow = Ranker(30, 4, dim=8)
    for name, net, log, how in (
        ("epochs", model, requests, longer),
        ("checksum of the log", model, _requests(1), config),
        ("parameters", narrow, requests, config),
    ):
        differs = rf"must be of .*{name} = \d+.* \(--restart forgets it\), got .*{name} = \d+"
        with pytest.raises(ValueError, match=differs):
            Training(net, log, split, how, path)
    assert 0 <= evaluate(resumed.model, requests, split.test, 50, config, "test")["auc"] <= 1


@pytest.mark.parametrize(
    ("times", "label", "message"),
    [
        (
            [100] * 30,
            0,
            r"the validation part, times in \(100.0, 100.0\], must hold events of both labels, got 0 events",
        ),
        (range(30), 1, r"the training part, times in \(-inf, .*\], must hold events of both labels, got 25 events"),
        ([100, 200, 300], 0, "the validation part"),
    ],
)
def test_a_log_that_cannot_be_split(times: list[int], label: int, message: str) -> None:
    numbers = np.arange(len(times))
    labels = (numbers % 2 if label == 0 else np.ones(len(times))).astype(np.float32)
    columns = {"user_id": 0 * numbers, "item_id": numbers, "timestamp": np.array(times), "label": labels}
    with pytest.raises(ValueError, match=f"split_by_time: {message}"):
        split_by_time(make_requests(pa.table(columns)))


def test_the_generated_log_plants_opinions() -> None:
    log = generate_log(num_users=2, requests_per_user=300, num_items=1500)
    user, item, label = (log[name].to_numpy() for name in ("user_id", "item_id", "label"))
    assert len(log) == 2 * 300 * 8
    assert 0.35 < label.mean() < 0.65
    # A user's events with one item nearly always carry one label: the last meeting tells the next.
    pairs = np.unique(user * 1500 + item, return_inverse=True)[1]
    agree = [labels.mean() for pair in range(pairs.max() + 1) if len(labels := label[pairs == pair]) >= 5]
    assert np.mean([max(share, 1 - share) for share in agree]) > 0.8
