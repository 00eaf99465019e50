"""Ids are never merged, rounded or guessed, whatever file they come from."""

import decimal
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from logs import events, groups, parquet, write

from stca.data import Names, read_events
from stca.data.convert import main

BIG = 2**63


def _users(path: Any, **options: Any) -> list[int]:
    return [row["user_id"] for row in events(path, **options)]


def test_ids_past_int64_are_ten_users(tmp_path: Path) -> None:
    names = Names()
    path = write(tmp_path / "log.csv", *(f"{BIG + i},{i},{100 + i},1" for i in range(10)))
    assert len(set(_users(path, names=names))) == 10
    assert list(names.known["user_id"]) == [str(BIG + i) for i in range(10)]
    for kind, values in {
        "uint64": pa.array([BIG + i for i in range(10)], pa.uint64()),
        "decimal": pa.array([decimal.Decimal(BIG + i) for i in range(10)], pa.decimal128(20, 0)),
        "text": pa.array([str(BIG + i) for i in range(10)]),
        "dictionary": pa.array([str(BIG + i) for i in range(10)]).dictionary_encode(),
        "large": pa.array([str(BIG + i) for i in range(10)], pa.large_string()),
        "view": pa.array([str(BIG + i) for i in range(10)], pa.string_view()),
        "bytes": pa.array([str(BIG + i).encode() for i in range(10)], pa.binary()),
    }.items():
        names = Names()
        assert len(set(_users(parquet(tmp_path / f"{kind}.parquet", user_id=values), names=names))) == 10, kind
        assert list(names.known["user_id"]) == [str(BIG + i) for i in range(10)], kind


@pytest.mark.parametrize("kind", [pa.uint64(), pa.uint8(), pa.int16(), pa.decimal128(21, 0), pa.decimal128(21, 2)])
def test_typed_integers_are_themselves(tmp_path: Path, kind: pa.DataType) -> None:
    values = pa.array([3, 200 if kind != pa.int16() else -200, 3], pa.int64()).cast(kind)
    assert _users(parquet(tmp_path / "log.parquet", user_id=values)) == [int(each) for each in values.to_pylist()]


@pytest.mark.parametrize(
    ("values", "got"),
    [
        (pa.array([1.0, 2.0]), "double"),
        (pa.array([True, False]), "bool"),
        (pa.array([[1], [2]]), "list"),
        (pa.array([1, 2], pa.timestamp("s")), "timestamp"),
        (pa.array([decimal.Decimal("1.5"), decimal.Decimal("2.5")]), "Decimal.*row 1"),
    ],
)
def test_what_no_id_can_be_is_refused(tmp_path: Path, values: pa.Array, got: str) -> None:
    with pytest.raises(ValueError, match=f"log.parquet: column user_id must be integers or text, got .*{got}"):
        events(parquet(tmp_path / "log.parquet", user_id=values))


@pytest.mark.parametrize("blank", ["", '""', "NULL", "null", "NaN", "nan", "NA", "None", "\\N", " "])
@pytest.mark.parametrize("others", [("ann", "bob"), ("1", "2"), ("01", "2.0")])
def test_blank_ids_are_refused_alike(tmp_path: Path, blank: str, others: tuple[str, str]) -> None:
    path = write(tmp_path / "log.csv", f"{others[0]},i1,100,1", f"{blank},i2,101,0", f"{others[1]},i3,102,1")
    with pytest.raises(
        ValueError, match=r"log.csv: column user_id must not have empty values, got 1, the first in row 2"
    ):
        events(path)


def test_blank_ids_of_parquet_are_refused_alike(tmp_path: Path) -> None:
    texts = ["", "  ", "\u00a0", "\u3000", "nan", "None", "<NA>", "NaT", "NULL"]
    for values in (*(["ann", text] for text in (None, *texts)), [1, None], [b"a", b""], [b"a", b"  "], [None, 1.0]):
        with pytest.raises(ValueError, match="column user_id must"):
            events(parquet(tmp_path / "log.parquet", user_id=values))


def test_text_stays_text_wherever_it_turns_up(tmp_path: Path) -> None:
    ids = ["01", "1", "1.0", "+1", "0x1", "1e0", "-0", "0", " 1", "\uff11", "1 "]
    assert len(set(_users(write(tmp_path / "log.csv", *(f"{each},1,1,1" for each in ids))))) == len(ids)
    for last in ("B00X", "007", "1.5", str(BIG)):  # long after the first megabyte
        many = [*(str(i) for i in range(90_000)), last]
        assert len(set(_users(write(tmp_path / "long.csv", *(f"{each},1,1,1" for each in many))))) == len(many)
    parts = [write(tmp_path / "a.csv", "1,1,1,1", "2,1,2,1"), write(tmp_path / "b.csv", "2,1,3,1", "x,1,4,1")]
    assert groups(_users(parts)) == [0, 1, 1, 3]


def test_integers_of_text_are_themselves(tmp_path: Path) -> None:
    ids = [0, -1, 17, 2**63 - 1, -(2**63), 10, 100, -10]
    assert _users(write(tmp_path / "log.csv", *(f"{each},1,1,1" for each in ids))) == ids
    assert _users(write(tmp_path / "quoted.csv", *(f'"{each}",1,1,1' for each in ids))) == ids


def test_uuids_and_bytes(tmp_path: Path) -> None:
    each = [uuid.UUID(int=i << 64) for i in range(3)]
    column = pa.array([x.bytes for x in each], pa.uuid())
    names = Names()
    assert _users(parquet(tmp_path / "uuid.parquet", user_id=column), names=names) == [0, 1, 2]
    assert list(names.known["user_id"]) == [str(x) for x in each]
    raw = pa.array([x.bytes for x in each], pa.binary(16))
    assert _users(parquet(tmp_path / "raw.parquet", user_id=raw)) == [0, 1, 2]
    either = pa.array([b"\xff", b"ff", "ÿ".encode()], pa.binary())
    assert _users(parquet(tmp_path / "either.parquet", user_id=either)) == [0, 1, 2]


def test_a_later_run_keeps_the_numbers_of_an_earlier(tmp_path: Path) -> None:
    one = write(tmp_path / "one.csv", "ann,x,1,1", "bob,y,2,1")
    two = write(tmp_path / "two.csv", "bob,y,1,1", "ann,z,2,1", "cid,x,3,1")
    main([str(one), str(tmp_path / "train.parquet"), "--events"])
    main([str(two), str(tmp_path / "test.parquet"), "--events", "--ids", str(tmp_path / "train.parquet")])
    test = pq.read_table(tmp_path / "test.parquet")
    assert test["user_id"].to_pylist() == [1, 0, 2]
    assert test["item_id"].to_pylist() == [1, 2, 0]
    table = pq.read_table(tmp_path / "test.user_id.parquet")
    assert table.to_pydict() == {"user_id": ["ann", "bob", "cid"], "number": [0, 1, 2]}
    integers = write(tmp_path / "integers.csv", "1,x,1,1")
    main([str(integers), str(tmp_path / "i.parquet"), "--events", "--ids", str(tmp_path / "train.parquet")])
    assert pq.read_table(tmp_path / "i.user_id.parquet")["user_id"].to_pylist() == ["ann", "bob", "1"]


def test_ids_of_an_earlier_run_must_be_its_own(tmp_path: Path) -> None:
    def convert(log: Path, *options: str) -> None:
        main([str(log), str(tmp_path / "test.parquet"), "--events", *options])

    train, ids = tmp_path / "train.parquet", ["--ids", str(tmp_path / "train.parquet")]
    main([str(write(tmp_path / "a.csv", "0,a,1,1", "1,b,2,1")), str(train)])
    with pytest.raises(ValueError, match=r"b.csv: column user_id must hold integers, as those read before, got string"):
        convert(write(tmp_path / "b.csv", "zoe,a,1,1", "1,c,2,1"), *ids)
    convert(write(tmp_path / "b.csv", "7,b,1,1"), *ids)
    assert pq.read_table(tmp_path / "test.parquet")["item_id"].to_pylist() == [1]
    table = tmp_path / "train.item_id.parquet"
    whole = table.read_bytes()
    for change in (lambda: table.write_bytes(whole[:50]), lambda: table.unlink()):
        change()
        with pytest.raises(ValueError, match=r"train.item_id.parquet: must be a whole Parquet file"):
            convert(tmp_path / "b.csv", *ids)
    mark = pq.read_schema(pa.BufferReader(whole)).metadata
    for names in (["b", "a"], ["a"], ["a", None], ["a", "a"]):  # of another run, say
        column = pa.table({"item_id": pa.array(names, pa.string()), "number": range(len(names))})
        pq.write_table(column.replace_schema_metadata(mark), table)
        with pytest.raises(
            ValueError, match=r"train.item_id.parquet: must be the ids of .*train.parquet, as they were"
        ):
            convert(tmp_path / "b.csv", *ids)
    plain = parquet(tmp_path / "plain.parquet", item_id=[1])
    with pytest.raises(ValueError, match=r"plain.parquet: must be a log that stca.data.convert wrote"):
        convert(tmp_path / "b.csv", "--ids", str(plain))
    main([str(write(tmp_path / "c.csv", "1,1,1,1")), str(train), "--events"])  # integers alone: no table at all
    convert(write(tmp_path / "d.csv", "1,1,1,1"), *ids)
    with pytest.raises(ValueError, match="column item_id must hold integers, as those read before"):
        convert(write(tmp_path / "d.csv", "1,x,1,1"), *ids)


def test_tables_of_ids_lie_beside_their_own_output(tmp_path: Path) -> None:
    for i, name in enumerate(("day.1", "day.2", "day.1.parquet")):
        main([str(write(tmp_path / "log.csv", f"user{i},i,1,1")), str(tmp_path / name), "--events"])
    found = {path.name: pq.read_table(path)["user_id"].to_pylist() for path in tmp_path.glob("*user_id*")}
    assert sorted(found.values()) == [["user0"], ["user1"], ["user2"]]
    main([str(write(tmp_path / "log.csv", "1,i,1,1")), str(tmp_path / "day.1"), "--events"])  # integers now
    assert len(list(tmp_path.glob("*user_id*"))) == 2
    (tmp_path / "own.user_id.parquet").write_text("something of the user's")
    main([str(write(tmp_path / "log.csv", "ann,i,1,1")), str(tmp_path / "day.parquet"), "--events"])
    with pytest.raises(ValueError, match=r"day.user_id.parquet: must be free for the ids of .*day.PARQUET"):
        main([str(tmp_path / "log.csv"), str(tmp_path / "day.PARQUET"), "--events"])
    with pytest.raises(ValueError, match=r"own.user_id.parquet: must be free for the ids of"):
        main([str(write(tmp_path / "log.csv", "ann,i,1,1")), str(tmp_path / "own.parquet"), "--events"])
    assert (tmp_path / "own.user_id.parquet").read_text() == "something of the user's"
    assert not (tmp_path / "own.parquet").exists()


def test_request_ids_of_text_take_no_memory_that_grows(tmp_path: Path) -> None:
    path = write(
        tmp_path / "log.csv",
        *(f"{i % 7},1,{i},1,{uuid.UUID(int=i)}" for i in range(100)),
        header="user_id,item_id,timestamp,label,request_id\n",
    )
    names = Names()
    [table] = read_events(path, names=names)
    assert table["request_id"].to_pylist() == [str(uuid.UUID(int=i)) for i in range(100)]
    assert "request_id" not in names.known
    for values in (pa.array([uuid.UUID(int=i).bytes for i in range(3)], pa.uuid()), ["a", "b", "a"], [5, 6, 5]):
        [table] = read_events(parquet(tmp_path / "log.parquet", request_id=values))
        assert len(set(table["request_id"].to_pylist())) == len({str(each) for each in values})


def test_files_that_do_not_agree_on_what_an_id_is(tmp_path: Path) -> None:
    small, large = pa.array([1, 2], pa.uint64()), pa.array([2, BIG], pa.uint64())
    both = [parquet(tmp_path / f"{len(each)}{each[1]}.parquet", user_id=each) for each in (small, large)]
    for order in (both, both[::-1]):
        assert len(set(_users(order))) == 3
    typed = parquet(tmp_path / "typed.parquet", user_id=[1, 2])
    text = parquet(tmp_path / "text.parquet", user_id=["1", "2"])
    digits = write(tmp_path / "digits.csv", "2,1,1,1", "1,1,1,1")
    assert _users([typed, digits]) == [1, 2, 2, 1]
    assert groups(_users([digits, text])) == [0, 1, 1, 0]
    with pytest.raises(ValueError, match=r"text.parquet: column user_id must hold integers, as those read before"):
        events([typed, text])
    with pytest.raises(ValueError, match=r"typed.parquet: column user_id must hold names, as those read before"):
        events([digits, text, typed])
