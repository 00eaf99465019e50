"""stca.data on files cut off, damaged or of others: the error names the file and the column at fault."""

import gc
import gzip
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from batches import make_requests
from cases import offsets

from stca.batch import RequestBatch
from stca.data import RequestDataset, read_events, write_requests
from stca.data.formats import FORMATS
from stca.data.source import column_names


def _read(path: Path) -> list[RequestBatch]:
    return list(RequestDataset(path, budget=100, shuffle=False))


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_a_file_that_is_cut_off(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "log.parquet"
    write_requests(make_requests(30), path, tokens=100)
    whole = path.read_bytes()
    dataset = RequestDataset(path, budget=100)
    path.write_bytes(whole[: int(kept * len(whole))])
    for read in (lambda: RequestDataset(path, budget=100), lambda: list(dataset)):
        with pytest.raises(ValueError, match=r"log.parquet: must be a whole Parquet file"):
            read()
    with pytest.raises(ValueError, match=r"none.parquet: must be a whole Parquet file"):
        RequestDataset(tmp_path / "none.parquet", budget=100)


def _overwrite(path: Path, row_group: int, column: int, change: Callable[[bytes], bytes]) -> str:
    """Changes the bytes of a column of a row group, and tells its name; the footer stays whole."""
    part = pq.read_metadata(path).row_group(row_group).column(column)
    begin = part.data_page_offset if part.dictionary_page_offset is None else part.dictionary_page_offset
    whole, end = path.read_bytes(), begin + part.total_compressed_size
    path.write_bytes(whole[:begin] + change(whole[begin:end]) + whole[end:])
    name: str = part.path_in_schema.split(".")[0]
    return name


def _noise(pages: bytes) -> bytes:
    return bytes(7 * i % 251 for i in range(len(pages)))


def _a_bit(pages: bytes) -> bytes:
    """The last byte is a value's, not a page header's: it would be read as another number."""
    return pages[:-1] + bytes([pages[-1] ^ 1])


@pytest.mark.parametrize("change", [_noise, _a_bit])
@pytest.mark.parametrize("column", [0, 1, 4, 7, 8])
def test_a_damaged_column(tmp_path: Path, column: int, change: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "log.parquet"
    write_requests(make_requests(30), path, tokens=200)
    name = _overwrite(path, 1, column, change)
    dataset = RequestDataset(path, budget=100, shuffle=False)
    assert next(iter(dataset)).R  # the first row group is as it was
    with pytest.raises(ValueError, match=rf"log.parquet: column {name} of row group 1 cannot be read: "):
        list(dataset)


def test_a_damaged_column_of_an_event_log(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    numbers = pa.array(range(1000))
    columns = {"user_id": numbers, "item_id": numbers, "timestamp": numbers, "label": pa.array([1] * 1000)}
    pq.write_table(pa.table(columns), path, row_group_size=250)
    _overwrite(path, 2, 1, _noise)
    with pytest.raises(ValueError, match=r"events.parquet: column item_id of row group 2 cannot be read: "):
        list(read_events(path))
    lists = pa.array([[1]] * 1000)
    for name in ("user_id", "timestamp"):
        pq.write_table(pa.table(columns | {name: lists}), path)
        with pytest.raises(ValueError, match=f"events.parquet: column {name} must be .*list"):
            list(read_events(path))


@pytest.fixture
def rewritten(tmp_path: Path) -> Callable[..., Path]:
    """A good file with other columns."""

    def rewrite(**columns: Any) -> Path:
        write_requests(make_requests(30), tmp_path / "log.parquet", tokens=100)
        table = pq.read_table(tmp_path / "log.parquet")
        for name, column in columns.items():
            table = table.drop([name])
            if column is not None:
                table = table.append_column(name, column)
        pq.write_table(table, tmp_path / "other.parquet")
        return tmp_path / "other.parquet"

    return rewrite


def test_missing_columns(tmp_path: Path, rewritten: Callable[..., Path]) -> None:
    with pytest.raises(
        ValueError, match=r"other.parquet: column request_targets is missing, so write_requests did not"
    ):
        RequestDataset(rewritten(request_targets=None), budget=100)
    with pytest.raises(ValueError, match=r"other.parquet: column target_price of .*log.parquet is missing"):
        RequestDataset([tmp_path / "log.parquet", rewritten(target_price=None)], budget=100)


def _lists(kind: Any, value: Any = 1, make: Any = pa.large_list) -> pa.Array:
    return pa.array([[value]] * 30, make(kind))


NUMBERS = "must be a list of numbers, or of lists of as many numbers each, got"
INTEGERS = "must be a list of integers, got"


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("history_item", pa.array(range(30)), f"{NUMBERS} int64"),
        ("history_item", _lists(pa.string(), "a", make=pa.list_), f"{NUMBERS} list<"),
        ("history_item", _lists(pa.string(), "a"), f"{NUMBERS} large_list<.*string>"),
        ("target_price", _lists(pa.timestamp("us")), f"{NUMBERS} large_list<.*timestamp"),
        ("history_vector", _lists(pa.list_(pa.string(), 1), ["a"]), f"{NUMBERS} large_list<.*string"),
        ("visible_end", _lists(pa.float64()), f"{INTEGERS} large_list<.*double>"),
        ("request_targets", _lists(pa.list_(pa.int64(), 1), [1]), f"{INTEGERS} large_list<.*fixed_size_list"),
        ("history_item", pa.array([None, *[[1]] * 29], pa.large_list(pa.int64())), "must not have empty values"),
        ("history_item", _lists(pa.int64()), "must have lists as long as the other history_ columns"),
        ("visible_end", _lists(pa.int64()), "must have lists as long as visible_begin"),
        ("request_targets", _lists(pa.int64(), 7), "of row group 0 must add up to the targets of every row"),
    ],
)
def test_columns_of_others(rewritten: Callable[..., Path], name: str, column: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"other.parquet: column {name} {message}"):
        _read(rewritten(**{name: column}))


def test_ranges_outside_of_the_history(tmp_path: Path, rewritten: Callable[..., Path]) -> None:
    begins = pq.read_table(rewritten())["visible_begin"].to_pylist()
    wrong = pa.array([[-1 for _ in row] for row in begins], pa.large_list(pa.int32()))
    message = r"columns visible_begin and visible_end of row group 0: .*visible\[0\] must be a range .*, got \[-1, "
    with pytest.raises(ValueError, match=f"other.parquet: {message}"):
        _read(rewritten(visible_begin=wrong))


def test_bad_writes_leave_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    write_requests(make_requests(3), path)
    before = path.read_bytes()
    half = make_requests(3).map(lambda x: x.bfloat16() if x.dtype == torch.float32 else x)
    with pytest.raises(
        ValueError, match=r"column history_vector must be .* dtype that Parquet has, got torch.bfloat16"
    ):
        write_requests(half, path)
    other = RequestBatch({}, offsets([0]), {}, offsets([1]))
    with pytest.raises(ValueError, match="write_requests: every batch must have the columns of the first"):
        write_requests([make_requests(3), other], path)
    with pytest.raises(ValueError, match="write_requests: batches must hold at least one batch, got none"):
        write_requests([], path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["log.parquet"]


def test_what_cannot_be_unpacked_leaves_no_memory(tmp_path: Path) -> None:
    """As `read` of pyarrow does, which keeps what it was to fill."""
    (path := tmp_path / "log.csv").write_bytes(gzip.compress(b"user_id,item_id\n1,2\n")[:-9] + b"damaged")

    def refused(times: int) -> int:
        for _ in range(times):
            with pytest.raises(ValueError, match=r"log\.csv"):
                column_names(path, FORMATS["generic"])
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = refused(5)
        assert refused(20) - before < 1 << 20
    finally:
        tracemalloc.stop()
