"""stca.data groups any log into requests: every event a target, with exactly the strictly earlier events before it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from logs import make_events

from stca.batch import RequestBatch, to_pointwise
from stca.data import RequestDataset, group, group_events, group_log, write_requests
from stca.data.convert import main


def _check(batches: list[RequestBatch], events: pa.Table, max_length: int | None) -> None:
    """Every event is once a target and sees, of the log, what it must."""
    rows = {name: events[name].to_numpy() for name in events.column_names}
    seen_items: dict[int, list[int]] = {}
    for batch in batches:
        copies = to_pointwise(batch.validate()).validate()
        bounds = copies.history_offsets.tolist()
        for t, item in enumerate(batch.targets["item_id"].tolist()):
            own = slice(bounds[t], bounds[t + 1])
            assert item not in seen_items
            seen_items[item] = copies.history["item_id"][own].tolist()
            assert batch.targets["user_id"][t] == rows["user_id"][item]
            assert batch.targets["price"][t] == rows["price"][item]
            assert batch.labels["label"][t] == rows["label"][item]
            assert batch.labels["label_like"][t] == rows["label_like"][item]
            for name in ("timestamp", "label", "label_like", "price"):
                assert copies.history[name][own].tolist() == rows[name][seen_items[item]].tolist()
    assert sorted(seen_items) == list(range(len(events)))
    for item, seen in seen_items.items():
        earlier = np.flatnonzero(
            (rows["user_id"] == rows["user_id"][item]) & (rows["timestamp"] < rows["timestamp"][item])
        )
        expected = len(earlier) if max_length is None else min(max_length, len(earlier))
        assert len(seen) == len(set(seen)) == expected
        times = rows["timestamp"][seen].tolist()
        assert times == sorted(rows["timestamp"][earlier].tolist())[len(earlier) - expected :]


@pytest.mark.parametrize("per_history", [1, 3, None])
@pytest.mark.parametrize("max_length", [0, 5, None])
@pytest.mark.parametrize("parts", [1, 4])
def test_every_event_sees_what_came_strictly_before(
    per_history: int | None, max_length: int | None, parts: int
) -> None:
    events = make_events(300, 7)
    tables = [events.slice(begin, 50) for begin in range(0, 300, 50)]
    batches = list(group_log(tables, per_history=per_history, max_length=max_length, parts=parts))
    _check(batches, events, max_length)
    histories = [int(batch.targets["user_id"][t]) for batch in batches for t in batch.target_offsets[:-1]]
    requests = sum(len(batch.requests()[0]) for batch in batches)
    if per_history is None:
        assert len(histories) == len(set(histories)) == 7
    elif per_history == 1:
        assert len(histories) == requests
    for batch in batches:
        assert per_history is None or int(batch.requests()[1].diff().max()) <= per_history


def test_batches_are_cut_by_tokens() -> None:
    events = make_events(300, 7)
    batches = list(group_events(events, per_history=2, tokens=100))
    assert len(batches) > 10
    assert all(batch.R == 1 or batch.N <= 100 for batch in batches)
    _check(batches, events, None)


def test_a_request_is_a_user_a_time_and_a_name() -> None:
    columns: dict[str, Any] = {"user_id": [1, 1, 1, 1, 2], "item_id": [0, 1, 2, 3, 4], "timestamp": [5, 5, 5, 9, 5]}
    events = pa.table(columns | {"request_id": [0, 1, 0, 2, 0], "label": [1.0, 0.0, 1.0, 1.0, 0.0]})
    [batch] = group_events(events)
    assert batch.targets["item_id"].tolist() == [0, 2, 1, 3, 4]
    assert batch.request_offsets is not None
    assert batch.request_offsets.tolist() == [0, 2, 3, 4, 5]
    assert batch.visible is not None
    assert batch.visible.tolist() == [[0, 0], [0, 0], [0, 0], [0, 3], [0, 0]]


def test_from_the_command_line_to_batches(tmp_path: Path) -> None:
    events = make_events(300, 7)
    renamed = events.rename_columns([{"user_id": "uid"}.get(name, name) for name in events.column_names])
    pq.write_table(renamed, tmp_path / "log.parquet")
    out = tmp_path / "requests.parquet"
    main([str(tmp_path / "log.parquet"), str(out), "--column", "user_id=uid", "--column", "label_like=label_like",
          "--column", "price=price", "--per-history", "4", "--max-length", "20"])  # fmt: skip
    _check(list(RequestDataset(out, budget=200)), events, 20)
    write_requests(group_log([events], per_history=4, max_length=20), tmp_path / "direct.parquet")
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "direct.parquet"))


def test_memory_is_bounded_by_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log goes through files: what Arrow holds at a time is a fraction of it."""
    monkeypatch.setattr(group, "_AT_ONCE", 10_000)
    count, pieces, held, targets = 400_000, 80, [0], 0
    before = pa.total_allocated_bytes()

    def stream() -> Iterator[pa.Table]:
        for i in range(pieces):
            yield make_events(count // pieces, 1000, seed=i)
            held.append(pa.total_allocated_bytes() - before)

    for batch in group_log(stream(), parts=40):
        held.append(pa.total_allocated_bytes() - before)
        targets += batch.T
    assert targets == count
    assert max(held) < 0.1 * count * make_events(1000, 9).nbytes / 1000
