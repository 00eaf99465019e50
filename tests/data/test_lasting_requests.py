"""Requests with events at several times, and batches of many targets."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from logs import write

from stca.batch import RequestBatch, to_pointwise
from stca.data import RequestDataset, group_events, group_log
from stca.data.convert import main

Row = tuple[int, int, int, int, Any]  # user, item, time, label, request


def _table(rows: list[Row]) -> pa.Table:
    names = ("user_id", "item_id", "timestamp", "label", "request_id")
    return pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def _seen(batches: list[RequestBatch]) -> dict[int, list[int]]:
    found = {}
    for batch in batches:
        single = to_pointwise(batch.validate())
        for t, item in enumerate(batch.targets["item_id"].tolist()):
            found[item] = single.history["item_id"][single.history_offsets[t] : single.history_offsets[t + 1]].tolist()
    return found


def test_a_request_that_lasts_sees_what_was_before_its_first_event(tmp_path: Path) -> None:
    rows: list[Row] = [(1, 10, 100, 1, 5), (1, 11, 101, 0, 5), (1, 12, 102, 1, 5)]
    [batch] = group_events(_table(rows))
    assert batch.requests()[0].tolist() == [3]
    assert _seen([batch]) == {10: [], 11: [], 12: []}
    log = write(
        tmp_path / "log.csv",
        *(",".join(map(str, row)) for row in rows),
        header="user_id,item_id,timestamp,label,request_id\n",
    )
    main([str(log), str(tmp_path / "out.parquet")])
    assert _seen(list(RequestDataset(tmp_path / "out.parquet", budget=9))) == {10: [], 11: [], 12: []}
    with pytest.raises(ValueError, match="requests must have one time, got one of user 1 from 100 to 101"):
        main([str(log), str(tmp_path / "none.parquet"), "--lasting", "refuse"])
    assert not (tmp_path / "none.parquet").exists()


@pytest.mark.parametrize("per_history", [None, 1, 2])
@pytest.mark.parametrize("name", [int, str])
def test_requests_that_last_and_interleave(name: Any, per_history: int | None) -> None:
    # Request 5 lasts from 100 to 104; 6 lies inside of it and sees only its first event; 5 of user 2 is another.
    rows: list[Row] = [
        (1, 10, 100, 1, 5), (1, 11, 102, 0, 6), (1, 12, 104, 1, 5), (1, 13, 105, 1, 7), (1, 9, 99, 1, 4),
        (2, 20, 104, 1, 5), (2, 21, 104, 1, 6), (2, 22, 105, 1, 5),
    ]  # fmt: skip
    rows = [(*row[:4], name(row[4])) for row in rows]
    expected = {9: [], 10: [9], 12: [9], 11: [9, 10], 13: [9, 10, 11, 12], 20: [], 21: [], 22: []}
    for order in (rows, rows[::-1]):
        batches = list(group_log([_table(order[:3]), _table(order[3:])], parts=2, per_history=per_history))
        assert _seen(batches) == expected
        assert sorted(n for batch in batches for n in batch.requests()[0].tolist()) == [1, 1, 1, 1, 2, 2]


def test_one_request_id_for_everything_is_one_request_of_each_user() -> None:
    [batch] = group_events(_table([(user, 10 * user + t, t, 1, 0) for user in range(3) for t in range(4)]))
    assert batch.requests()[0].tolist() == [4, 4, 4]
    assert batch.visible is not None
    assert int(batch.visible.diff(dim=1).sum()) == 0


def test_request_ids_of_which_some_are_empty_are_refused() -> None:
    with pytest.raises(ValueError, match="column request_id must not have empty values, got 1"):
        list(group_events(_table([(1, 1, 1, 1, 3), (1, 2, 2, 1, None)])))
    [batch] = group_events(_table([(1, 1, 1, 1, None), (1, 2, 1, 1, None), (1, 3, 2, 1, None)]).cast(
        pa.schema([(n, pa.int64()) for n in ("user_id", "item_id", "timestamp", "label", "request_id")])
    ))  # fmt: skip
    assert batch.requests()[0].tolist() == [2, 1]


def test_batches_are_bounded_by_targets_too() -> None:
    count = 5000
    alone = _table([(user, user, 1, 1, 0) for user in range(count)])
    batches = list(group_events(alone, tokens=100))
    assert [batch.T for batch in batches] == [100] * 50
    large = _table([(t // 10, t, 1 + t // 5, 1, t // 5) for t in range(count)])
    assert max(batch.T + batch.N for batch in group_events(large, tokens=100)) <= 100


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": [1.0]}, "column user_id must be integers, got double"),
        ({"item_id": ["a"]}, "column item_id must be integers, got string"),
        ({"timestamp": [None]}, "column timestamp must be integers, got null"),
        ({"label": pa.array([None], pa.float32())}, "column label must not have empty values, got 1"),
        ({"price": ["9"]}, "column price must be numbers, got string"),
        ({"price": [float("nan")]}, "column price must be finite, got nan"),
        ({"label": pa.array([1], pa.decimal128(3))}, "column label must be numbers, got decimal"),
        ({"request_id": [{"a": 1}]}, "column request_id must be integers or text, got struct"),
    ],
)
def test_tables_that_are_no_events(columns: dict[str, Any], message: str) -> None:
    good = {name: np.array([1]) for name in ("user_id", "item_id", "timestamp", "label")}
    with pytest.raises(ValueError, match=f"group_events: {message}"):
        list(group_events(pa.table(good | columns)))
    for options in ({"tokens": 0}, {"per_history": 1.5}, {"per_history": 0}, {"max_length": -1}, {"lasting": "last"}):
        with pytest.raises(ValueError, match=f"group_events: {next(iter(options))} must be"):
            list(group_events(pa.table(good), **options))
    assert list(group_events(pa.table(good).slice(1))) == []
    with pytest.raises(ValueError, match="group_log: parts must be at least 1, got 0"):
        list(group_log([pa.table(good)], parts=0))
    with pytest.raises(ValueError, match="group_log: column user_id must be integers, got string"):
        list(group_log([pa.table(good | {"user_id": ["ann"]})]))
    with pytest.raises(ValueError, match="group_events: column label is missing"):
        list(group_events(pa.table({name: x for name, x in good.items() if name != "label"})))
