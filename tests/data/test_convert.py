"""The command line checks before it works, and its outputs are whole or absent."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from logs import events, parquet, write

from stca.data import FORMATS, LogFormat, RequestDataset
from stca.data.convert import main

ALL = {name: name for name in ("user_id", "item_id", "timestamp", "label")}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write(
        tmp_path / "log.csv",
        "7,1,100,-5,9",
        "7,2,200,3,10",
        "8,3,300,0,9",
        header="user_id,item_id,timestamp,rating,hour\n",
    )


def _convert(log: Path, *options: str) -> Any:
    out = log.with_name("out.parquet")
    main([str(log), str(out), *options])
    [batch] = RequestDataset(out, budget=100, shuffle=False)
    return batch


@pytest.mark.parametrize("ours", ["time", "user", "item", "label_item_id", "label_label", "label_timestamp"])
def test_every_column_keeps_its_name_and_overwrites_none(log: Path, ours: str) -> None:
    plain, batch = _convert(log, "--positive", "1"), _convert(log, "--positive", "1", "--column", f"{ours}=hour")
    kinds = ("history", "targets", "labels")
    for kind in kinds:
        before, after = getattr(plain, kind), getattr(batch, kind)
        assert all(after[name].tolist() == before[name].tolist() for name in before)
    assert sum(ours in getattr(batch, kind) for kind in kinds) == 2
    known = batch.labels if ours.startswith("label") else batch.targets
    assert sorted(known[ours].tolist()) == [9, 9, 10]


def test_zero_is_a_value(log: Path) -> None:
    assert sorted(_convert(log, "--positive", "0").labels["label"].tolist()) == [0, 1, 1]
    assert sorted(_convert(log, "--positive", "-5").labels["label"].tolist()) == [1, 1, 1]
    assert _convert(log, "--max-length", "0").visible.diff(dim=1).flatten().tolist() == [0] * 3
    rows = events(log, form=LogFormat({**ALL, "label": "rating"}, positive=0))
    assert [row["label"] for row in rows] == [0, 1, 1]


def test_options_do_not_turn_detection_off(log: Path) -> None:
    batch = _convert(log, "--positive", "3", "--column", "hour=hour")
    assert sorted(batch.labels["label"].tolist()) == [0, 0, 1]
    assert sorted(batch.targets["hour"].tolist()) == [9, 9, 10]
    movielens = write(log.with_name("ratings.csv"), "1,2,3,100", header="userId,movieId,rating,timestamp\n")
    assert _convert(movielens, "--positive", "3").labels["label"].tolist() == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--column", "genre"], "--column must be OURS=THEIRS, or label=, got genre"),
        (["--column", "=hour"], "--column must be OURS=THEIRS"),
        (["--column", "hour="], "--column must be OURS=THEIRS"),
        (["--column", "hour=hour", "--column", "hour=rating"], "--column must name hour once, got hour and rating"),
        (["--column", "hour=huor"], "log.csv: column huor .*missing, got .*is it hour"),
        (["--column", "hour:colour=hour"], "the kind of hour must be one of .*, got 'colour'"),
        (["--per-history", "0"], "--per-history must be at least 1, got 0"),
        (["--max-length", "-1"], "--max-length must not be negative, got -1"),
        (["--time-unit", "hours"], "--time-unit must be one of .*, got hours"),
        (["--time-unit", "0"], "--time-unit must be"),
        (["--time-unit", "1e-310"], "--time-unit must be|per_second must be"),
        (["--encoding", "nope"], "LogFormat: encoding must be one that Python has, got 'nope'"),
        (["--positive", "nan"], "LogFormat: positive must be a number or a tuple of texts, got nan"),
        (["--positive", ""], "LogFormat: positive must be a number or a tuple of texts"),
        (["--time-format", "%Y %Z"], "LogFormat: time_format must be without %f and %Z"),
        (["--events", "--per-history", "3"], "--events must be without --per-history"),
        (["--format", "ratings", "--column", "stars=rating"], "column rating must be one of label and stars"),
        (["--column", "user_id=item_id"], "column item_id must be one of user_id and item_id"),
        (["--delimiter", "ab"], "--delimiter must be one character"),
        (["--lasting", "refuse", "--column", "request_id=hour"], "requests must have one time|already"),
    ],
)
def test_options_that_are_wrong(log: Path, options: list[str], message: str) -> None:
    if "refuse" in options:
        write(log, "7,1,100,5,9", "7,2,200,3,9", header="user_id,item_id,timestamp,rating,hour\n")
    with pytest.raises(ValueError, match=message):
        _convert(log, *options)
    assert [path.name for path in log.parent.iterdir()] == ["log.csv"]


def test_outputs_are_checked_before_the_log_is_read(log: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for out in (tmp_path / "none" / "out.parquet", tmp_path / "folder"):
        with pytest.raises(ValueError, match=str(out)):
            main([str(tmp_path / "no log"), str(out)])  # which would be the second complaint
    assert list((tmp_path / "folder").iterdir()) == []


def test_an_error_leaves_what_was_there(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.parquet"
    five = write(tmp_path / "five.csv", *(f"u{i},1,{i},1" for i in range(5)))
    main([str(five), str(out), "--events"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    bad = write(tmp_path / "bad.csv", "u9,1,1,oops")
    for options in (["--events"], []):
        with pytest.raises(ValueError, match=r"bad.csv: column label must be numbers of double, got 'oops' in row 1"):
            main([str(five), str(bad), str(out), *options])
        bad.unlink()
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        write(bad, "u9,1,1,oops")


def test_an_output_may_be_an_input(tmp_path: Path) -> None:
    path = parquet(tmp_path / "log.parquet", item_id=[5, 6])
    main([str(path), str(path), "--events"])
    assert [row["item_id"] for row in events(path)] == [5, 6]
    (tmp_path / "parts").mkdir()
    parquet(tmp_path / "parts" / "0.parquet", item_id=[7])
    with pytest.raises(ValueError, match=r"out.parquet: must not lie in .*parts, of which every file is read"):
        main([str(tmp_path / "parts"), str(tmp_path / "parts" / "out.parquet")])
    table = parquet(tmp_path / "log.user_id.parquet", item_id=[1])
    with pytest.raises(ValueError, match=r"log.user_id.parquet: must not be where the ids of"):
        main([str(table), str(path), "--events"])


def test_an_output_is_no_other_file(log: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "february.csv", "1,1,1,1")
    main([str(write(tmp_path / "names.csv", "ann,x,1,1")), str(tmp_path / "a.parquet"), "--events"])
    for out in (other, tmp_path / "a.user_id.parquet"):
        before = out.read_bytes()
        with pytest.raises(ValueError, match=f"{out.name}: must be none yet, or a log that was written here before"):
            main([str(log), str(out)])
        assert out.read_bytes() == before


def test_the_program_ends_with_a_line_and_a_status(log: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "stca.data.convert",
        str(log),
        str(log.with_name("o.parquet")),
        "--per-history",
        "0",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "stca.data.convert: --per-history must be at least 1, got 0\n"


def test_labels_by_text(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "1,1,1,view", "1,2,1,buy", "1,3,1,cart")
    path.write_text(path.read_text().replace("buy", " buy "))
    main([str(path), str(tmp_path / "out.parquet"), "--events", "--positive", "buy,cart"])
    assert pq.read_table(tmp_path / "out.parquet")["label"].to_pylist() == [0, 1, 1]
    with pytest.warns(UserWarning, match=r"column label is never one of \['Buy'\]: all labels are 0"):
        main([str(path), str(tmp_path / "out.parquet"), "--events", "--positive", "Buy"])
    with pytest.raises(ValueError, match="column label must be numbers of double, got 'view' in row 1"):
        main([str(path), str(tmp_path / "out.parquet"), "--events"])


def test_every_format_can_be_named() -> None:
    assert {"amazon-2018", "amazon-2023", "taobao", "hm", "yambda", "mind", "kuairand", "movielens"} <= set(FORMATS)
