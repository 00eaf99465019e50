"""stca.data reads the logs that users have, and the history of a git clone, into events of one form."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stca.data import FORMATS, Names, detect_format, read_events, read_git
from stca.data.convert import main

RATINGS = [(7, 31, 2.5, 100), (7, 32, 4.0, 200), (9, 31, 5.0, 50)]
KUAIRAND = (  # the header as published; no two columns hold the same
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
    "0,1017,20220408,2200,1649426567999,0,0,0,1,1,1,1,10000,20000,0,0,0,0,1\n"
    "1,1018,20220408,2300,1649430000123,0,1,1,0,0,1,1,0,7000,0,0,0,0,4\n"
    "1,1019,20220408,2300,1649430000123,1,0,1,0,1,0,1,300,9000,0,0,0,0,2\n"
)


def _events(path: Path | list[Path], **options: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pa.concat_tables(read_events(path, **options)).to_pylist()
    return rows


@pytest.mark.parametrize(
    ("name", "header", "separator"),
    [
        ("ratings.csv", "userId,movieId,rating,timestamp\n", ","),
        ("ratings.dat", "", "::"),
        ("u.data", "", "\t"),
        ("any.inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float\n", "\t"),
        ("mine.csv", "user_id,item_id,rating,timestamp\n", ","),
    ],
)
def test_every_edition_of_movielens(tmp_path: Path, name: str, header: str, separator: str) -> None:
    path = tmp_path / name
    path.write_text(header + "".join(separator.join(map(str, row)) + "\n" for row in RATINGS))
    assert _events(path) == [
        {"user_id": user, "item_id": item, "timestamp": time, "label": float(rating >= 4), "request_id": None}
        for user, item, rating, time in RATINGS
    ]


def test_kuairand(tmp_path: Path) -> None:
    path = tmp_path / "log_standard_4_08_to_4_21_pure.csv"
    path.write_text(KUAIRAND)
    names, *rows = (line.split(",") for line in KUAIRAND.splitlines())
    flags = ("like", "follow", "comment", "forward", "hate")
    theirs = {"user_id": "user_id", "item_id": "video_id", "label": "is_click", "duration_ms": "duration_ms"}
    theirs |= {f"label_{flag}": f"is_{flag}" for flag in flags}
    theirs |= {"label_long_view": "long_view", "label_play_time_ms": "play_time_ms", "tab": "tab"}
    expected = []
    for row in rows:
        event = {name: int(value) for name, value in zip(names, row, strict=True)}
        own = {"timestamp": event["time_ms"] // 1000, "request_id": None}
        expected.append(own | {ours: event[name] for ours, name in theirs.items()})
    assert _events(path) == expected


def test_names_become_numbers_in_order_of_first_appearance(tmp_path: Path) -> None:
    one, two = tmp_path / "one.csv", tmp_path / "two.parquet"
    one.write_text("user_id,item_id,timestamp,label\nann,b,2020-01-01 00:00:00,1\nann,a,2020-01-01 00:01:00,0\n")
    columns: dict[str, Any] = {
        "user_id": ["bob", "ann"],
        "item_id": ["a", "c"],
        "timestamp": [1.9, 2.0],
        "label": [1, 0],
    }
    pq.write_table(pa.table(columns), two)
    names = Names()
    rows = _events([one, two], names=names)
    assert [(row["user_id"], row["item_id"]) for row in rows] == [(0, 0), (0, 1), (1, 1), (0, 2)]
    assert [row["timestamp"] for row in rows] == [1577836800, 1577836860, 1, 2]
    assert names.known == {"user_id": {"ann": 0, "bob": 1}, "item_id": {"b": 0, "a": 1, "c": 2}}
    two.write_bytes(b"")
    pq.write_table(pa.table(columns | {"user_id": [1, 2]}), two)
    with pytest.raises(
        ValueError, match=r"two.parquet: column user_id must hold names, as those read before, got int64"
    ):
        _events([one, two])
    with pytest.raises(
        ValueError, match=r"one.csv: column user_id must hold integers, as those read before, got string"
    ):
        _events([two, one])


def test_a_large_log_is_read_piece_by_piece(tmp_path: Path) -> None:
    path = tmp_path / "large.csv"
    path.write_text("user_id,item_id,timestamp,label\n" + "".join(f"{i % 9},{i},{i},1\n" for i in range(200_000)))
    tables = list(read_events(path))
    assert len(tables) > 2
    assert [row for table in tables for row in table["item_id"].to_pylist()] == list(range(200_000))
    path.write_text(path.read_text() + "1,2,soon,1\n")
    with pytest.raises(
        ValueError, match=r"large.csv: column timestamp must be numbers or .*, got 'soon' in row 200001"
    ):
        list(read_events(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (KUAIRAND.replace("is_click", "clicked"), "column is_click of a kuairand log is missing, got"),
        (KUAIRAND.replace(",4\n", ",\n").replace("1018", ""), "column video_id must not have empty values, got 1"),
        (
            "",
            r"must have the columns of a known form .*column user_id=...\): user_id, item_id, timestamp, label missing",
        ),
        ("customer,sku,when,outcome\n", "must have the columns of a known form"),
        ("user_id,item_id,when,label\n1,2,3,1\n", "column timestamp of a generic log is missing, got"),
    ],
)
def test_a_bad_log_names_file_and_column(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"bad.csv: {message}"):
        list(read_events(path))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ann and Bob commit in turn, every ten days, to their own file and to one of 12 names; once, a bulk change."""
    folder = tmp_path_factory.mktemp("clone")

    def git(*arguments: str, **environment: str) -> None:
        subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, env=os.environ | environment)

    git("init", "--quiet")
    for i in range(100):
        who = ("ann", "bob")[i % 2]
        for name in (f"{who} own.txt", f"shared/{i % 12}.txt", *(f"bulk/{j}" for j in range(5 * (i == 50)))):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(str(i))
        git("add", "--all")
        who_and_when = {
            f"GIT_{role}_{part}": value
            for role in ("AUTHOR", "COMMITTER")
            for part, value in (
                ("NAME", who),
                ("EMAIL", f"{who.title()}@example.org"),
                ("DATE", f"{1_000_000_000 + 864_000 * i} +0100"),
            )
        }
        git("commit", "--quiet", "--message", f"commit {i}\n\n\x1e is not a beginning", **who_and_when)
    return folder


def test_the_history_of_a_git_clone(clone: Path) -> None:
    names = Names()
    rows = pa.concat_tables(read_git(clone, window_days=200, max_files=5, names=names)).to_pylist()
    user, item = ({number: name for name, number in names.known[key].items()} for key in ("user_id", "item_id"))
    assert set(user.values()) == {"ann@example.org", "bob@example.org"}
    requests: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        requests.setdefault((row["timestamp"] - 1_000_000_000) // 864_000, []).append(row)
    assert sorted(requests) == [i for i in range(100) if i != 50]  # the bulk change is no request
    for i, own in requests.items():
        who, others = ("ann", "bob")[i % 2], ("bob", "ann")[i % 2]
        assert {user[row["user_id"]] for row in own} == {f"{who}@example.org"}
        assert len({row["request_id"] for row in own}) == 1
        touched = {item[row["item_id"]] for row in own if row["label"] == 1}
        assert touched == {f"{who} own.txt", f"shared/{i % 12}.txt"}
        not_touched = [item[row["item_id"]] for row in own if row["label"] == 0]
        lately = [j for j in range(max(0, i - 20), i) if j % 2 != i % 2 and j != 50]
        theirs = {f"shared/{j % 12}.txt" for j in lately} | ({f"{others} own.txt"} if lately else set())
        assert len(set(not_touched)) == len(not_touched) == min(6, len(theirs - touched))
        assert set(not_touched) <= theirs - touched
    assert pa.concat_tables(read_git(clone, window_days=200, max_files=5)).to_pylist() == rows
    assert pa.concat_tables(read_events(clone)).num_rows > len(rows)  # the bulk change is taken by default


def test_folders_that_are_no_log(tmp_path: Path, clone: Path) -> None:
    with pytest.raises(
        ValueError, match="must be a git repository with commits, at its top, or hold CSV or Parquet files"
    ):
        list(read_events(tmp_path))
    with pytest.raises(ValueError, match="must have an author of 51 commits, got 100 commits of others"):
        list(read_git(clone, min_commits=51))


def test_the_command_line_keeps_names_beside_the_log(
    tmp_path: Path, clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(clone), str(tmp_path / "log.parquet"), "--events"])
    assert "written: " in capsys.readouterr().out
    names = pq.read_table(tmp_path / "log.item_id.parquet")["item_id"].to_pylist()
    assert len(names) == 2 + 12 + 5
    again = pa.concat_tables(read_events(tmp_path / "log.parquet"))
    assert again.equals(pa.concat_tables(read_events(clone)))


def test_columns_that_are_named_are_no_other_log_s(tmp_path: Path) -> None:
    """A log of one's own was taken for the published form that lacks the fewest columns."""
    path = tmp_path / "shop.csv"
    path.write_text("user,item,ts,clicked,price\n1,2,3,1,9\n")
    forms = {
        name: replace(form, columns={**form.columns, "user_id": "user", "item_id": "item"})
        for name, form in FORMATS.items()
    }
    with pytest.raises(
        ValueError, match=r"shop.csv: must have the columns .*--column timestamp=...\): timestamp, label m"
    ):
        detect_format(path, forms)
