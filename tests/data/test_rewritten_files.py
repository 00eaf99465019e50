"""Files of request-level batches that other libraries wrote again: taken right, or refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from accuracy import assert_bitwise_equal
from batches import make_requests

from stca.data import RequestDataset, write_requests


def _same_batches(path: Path, other: Path) -> None:
    pairs = zip(*(RequestDataset(each, budget=100) for each in (path, other)), strict=True)
    for expected, got in pairs:
        assert_bitwise_equal(got.tensors(), expected.tensors())


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_requests(make_requests(40), tmp_path / "log.parquet", tokens=200)
    return tmp_path / "log.parquet"


LISTS: dict[str, Callable[[Any], Any]] = {
    "list": pa.list_,
    "large_list": pa.large_list,
    "list_view": pa.list_view,
    "large_list_view": pa.large_list_view,
    "other child": lambda value: pa.list_(pa.field("array", value, nullable=False)),
}


@pytest.mark.parametrize(("outer", "inner"), [*zip(LISTS, LISTS, strict=True), ("list", "large_list_view")])
def test_lists_of_other_kinds(written: Path, tmp_path: Path, outer: str, inner: str) -> None:
    table, columns = pq.read_table(written), {}
    for name in table.column_names:
        value = table.schema.field(name).type.value_type
        kind = LISTS[outer](LISTS[inner](value.value_type) if name == "history_vector" else value)
        columns[name] = pa.array(table[name].to_pylist(), kind)
    sizes = [pq.read_metadata(written).row_group(i).num_rows for i in range(pq.read_metadata(written).num_row_groups)]
    with pq.ParquetWriter(tmp_path / "other.parquet", pa.table(columns).schema) as writer:
        for begin, rows in zip(np.cumsum([0, *sizes]), sizes, strict=False):
            writer.write_table(pa.table(columns).slice(begin, rows))  # the lists' offsets do not begin at 0
    _same_batches(written, tmp_path / "other.parquet")
    both = RequestDataset([written, tmp_path / "other.parquet"], budget=100)
    assert sum(batch.N for batch in both) == 2 * make_requests(40).N


def test_rows_of_one_length_and_histories_of_none(tmp_path: Path) -> None:
    numbers = {"visible_begin": 0, "visible_end": 0, "request_targets": 1, "target_item": 7}
    ones = {name: pa.array([[number]] * 3, pa.list_(pa.int64(), 1)) for name, number in numbers.items()}
    vectors = pa.array([[], [], []], pa.list_(pa.list_(pa.float32())))
    pq.write_table(pa.table(ones | {"history_vector": vectors}), tmp_path / "none.parquet")
    [batch] = RequestDataset(tmp_path / "none.parquet", budget=9)
    assert (batch.R, batch.N, batch.T, list(batch.history["vector"].shape)) == (3, 0, 3, [0, 0])
    some = pa.array([[], [], [[1.0, 2.0]]], pa.list_(pa.list_(pa.float32())))
    pq.write_table(pa.table(ones | {"history_vector": some}), tmp_path / "some.parquet", row_group_size=1)
    batches = list(RequestDataset([tmp_path / f"{name}.parquet" for name in ("none", "some")], budget=9))
    assert {x.shape[1] for x in (batch.history["vector"] for batch in batches)} == {2}


NULL, LIST, INT = "must not have empty values, got one in", pa.list_, pa.int8()
REFUSED = "must be a list of numbers, .* got .*"


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([[1.0], None, [2.0]], LIST(pa.float32())), f"{NULL} row 1"),
        (pa.array([[1.0], [], [2.0, None]], LIST(pa.float32())), f"{NULL} row 2"),
        (pa.array([[[1]], [], [None]], LIST(LIST(INT))), f"{NULL} row 2"),
        (pa.array([[[1]], [], [[None]]], LIST(LIST(INT))), f"{NULL} row 2"),
        (pa.array([[[1, 2]], [], [[3, None]]], LIST(LIST(INT, 2))), f"{NULL} row 2"),
        (pa.array([[], [[1, 2]], [[3]]], LIST(LIST(INT))), r"must hold vectors of 2 .*, got one of 1 in row 2"),
        (pa.array([[1], [2], [3]], LIST(pa.decimal128(5, 2))), f"{REFUSED}decimal"),
        (pa.array([["a"], [], []], LIST(pa.string())), f"{REFUSED}string"),
        (pa.ListArray.from_arrays([0, 1, 1, 1], pa.array(["a"]).dictionary_encode()), f"{REFUSED}dictionary"),
        (pa.array([[], [], []], LIST(pa.null())), f"{REFUSED}null"),
        (pa.array([1, 2, 3]), f"{REFUSED}int64"),
    ],
)
def test_what_is_no_number_is_refused(tmp_path: Path, column: pa.Array, message: str) -> None:
    path = tmp_path / "log.parquet"
    lengths = [len(rows) if isinstance(rows, list) else 0 for rows in column.to_pylist()]
    columns = {"visible_begin": [[0]] * 3, "visible_end": [[n] for n in lengths], "request_targets": [[1]] * 3}
    pq.write_table(pa.table({**columns, "history_x": column}), path)
    place = "" if "must be a list" in message else " of row group 0$"
    with pytest.raises(ValueError, match=f"^{path}: column history_x {message}.*{place}"):
        list(RequestDataset(path, budget=9))


def test_files_that_differ_are_both_named(written: Path, tmp_path: Path) -> None:
    table, other = pq.read_table(written), tmp_path / "other.parquet"
    column = table["history_vector"].to_pylist()
    wide = [[[*vector, 0.0] for vector in rows] for rows in column]
    lists, first = pa.list_, f"as in {written}, got"
    for changed, message in (
        (table.drop(["label_click"]), f"^{other}: column label_click of {written} is missing"),
        (table.append_column("target_new", table["target_item"]), f"^{written}: column target_new of {other} is miss"),
        (_with(table, "target_price", pa.large_list(pa.float32())), f"double> {first} large_list<.*float>"),
        (_with(table, "history_vector", lists(lists(pa.float32(), 4)), wide), rf"\[3\]> {first} list<.*\[4\]>"),
        (_with(table, "history_vector", lists(lists(pa.float32())), wide), f"3 numbers, {first} one of 4"),
        (_with(table, "history_item", lists(lists(pa.int64()))), f"int64> {first} list<.*list<"),
    ):
        pq.write_table(changed, other)
        with pytest.raises(ValueError, match=message) as refused:
            list(RequestDataset([written, other], budget=100))
        assert str(other) in str(refused.value)
    names = [*table.column_names, "label_click"]
    pq.write_table(pa.Table.from_arrays([*table.columns, table["label_click"]], names), other)
    with pytest.raises(ValueError, match=f"^{other}: column label_click must be there once, got 2 of that name"):
        RequestDataset(other, budget=100)


def _with(table: pa.Table, name: str, kind: pa.DataType, values: Any = None) -> pa.Table:
    values = table[name].to_pylist() if values is None else values
    if name == "history_item":
        values = [[[item] for item in row] for row in values]
    return table.drop([name]).append_column(name, pa.array(values, kind))


@pytest.mark.peers
def test_written_again_by_duckdb(written: Path, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    duckdb.sql(f"copy (select * from '{written}') to '{tmp_path / 'other.parquet'}' (format parquet)")
    assert sum(batch.N for batch in RequestDataset(tmp_path / "other.parquet", budget=100)) == make_requests(40).N
    write_requests(make_requests(40), written)
    _same_batches(written, tmp_path / "other.parquet")


@pytest.mark.peers
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_written_again_by_frames(written: Path, tmp_path: Path, library: str) -> None:
    module = pytest.importorskip(library)
    frame = module.read_parquet(written)
    (frame.write_parquet if library == "polars" else frame.to_parquet)(tmp_path / "other.parquet")
    write_requests(make_requests(40), written)
    _same_batches(written, tmp_path / "other.parquet")
