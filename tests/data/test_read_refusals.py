"""What is no log is refused by what it is, and what cannot be meant is said."""

import gzip
import os
import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from logs import HEADER, events, parquet, write

from stca.data import LogFormat
from stca.data.convert import main


def test_what_is_neither_text_nor_plain_parquet_is_named(tmp_path: Path) -> None:
    whole = parquet(tmp_path / "a.parquet", item_id=[9]).read_bytes()
    others = {
        gzip.compress(whole): "Parquet that is packed",
        b"PARE" + whole[4:]: "Parquet that is encrypted",
        b'{"user": 1}\n': "JSON",
        f"{HEADER}1,2,3,1\n".encode("utf-16-le"): "UTF-16 or bytes of 0",
    }
    for content, kind in others.items():
        (path := tmp_path / "log.csv").write_bytes(content)
        with pytest.raises(ValueError, match=rf"log.csv: must be .*, got .*{kind}"):
            events(path)
    path = write(tmp_path / os.fsdecode(b"l\xe9g.csv"), "1,2,3,1")
    with pytest.raises(ValueError, match=r"l\\xe9g.csv': must be a name in UTF-8"):
        events(path)


def test_options_of_text_are_not_dropped(tmp_path: Path) -> None:
    path, out = parquet(tmp_path / "log.parquet", item_id=[9]), tmp_path / "out.parquet"
    for option in (["--header", "a,b"], ["--delimiter", "|"], ["--encoding", "latin-1"], ["--no-quotes"]):
        with pytest.raises(ValueError, match=rf"{option[0]} must be without Parquet and clones, got no text file"):
            main([str(path), str(out), *option])
    main(
        [
            str(write(tmp_path / "log.csv", "1;2;3;1", header="user_id;item_id;timestamp;label\n")),
            str(out),
            "--delimiter",
            ";",
        ]
    )


def _unread(values: list[bytes], kind: pa.DataType) -> pa.Array:
    """Strings whose bytes nobody has looked at, as Parquet gives them."""
    wide = pa.large_binary() if kind == pa.large_string() else pa.binary()
    return pa.Array.from_buffers(kind, len(values), pa.array(values, wide).buffers())


def test_bytes_that_are_no_text_are_refused_wherever_text_must_be(tmp_path: Path) -> None:
    """Impressions, times, labels, ids and numbers: of text files, of bytes in Parquet, and of strings that are none."""
    bad = [b"N1-1 N2-0", b"N1-\xff"]
    good = {"user_id": [1, 2], "item_id": [3, 4], "timestamp": [5, 6], "label": [b"yes", b"no"]}
    columns = {"user_id": "user_id", "timestamp": "timestamp", "item_id": "seen.item", "label": "seen.label"}
    shown = LogFormat(columns, impressions="seen")
    plain = {name: name for name in good}
    cases = [
        ("seen", shown, good | {"seen": bad}, "be UTF-8"),
        ("timestamp", LogFormat(plain, time_format="%Y"), good | {"timestamp": [b"2001", b"\xff"]}, "be times like %Y"),
        ("label", LogFormat(plain, positive=("yes",)), good | {"label": [b"yes", b"\xff"]}, "be text"),
        ("label", LogFormat(plain, positive=("yes",)), good | {"label": [["yes"], ["no"]]}, "be text"),
    ]
    for kind in (pa.string(), pa.large_string()):
        text = {name: _unread(values, kind) for name, values in (("label", [b"yes", b"\xff"]), ("n", [b"1", b"\xff"]))}
        cases += [
            ("seen", shown, good | {"seen": _unread(bad, kind)}, "be UTF-8"),
            ("seen", shown, good | {"seen": _unread(bad, kind).dictionary_encode()}, "be UTF-8"),
            ("timestamp", LogFormat(plain, time_format="%Y"), good | {"timestamp": text["n"]}, "be UTF-8"),
            ("timestamp", LogFormat(plain), good | {"label": [1, 0], "timestamp": text["n"]}, "be UTF-8"),
            ("item_id", LogFormat(plain), good | {"label": [1, 0], "item_id": text["n"]}, "be UTF-8"),
            ("label", LogFormat(plain), good | {"label": text["n"]}, "be UTF-8"),
            ("label", LogFormat(plain, positive=("yes",)), good | {"label": text["label"]}, "be UTF-8"),
        ]
    for name, form, content, expected in cases:
        pq.write_table(pa.table(content), path := tmp_path / "log.parquet")
        with pytest.raises(ValueError, match=rf"log.parquet: column {name} must {expected}, got .* in row [12]"):
            events(path, form=form)
    pq.write_table(pa.table(good | {"seen": ["N1-1 N2-0", "N3-1"]}), path)
    assert [event["label"] for event in events(path, form=shown)] == [1, 0, 1]
    (path := tmp_path / "log.tsv").write_bytes(b"user_id\ttimestamp\tseen\n1\t5\tN1-1\n2\t6\tN1-\xff\n")
    with pytest.raises(ValueError, match=r"log.tsv: column seen must be UTF-8, got b'N1-\\xff' in row 2"):
        events(path, form=replace(shown, delimiter="\t"))


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (["1,2,3,1"] * 200_000 + ["1,2,3,1,4"] + ["1,2,3,1"] * 200_000, "got 5 in row 200001: 1,2,3,1,4"),
        (["1,2,3,1", "", "1,2"], "got 2 in row 2: 1,2"),
        (['1,2,3,"a\n\nb"', '1,"\n",3,4,5'], 'got 5 in row 2: 1,"\n",3,4,5'),
    ],
)
@pytest.mark.parametrize("headed", [True, False])
def test_rows_of_another_number_of_cells(tmp_path: Path, rows: list[str], told: str, headed: bool) -> None:
    path = write(tmp_path / "log.csv", *rows, header=HEADER if headed else "")
    names = HEADER.strip().split(",")
    form = LogFormat({name: name for name in names}, header=None if headed else tuple(names))
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: must have 4 cells in each row, {told}')}$"):
        events(path, form=form)


def test_impressions_are_read_as_their_parts_alone(tmp_path: Path) -> None:
    columns = {"user_id": "user_id", "timestamp": "timestamp", "item_id": "seen.item", "label": "seen.label"}
    for ours, extra in ((columns | {"label": "seen"}, {}), (columns, {"shown": "seen"})):
        with pytest.raises(ValueError, match=r"^LogFormat: columns and extra must name seen.item and .*, got seen"):
            LogFormat(ours, extra, impressions="seen")
    path = write(tmp_path / "log.csv", "1,N1-1,3,x", header="user_id,seen,timestamp,seen.item\n")
    with pytest.raises(ValueError, match=r"log.csv: column seen.item must be there once"):
        events(path, form=LogFormat(columns, impressions="seen"))
