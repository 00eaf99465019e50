"""The parts of examples/train_ranker.py: no target sees its own future, and an interrupted run goes on unchanged."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ranker.batches import group_requests, make_batch
from ranker.generate import generate_log
from ranker.logs import Log, make_log, read_log, split_by_time
from ranker.measure import pointwise
from ranker.model import Ranker
from ranker.train import Config, Training, auc, evaluate

CSV = "request_id,user_id,item_id,timestamp,label\n0,7,3,100,1\n0,7,4,100,0\n1,9,3,100,0\n2,7,4,100,1\n3,7,5,200,1\n"


def _log(seed: int = 0) -> Log:
    """Few users, many equal times: requests at one moment must not see each other."""
    rng = np.random.default_rng(seed)
    events = 400
    moments = rng.integers(0, 60, events) * 86400
    return make_log(
        rng.integers(0, 4, events), rng.integers(0, 30, events), moments, rng.integers(0, 2, events).astype(np.float64)
    )


def test_a_log_is_read_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text(CSV)
    log = read_log(path)
    assert log.num_requests == 4
    assert log.request_user.tolist() == [0, 0, 0, 1]
    # Requests 0 and 2 of user 7 share a moment: neither is the other's history. Request 3 sees both.
    assert (log.history_end - log.user_begin).tolist() == [0, 0, 3, 0]
    inter = tmp_path / "log.inter"
    inter.write_text("user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t2\t4\t10\n1\t3\t3\t20\n")
    assert read_log(inter).label.tolist() == [1.0, 0.0]


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
        read_log(path)


@pytest.mark.parametrize("per_history", [1, 5, 32])
@pytest.mark.parametrize("length", [1, 7, 1000])
def test_no_target_sees_its_own_time_or_later(per_history: int, length: int) -> None:
    log = _log()
    runs = group_requests(log, np.arange(log.num_requests), per_history, max_span=10 * 86400)
    assert np.array_equal(np.concatenate(runs), np.arange(log.num_requests))
    batch = make_batch(log, runs, [length] * len(runs))
    requests = np.repeat(np.arange(log.num_requests), log.request_end - log.request_begin)
    position = 0
    for r, run in enumerate(runs):
        first = max(log.user_begin[run[0]], log.history_end[run[0]] - length)
        for _ in range(int((log.request_end[run] - log.request_begin[run]).sum())):
            begin, end = (first + batch.visible[position]).tolist()
            request = requests[position]
            mine = np.flatnonzero(
                (np.arange(len(log.time)) >= log.user_begin[request])
                & (np.arange(len(log.time)) <= log.request_end[request] - 1)
                & (log.time < log.request_time[request])
            )[-length:]
            assert list(range(begin, end)) == mine.tolist()
            position += 1
        assert batch.history_offsets[r + 1] - batch.history_offsets[r] == log.history_end[run[-1]] - first
    assert position == len(batch.label)


def test_counters_are_of_strictly_earlier_events() -> None:
    log = _log()
    for event in range(len(log.item)):
        before = (log.item == log.item[event]) & (log.time < log.time[event])
        count, positive = int(before.sum()), log.label[before].sum()
        share = 0 if count == 0 else int(1 + 20 * positive / count)
        assert log.counters[event, 6:].tolist() == [
            int(2 * np.log2(1 + count)),
            int(2 * np.log2(1 + positive)),
            share,
        ]


def test_pointwise_batches_give_the_same_logits() -> None:
    log = _log()
    torch.manual_seed(0)
    model = Ranker(log.num_items, log.num_users, dim=16).eval()
    runs = group_requests(log, np.arange(log.num_requests), 8)
    batch = make_batch(log, runs, [50] * len(runs))
    copied = pointwise(batch)
    assert copied.nbytes() > batch.nbytes()
    torch.testing.assert_close(model(copied), model(batch), rtol=1e-4, atol=1e-4)


def test_distinct_rows_give_the_same_logits() -> None:
    log = _log()
    torch.manual_seed(0)
    model = Ranker(log.num_items, log.num_users, dim=16).eval()
    runs = group_requests(log, np.arange(log.num_requests), 8)
    batch = make_batch(log, runs, [50] * len(runs), event_time=True)
    every = batch.every_row()
    assert len(batch.history_item) < len(every.history_item) == int(batch.history_offsets[-1])
    codes = np.stack([batch.history_item, batch.history_action, batch.history_time])
    assert np.unique(codes, axis=1).shape == codes.shape
    torch.testing.assert_close(model(every), model(batch), rtol=1e-4, atol=1e-4)
    by_age = make_batch(log, runs, [50] * len(runs))
    for name in ("history_item", "history_action"):
        assert torch.equal(getattr(every, name), getattr(by_age, name))
    # The time of a row is its own: not later than its request's.
    targets = torch.repeat_interleave(torch.arange(len(runs)), batch.target_offsets.diff())
    last = every.history_time[batch.history_offsets[targets] + batch.visible[:, 1] - 1]
    seen = batch.visible[:, 1] > batch.visible[:, 0]
    assert (last[seen] <= batch.time[seen]).all()


def test_an_interrupted_training_goes_on_unchanged(tmp_path: Path) -> None:
    log = _log()
    split = split_by_time(log, 0.8, 0.2)
    config = Config(epochs=2, budget=200, max_length=100, average_length=80, min_length=8, save_every=1, patience=2)

    def start(path: Path | None) -> Training:
        torch.manual_seed(0)
        return Training(Ranker(log.num_items, log.num_users, dim=16), log, split, config, path)

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
    resumed = Training(Ranker(log.num_items, log.num_users, dim=16), log, split, config, path)
    assert resumed.state["epoch"] == 1
    resumed.run("resumed")
    for a, b in zip(undisturbed.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    model, longer = Ranker(log.num_items, log.num_users, dim=16), replace(config, epochs=9)
    grown = replace(log, item=np.append(log.item, 0))
    for other in ((model, log, longer), (model, grown, config), (Ranker(30, 4, dim=8), log, config)):
        with pytest.raises(ValueError, match="must be a checkpoint of the same settings"):
            Training(other[0], other[1], split, other[2], path)
    assert 0 <= evaluate(resumed.model, log, split.test, 50, config, "test")["auc"] <= 1


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
    time = np.array(times)
    labels = np.arange(len(time)) % 2 if label == 0 else np.ones(len(time))
    log = make_log(np.zeros_like(time), np.arange(len(time)), time, labels.astype(np.float64))
    with pytest.raises(ValueError, match=f"split_by_time: {message}"):
        split_by_time(log)


def test_auc_counts_ties_half() -> None:
    label = np.array([1, 0, 1, 0], dtype=np.float32)
    assert auc(label, np.array([0.9, 0.1, 0.8, 0.2])) == 1.0
    assert auc(label, np.array([0.5, 0.5, 0.5, 0.5])) == 0.5
    assert auc(label, np.array([0.9, 0.9, 0.1, 0.1])) == 0.5
    assert np.isnan(auc(np.ones(2, dtype=np.float32), np.array([0.1, 0.2])))


def test_the_generated_log_plants_opinions() -> None:
    log = generate_log(num_users=2, requests_per_user=300, num_items=1500)
    assert len(log.item) == 2 * 300 * 8
    assert 0.35 < log.label.mean() < 0.65
    # A user's events with one item nearly always carry one label: the last meeting tells the next.
    half = len(log.item) // 2
    agree = [
        labels.mean().item()
        for user in (slice(0, half), slice(half, None))
        for item in np.unique(log.item[user])
        if len(labels := log.label[user][log.item[user] == item]) >= 5
    ]
    assert np.mean([max(share, 1 - share) for share in agree]) > 0.8
