"""Any log, in any of its forms, is read and grouped as plain Python reads and groups it."""

import bz2
import csv
import gzip
import io
import tempfile
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import brute
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stca.batch import to_pointwise
from stca.data import Names, group_log, read_events

NOW = 1_694_282_882
PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}
INTEGERS = st.sampled_from(["0", "1", "2", "-1", "10", str(2**63 - 1), str(-(2**63))])
TEXTS = st.sampled_from(
    ["1", "01", "1.0", "ann", "Ann", "a,b", 'say "x"', "two\nlines", "é", str(2**63), "+1", "0x1", "1e3"]
)
LABELS = st.sampled_from(["0", "1", "1.0", "0.0"])
NOISE = st.sampled_from(["", "x", "5", 'a "quote"', "a,b;c\td|e", "line\nbreak", "NULL", "\r\n"])
BAD = {
    "user_id": ["", "NULL", "nan", "\\N"],
    "item_id": ["", "null", "NA"],
    "timestamp": ["", "soon", "NaN"],
    "label": ["", "nan", "2", "yes", "-inf"],
    "request_id": ["", "NULL"],
}


@st.composite
def logs(draw: st.DrawFn) -> list[list[dict[str, str]]]:
    """The rows of some files, cells as text."""
    ids = {name: draw(st.sampled_from([INTEGERS, TEXTS])) for name in ("user_id", "item_id", "request_id")}
    columns = ["user_id", "item_id", "timestamp", "label", *draw(st.sampled_from([[], ["request_id"]]))]
    form = draw(st.sampled_from(["s", "ms", "us", "ns", "iso", "small"]))
    files = []
    for _ in range(draw(st.integers(1, 3))):
        rows = []
        for _ in range(draw(st.integers(0, 6))):
            second = draw(st.integers(0, 4))
            if form == "iso":
                time = datetime.fromtimestamp(NOW + second, UTC).strftime("%Y-%m-%d %H:%M:%S")
            elif form == "small":
                time = str(second - 2)
            else:
                rate = brute.UNITS[form]
                time = str((NOW + second) * rate + draw(st.integers(0, rate - 1)))
            row = {"timestamp": time, "label": draw(LABELS), "noise": draw(NOISE)}
            rows.append(row | {name: draw(ids[name]) for name in columns if name in ids})
        files.append(rows)
    if any(files) and draw(st.booleans()) and draw(st.booleans()):  # one bad cell in a quarter of the logs
        column = draw(st.sampled_from(columns))
        draw(st.sampled_from([row for rows in files for row in rows]))[column] = draw(st.sampled_from(BAD[column]))
    return files


def _write(draw: Callable[..., Any], folder: Path, number: int, rows: list[dict[str, str]], columns: list[str]) -> Path:
    if draw(st.booleans()):
        pack = draw(st.sampled_from(sorted(PACK)))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(
            text,
            columns,
            delimiter=draw(st.sampled_from(",\t;|")),
            lineterminator=draw(st.sampled_from(["\n", "\r\n"])),
            quoting=draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
        )
        writer.writeheader()
        writer.writerows(rows)
        path = folder / f"part-{number}.csv{pack}"
        path.write_bytes(PACK[pack]((draw(st.sampled_from(["", "\ufeff"])) + text.getvalue()).encode()))
        return path
    path = folder / f"part-{number}.parquet"
    arrays = {}
    for name in columns:
        values: list[Any] = [row[name] for row in rows]
        kinds = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
        if name in ("timestamp", "user_id", "item_id", "request_id") and all(map(brute.is_integer, values)):
            values, kinds = [int(value) for value in values], [pa.int64()]
        arrays[name] = pa.array(values, draw(st.sampled_from(kinds)))
    pq.write_table(pa.table(arrays), path, row_group_size=draw(st.integers(1, 9)))
    return path


def _agree(files: list[list[dict[str, str]]], draw: Callable[..., Any]) -> None:
    rows = [row for each in files for row in each]
    columns = sorted(rows[0]) if rows else ["item_id", "label", "timestamp", "user_id"]
    columns = draw(st.permutations(columns))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which unit was found
        paths = [_write(draw, Path(folder), number, each, columns) for number, each in enumerate(files)]
        expected, wrong = brute.read(paths)
        if wrong or not expected:
            messages = "|".join(wrong) or "must hold at least one event, got none"
            with pytest.raises(ValueError, match=f"(?s){messages}"):
                list(read_events(paths))
            return
        names = Names()
        tables = list(read_events(paths, names=names))
        found = pa.concat_tables(tables).to_pylist()
        spelled = {c: {number: text for text, number in known.items()} for c, known in names.known.items()}
        for row, event in zip(found, expected, strict=True):
            for column in ("user_id", "item_id"):
                assert spelled[column].get(row[column], row[column]) == event[column]
            assert row["request_id"] == event["request_id"]
            assert (row["timestamp"], row["label"]) == (event["time"], event["label"])
        _agree_on_requests(tables, found, expected)


def _agree_on_requests(tables: list[pa.Table], found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    numbered, place = [], 0
    for table in tables:  # a feature that tells the events apart
        numbered.append(table.append_column("place", pa.array(range(place, place := place + len(table)))))
    requests: dict[Any, list[int]] = {}
    for at, (request, _) in enumerate(brute.seen(expected)):
        requests.setdefault(request, []).append(at)
    got: list[list[int]] = []
    for batch in group_log(numbered, parts=3):
        single = to_pointwise(batch.validate())
        targets = batch.targets["place"].tolist()
        for t, at in enumerate(targets):
            rows = single.history["place"][single.history_offsets[t] : single.history_offsets[t + 1]].tolist()
            assert sorted(rows) == brute.seen(expected)[at][1]
            assert [found[row]["timestamp"] for row in rows] == sorted(found[row]["timestamp"] for row in rows)
        assert batch.request_offsets is not None
        got += [
            sorted(targets[a:b]) for a, b in zip(batch.request_offsets[:-1], batch.request_offsets[1:], strict=True)
        ]
    assert sorted(got) == sorted(requests.values())


@settings(max_examples=100)
@given(logs(), st.data())
def test_any_log(files: list[list[dict[str, str]]], data: st.DataObject) -> None:
    _agree(files, data.draw)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a minute and a half on an idle machine
@settings(max_examples=5000)
@given(logs(), st.data())
def test_any_log_thoroughly(files: list[list[dict[str, str]]], data: st.DataObject) -> None:
    _agree(files, data.draw)
