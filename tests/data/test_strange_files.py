"""Files that a fuzzer, or a stranger, makes: each is refused by its name, and what is valid is read exactly."""

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from batches import make_requests
from logs import HEADER, events, parquet, write

from stca.data import LogFormat, Names, RequestDataset, write_requests
from stca.data.convert import main
from stca.lengths import TokenBudgetSampler

COLUMNS = {name: name for name in ("user_id", "item_id", "timestamp", "label")}


@pytest.mark.parametrize("encoding", ["punycode", "rot13", "undefined", "none"])
def test_encodings_that_no_file_has(encoding: str) -> None:
    with pytest.raises(ValueError, match=f"LogFormat: encoding must be one that Python has, got '{encoding}'"):
        LogFormat(COLUMNS, encoding=encoding)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-7", "idna", "shift_jis", "cp1252"])
def test_bytes_that_are_not_of_the_encoding(tmp_path: Path, encoding: str) -> None:
    (path := tmp_path / "log.csv").write_bytes(HEADER.encode() + b"a\x81\xf1\xff+,\x81,1,1\n")
    with pytest.raises(ValueError, match=f"^{path}: "):
        events(path, form=LogFormat(COLUMNS, encoding=encoding))


def test_archives_that_cannot_be_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "log.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("log.csv", HEADER + "7,5,100,1\n" * 99)
    whole = path.read_bytes()
    at = whole.index(b"log.csv") + len("log.csv")
    central = whole.index(b"PK\1\2")
    damaged = whole[: at + 2] + bytes(20) + whole[at + 22 :]
    encrypted = whole[:6] + b"\1" + whole[7 : central + 8] + b"\1" + whole[central + 9 :]
    unknown = whole[:8] + b"\x63" + whole[9 : central + 10] + b"\x63" + whole[central + 11 :]
    packed = gzip.compress(HEADER.encode() + b"7,5,100,1\n" * 99)
    for content in (damaged, encrypted, unknown, packed[:-12], packed[:30] + bytes(9) + packed[39:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"^{path}: must be a whole CSV or Parquet file: "):
            events(path)


def test_integers_stay_integers_where_an_integer_stands_for_an_empty_cell(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "7,5,100,1", "8,6,101,0")
    form = LogFormat(COLUMNS, nulls=("", "-1"))
    assert [(row["user_id"], row["item_id"]) for row in events(path, form=form)] == [(7, 5), (8, 6)]
    write(path, "7,5,100,1", "-1,6,101,0")
    with pytest.raises(ValueError, match="column user_id must not have empty values, got 1, the first in row 2"):
        events(path, form=form)


def _renamed(path: Path, name: str, other: bytes) -> None:
    """Puts other bytes of the same number in the place of a name, everywhere."""
    whole = path.read_bytes()
    assert whole.count(name.encode()) > 0
    path.write_bytes(whole.replace(name.encode(), other))


def test_names_of_columns_that_are_no_text(tmp_path: Path) -> None:
    log, requests = parquet(tmp_path / "log.parquet", item_id=[9]), tmp_path / "requests.parquet"
    write_requests(make_requests(3), requests)
    _renamed(log, "item_id", b"item\xff\xfed")
    _renamed(requests, "target_price", b"target_\xff\xfeice")
    with pytest.raises(ValueError, match=f"^{log}: must be a whole Parquet file: "):
        events(log)
    with pytest.raises(ValueError, match=f"^{requests}: must be a whole Parquet file: "):
        RequestDataset(requests, budget=100)


def test_a_damaged_page_of_vectors_whose_width_no_type_tells(tmp_path: Path) -> None:
    write_requests(make_requests(9), path := tmp_path / "requests.parquet")
    table = pq.read_table(path)
    columns = [pa.array(column.to_pylist()) for column in table.columns]
    pq.write_table(pa.table(columns, table.column_names), path, use_dictionary=False)
    at = table.column_names.index("history_vector")
    part = pq.read_metadata(path).row_group(0).column(at)
    whole, begin = path.read_bytes(), part.data_page_offset
    path.write_bytes(whole[:begin] + b"\xff" * 16 + whole[begin + 16 :])
    with pytest.raises(ValueError, match=f"^{path}: column history_vector of row group 0 cannot be read: "):
        RequestDataset(path, budget=100)


KEPT: list[tuple[Any, str]] = [
    (b"{", "must keep the names of its columns"),
    (b"\xff\xfe", "must keep the names of its columns"),
    (b"[" * 100_000, "must keep the names of its columns"),
    ([1], "must keep the names of its columns"),
    ({"../user_id": "x"}, "must keep the names of its columns"),
    ({"": "x"}, "must keep the names of its columns"),
    ({"user_id": 3, "item_id": None}, "must be the ids of .*, got others"),
    ({"user_id": {}, "item_id": None}, "must be the ids of .*, got others"),
]


@pytest.mark.parametrize(("kept", "message"), KEPT)
def test_what_a_log_keeps_of_its_ids(tmp_path: Path, kept: Any, message: str) -> None:
    main([str(write(tmp_path / "log.csv", "ann,5,100,1")), str(out := tmp_path / "out.parquet"), "--events"])
    assert Names.load(out).known == {"user_id": {"ann": 0}, "item_id": {}}
    table = pq.read_table(out)
    text = kept if isinstance(kept, bytes) else json.dumps(kept).encode()
    pq.write_table(table.replace_schema_metadata({"stca.log": text}), out)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/out[\w.]*: {message}"):
        Names.load(out)


def test_tables_of_ids_that_are_damaged_or_of_another_type(tmp_path: Path) -> None:
    main([str(write(tmp_path / "log.csv", "ann,5,100,1")), str(out := tmp_path / "out.parquet"), "--events"])
    table = tmp_path / "out.user_id.parquet"
    whole = table.read_bytes()
    table.write_bytes(whole[:4] + bytes(20) + whole[24:])
    with pytest.raises(ValueError, match=f"^{table}: must be the ids of {out}, got a file that is damaged"):
        Names.load(out)
    pq.write_table(pa.table({"user_id": [["ann"]]}), table)
    with pytest.raises(ValueError, match=f"^{table}: must be the ids of {out}, got a file that is damaged"):
        Names.load(out)


@pytest.mark.parametrize("place", [-1, 1.0, "1", None, True, 2**63, torch.tensor(1)])
def test_places_that_are_none(tmp_path: Path, place: Any) -> None:
    """A step of -1 would begin with an epoch's last batch."""
    write_requests(make_requests(9), path := tmp_path / "log.parquet", tokens=40)
    for it, names in (
        (TokenBudgetSampler([3, 4, 5], 5), ("epoch", "step")),
        (RequestDataset(path, 50), ("epoch", "batches")),
    ):
        for name in names:
            with pytest.raises(ValueError, match=rf"^{type(it).__name__}: the state's {name} must be an integer of at"):
                it.load_state_dict(it.state_dict() | {name: place})
