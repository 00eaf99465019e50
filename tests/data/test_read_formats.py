"""The right thing is read, however it is laid out."""

import bz2
import gzip
import io
import lzma
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from logs import HEADER, events, parquet, write

from stca.data import FORMATS, LogFormat, Names
from stca.data.convert import main


def _items(path: Any, **options: Any) -> list[int]:
    return [row["item_id"] for row in events(path, **options)]


def test_unneeded_columns_and_late_surprises(tmp_path: Path) -> None:
    good = [f"{i},{i},{i},1," for i in range(90_000)]
    header = "user_id,item_id,timestamp,label,note\n"
    late = write(tmp_path / "late.csv", *good, "5,5,5,1,hello", header=header)
    assert _items(late) == [*range(90_000), 5]
    quoted = write(tmp_path / "quoted.csv", *good, '5,5,5,1,"two\nlines, and a ""quote"""', *good, header=header)
    assert quoted.stat().st_size > 2 << 20
    assert _items(quoted) == [*range(90_000), 5, *range(90_000)]
    wide = write(tmp_path / "wide.csv", *(f'{i},{i},{i},1,"{"y" * 300}\n{i}"' for i in range(9_000)), header=header)
    assert _items(wide) == list(range(9_000))


def test_rows_and_headers_of_megabytes(tmp_path: Path) -> None:
    lines = [f'{i},{i},{i},1,"{"y" * (5 << 20 if i == 40_000 else 9)}"' for i in range(50_000)]
    path = write(tmp_path / "long.csv", *lines, header="user_id,item_id,timestamp,label,note\n")
    assert _items(path) == list(range(50_000))
    path.write_text('"' + "y" * (2 << 20) + f'",{HEADER}1,1,2,3,1\n')
    with pytest.raises(ValueError, match=r"long.csv: must be a whole CSV or Parquet file"):
        events(path)


def test_quotes_of_recbole_are_characters(tmp_path: Path) -> None:
    path = tmp_path / "log.inter"
    path.write_text(
        'user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t"a\t5\t1\n2\tb\t5\t2\n3\tc"\t1\t3\n'
    )
    names = Names()
    assert [row["label"] for row in events(path, names=names)] == [1, 1, 0]
    assert list(names.known["item_id"]) == ['"a', "b", 'c"']


def test_logs_of_two_forms(tmp_path: Path) -> None:
    rated = write(tmp_path / "b.csv", "1,2,5,3", header="userId,movieId,rating,timestamp\n")
    with pytest.raises(ValueError, match=r"b.csv: column .* must be .* as in .*a.csv: logs of two forms"):
        events([write(tmp_path / "a.csv", "1,2,3,1"), rated])


@pytest.mark.parametrize("pack", ["gz", "bz2", "zst", "lz4", "xz", "zip"])
@pytest.mark.parametrize("named", [True, False])
def test_packed_files_by_their_bytes(tmp_path: Path, pack: str, named: bool) -> None:
    text = f"{HEADER}1,1,3,1\n".encode()
    again = b"1,2,4,1\n"
    if pack == "zip":
        with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
            archive.writestr("log.csv", text + again)
        packed = buffer.getvalue()
    elif pack in ("gz", "bz2", "xz"):  # as `cat a.gz b.gz` makes them
        compress: Any = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[pack]
        packed = compress(text) + compress(again)
    else:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, {"zst": "zstd", "lz4": "lz4"}[pack]) as stream:
            stream.write(text + again)
        packed = sink.getvalue().to_pybytes()
    path = tmp_path / ("log.csv." + pack if named else "log.csv")
    path.write_bytes(packed)
    assert _items(path) == [1, 2]
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match=r"log.csv.*must be a whole CSV or Parquet file"):
        events(path)


def test_headers(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"\xef\xbb\xbf" + f"{HEADER}1,2,3,1\r\n".replace("\n", "\r\n").encode())
    assert _items(path) == [2]
    path.write_text('"user_id","item_id","timestamp","label","a, b"\n1,2,3,1,4\n')
    assert _items(path) == [2]
    path.write_bytes(f"{HEADER}1,2,3,1\n4,5,6,0\n".replace("\n", "\r").encode())
    assert _items(path) == [2, 5]
    path.write_text("user_id;item_id;timestamp;label\n1;2;3;1\n")
    assert _items(path) == [2]
    upper = parquet(tmp_path / "LOG.PARQUET", item_id=[9])
    assert _items(upper) == [9]
    assert _items(upper.rename(tmp_path / "log.bin")) == [9]
    for text in ("user_id,user_id,item_id,timestamp,label\n1,1,2,3,1\n",):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"log.csv: column user_id must be there once"):
            events(path)
    path.write_text("1,2,3,1\n4,5,6,0\n")
    with pytest.raises(
        ValueError, match=r"user_id, item_id, timestamp, label missing.*has no header, name its columns"
    ):
        events(path)
    main([str(path), str(tmp_path / "out.parquet"), "--events", "--header", "item_id,user_id,timestamp,label"])
    assert pq.read_table(tmp_path / "out.parquet")["item_id"].to_pylist() == [1, 4]
    path.write_text("1|2|3\n")
    described = ["--header", "user_id,item_id,timestamp", "--delimiter", "|", "--column", "label="]
    main([str(path), str(tmp_path / "out.parquet"), "--events", *described])
    assert pq.read_table(tmp_path / "out.parquet")["label"].to_pylist() == [1.0]
    path.write_bytes(f"{HEADER}é,2,3,1\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"log.csv: must be UTF-8, or of the encoding that is given, got UTF-16"):
        events(path)
    main([str(path), str(tmp_path / "out.parquet"), "--events", "--encoding", "utf-16"])
    assert pq.read_table(tmp_path / "out.user_id.parquet")["user_id"].to_pylist() == ["é"]
    path.write_bytes(f"{HEADER}é,2,3,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"log.csv: column user_id must be UTF-8, got b'\\xe9' in row 1"):
        events(path)
    main([str(path), str(tmp_path / "out.parquet"), "--events", "--encoding", "latin-1"])
    assert pq.read_table(tmp_path / "out.user_id.parquet")["user_id"].to_pylist() == ["é"]


def test_an_empty_part_among_good_ones(tmp_path: Path) -> None:
    parts = [tmp_path / "a.csv", write(tmp_path / "b.csv"), write(tmp_path / "c.csv", "1,2,3,1")]
    parts[0].touch()
    parts.append(tmp_path / "e.csv.gz")
    parts[-1].write_bytes(gzip.compress(b""))
    parts.append(tmp_path / "f.csv")
    parts[-1].write_bytes(b"\xef\xbb\xbf\r\n")
    none = parquet(tmp_path / "d.parquet", item_id=pa.array([], pa.int64()))
    assert _items([*parts, none]) == [2]
    assert _items([none, *reversed(parts)]) == [2]
    with pytest.raises(ValueError, match=r"a.csv, .*b.csv: must hold at least one event, got none"):
        events(parts[:2])
    with pytest.raises(ValueError, match=r"a.csv: must have the columns of a known form of log"):
        events(parts[0])


def test_unneeded_columns_of_parquet_are_not_read(tmp_path: Path) -> None:
    path = parquet(tmp_path / "log.parquet", item_id=[1, 2], text=["long", "text"])
    whole = path.read_bytes()
    part = pq.read_metadata(path).row_group(0).column(4)
    assert part.path_in_schema == "text"
    begin = part.dictionary_page_offset or part.data_page_offset
    path.write_bytes(whole[:begin] + b"\0" * part.total_compressed_size + whole[begin + part.total_compressed_size :])
    assert _items(path) == [1, 2]


PUBLISHED = {
    "amazon-2018": ("Books.csv", "0001713353,A1C6M8LCIX4M6M,5.0,1123804800\nB00X,A1,3.0,1123804801\n"),
    "amazon-2023": (
        "Books.csv",
        "user_id,parent_asin,rating,timestamp\nA1,0001,4.0,1588615855070\nA2,1,2.0,1588615856999\n",
    ),
    "taobao": ("UserBehavior.csv", "1,2268318,2520377,pv,1511544070\n1,2333346,2520771,buy,1511561733\n"),
    "hm": (
        "transactions_train.csv",
        "t_dat,customer_id,article_id,price,sales_channel_id\n2018-09-20,000058a,0663713001,0.0508,2\n"
        "2018-09-21,1058a,663713001,0.03,1\n",
    ),
    "mind": (
        "behaviors.tsv",
        "1\tU13740\t11/11/2019 9:05:58 AM\tN55189 N42782\tN55689-1 N35729-0\n2\tU1\t11/12/2019 6:11:30 PM\t\tN5-0\n",
    ),
}
EXPECTED: dict[str, list[tuple[Any, ...]]] = {
    "amazon-2018": [("A1C6M8LCIX4M6M", "0001713353", 1123804800, 1), ("A1", "B00X", 1123804801, 0)],
    "amazon-2023": [("A1", "0001", 1588615855, 1), ("A2", "1", 1588615856, 0)],
    "taobao": [(1, 2268318, 1511544070, 0), (1, 2333346, 1511561733, 1)],
    "hm": [("000058a", "0663713001", 1537401600, 1), ("1058a", "663713001", 1537488000, 1)],
    "mind": [("U13740", "N55689", 1573463158, 1), ("U13740", "N35729", 1573463158, 0), ("U1", "N5", 1573582290, 0)],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_formats(tmp_path: Path, name: str) -> None:
    file, text = PUBLISHED[name]
    path = tmp_path / file
    path.write_text(text)
    names = Names()
    rows = events(path, form=FORMATS[name], names=names)

    def ids(column: str, number: int) -> Any:
        return {number: name for name, number in names.known[column].items()}.get(number, number)

    found = [(ids("user_id", r["user_id"]), ids("item_id", r["item_id"]), r["timestamp"], r["label"]) for r in rows]
    assert found == EXPECTED[name]
    if name != "amazon-2018":  # the one that neither its name nor a header tells
        assert events(path) == rows
    if name == "mind":
        assert [row["request_id"] for row in rows] == [1, 1, 2]


def test_yambda(tmp_path: Path) -> None:
    columns = {"uid": [10, 20], "timestamp": [15_929_455, 18_111_700], "item_id": [6_928_395, 6_417_612]}
    columns |= {"is_organic": [1, 0], "played_ratio_pct": [100, 49], "track_length_seconds": [170, 185]}
    types = {"is_organic": pa.uint8(), "played_ratio_pct": pa.uint16()}
    arrays = {name: pa.array(column, types.get(name, pa.uint32())) for name, column in columns.items()}
    pq.write_table(pa.table(arrays), tmp_path / "listens.parquet")
    rows = events(tmp_path / "listens.parquet")
    assert [(row["user_id"], row["timestamp"], row["label"]) for row in rows] == [
        (10, 15_929_455, 1),
        (20, 18_111_700, 0),
    ]
    assert [row["is_organic"] for row in rows] == [1, 0]


def test_impressions_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "behaviors.tsv"
    path.write_text("1\tU1\t11/11/2019 9:05:58 AM\t\tN1-0\n2\tU1\t11/11/2019 9:05:58 AM\t\tN1-0 N2\n")
    with pytest.raises(ValueError, match=r"column impressions must hold ITEM-LABEL in each place, got 'N2' in row 2"):
        events(path)
    path.write_text("1\tU1\t11/11/2019 9:05:58 AM\t\tN1-0\n2\tU1\tyesterday\t\tN1-0\n")
    with pytest.raises(ValueError, match=r"column time must be times like %m.*, got 'yesterday' in row 2"):
        events(path)


def test_what_no_form_can_be() -> None:
    columns = {"user_id": "u", "item_id": "i", "timestamp": "t"}
    for wrong, message in (
        ({"columns": {"user_id": "u"}}, "columns must name item_id"),
        ({"columns": columns | {"price": "p"}, "extra": {"price": "q"}}, "columns and extra must name a column once"),
        ({"columns": columns, "per_second": 0}, "per_second must be positive, 1e-6 to 1e15, got 0"),
        ({"columns": columns, "delimiter": "::"}, "delimiter must be one ASCII character that ends no line and"),
        ({"columns": columns, "delimiter": "\xe9"}, "delimiter must be .* got '\xe9'"),
        ({"columns": columns, "delimiter": "\r"}, r"delimiter must be .* got '\\r'"),
        ({"columns": columns, "delimiter": '"'}, "delimiter must be one ASCII character that ends no line and is no"),
        ({"columns": columns, "positive": "buy"}, "positive must be a number or a tuple of texts, got 'buy'"),
        ({"columns": columns, "positive": ()}, "positive must be a number or a tuple of texts|"),
        ({"columns": columns, "compression": "zip"}, "compression must be one of .*, got 'zip'"),
        ({"columns": columns, "kinds": {"user_id": "float"}}, r"the kind of user_id must be one of \['int', 'text'\]"),
    ):
        with pytest.raises(ValueError, match=f"LogFormat: {message}"):
            LogFormat(**wrong)
    assert all(form.wanted() for form in FORMATS.values())
