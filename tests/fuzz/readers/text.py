"""Logs that are text, of every dialect and packing, beside the standard library's csv.

An input is a line of JSON, options of `LogFormat`, and the file.
"""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import warnings
import zipfile
import zlib
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa

from readers import expected, refused
from readers.names import packed
from readers.values import TEXTS, changed_bytes
from stca.data import LogFormat, read_events

_NAMES = ("user_id", "item_id", "timestamp", "label")
_FULL: dict[str, list[Any]] = {
    "delimiter": [",", "\t", ";", "|", " ", '"', "\n", "é", "x"],
    "header": [None, [*_NAMES], ["user_id", "", "item_id", "timestamp", "label"]],
    "per_second": [None, 1, 1000, 0.2, 1e-6],
    "positive": [None, 1, 3.5, ["yes", "1"]],
    "nulls": [[], ["0"], ["", "x"]],
    "encoding": ["utf8", "latin-1", "utf-16", "utf-8-sig", "shift_jis", "punycode", "unicode_escape", "idna", "utf-7"],
    "quoted": [True, False],
    "compression": ["detect", "none", "gzip", "bz2", "zstd", "lz4", "brotli"],
    "time_format": [None, "%Y-%m-%d", "%d/%m/%Y %H:%M"],
    "kinds": [{}, {"user_id": "text"}, {"item_id": "int"}],
    "impressions": [None, "label"],
}
_PACKED: dict[bytes, tuple[Any, Any]] = {
    b"\x1f\x8b": (gzip.decompress, gzip.compress),
    b"BZh": (bz2.decompress, bz2.compress),
    b"\xfd7zXZ": (lzma.decompress, lzma.compress),
}


def seeds() -> dict[str, bytes]:
    """Dialects, times, labels and packings."""
    head = b"user_id,item_id,timestamp,label\n"
    rows = b"7,31,1260759144,1\n8,32,1260759145,0\n7,9,1260759150,1\n"
    quoted = b'"ann","i,1",1260759144,true\r\n"bo""b","x\ny", 1260759145 ,0.0\r\n'
    iso = b"7,31,2020-01-02 03:04:05,1\n8,32,2020-01-02T03:04:05.5Z,0\n"
    plain = b"{}\n"
    return {
        "plain": plain + head + rows,
        "quoted": plain + head + quoted,
        "zeros": plain + head + rows.replace(b"8,", b"08,").replace(b",9,", b",009,"),
        "iso": plain + head + iso,
        "bom": plain + codecs.BOM_UTF8 + b"\n" + head + rows.replace(b"\n", b"\r"),
        "tabs": b'{"delimiter": "\\t", "header": ["user_id", "", "item_id", "timestamp", "label"]}\n'
        + b"7\tx\t5\t100\t1\n",
        "positive": b'{"positive": 3.5, "per_second": 1000, "quoted": false}\n' + head + b'7,"5,100,4\n7,6,99,3\n',
        "format": b'{"time_format": "%Y-%m-%d", "kinds": {"user_id": "text"}}\n' + head + b"07,5,2020-02-29,1\n",
        "latin": b'{"encoding": "latin-1"}\n' + head + "é,5,100,1\n".encode("latin-1"),
        "gzip": plain + gzip.compress(head + rows, mtime=0),
        "bz2": plain + bz2.compress(head + rows),
        "xz": plain + lzma.compress(head + rows),
        "zip": plain + packed({"log.csv": head + rows}),
        "zstd": plain + pa.compress(head + rows, "zstd", asbytes=True),
    }


def mutate(data: bytes, rng: Random) -> bytes:
    """An option, a cell or a byte changed, or the file packed."""
    line, _, content = data.partition(b"\n")
    match rng.randrange(8):
        case 0:
            try:
                options = json.loads(line)
                name = rng.choice([*_FULL])
                options[name] = rng.choice(_FULL[name])
                line = json.dumps(options).encode()
            except (ValueError, TypeError, RecursionError):
                line = b"{}"
        case 1:
            content = changed_bytes(content, rng)
        case 2 if rng.random() < 0.2:
            content = rng.choice((gzip.compress, bz2.compress, lzma.compress, lambda x: packed({"a": x})))(content)
        case _:
            content = _cell_changed(content, rng)
    return line + b"\n" + content


def _cell_changed(content: bytes, rng: Random) -> bytes:
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    if rng.random() < 0.15:
        lines.insert(at, rng.choice((*lines, b"", b" ", b"\r")))
        return b"\n".join(lines)
    cells = lines[at].split(b",")
    place = rng.randrange(len(cells))
    if rng.random() < 0.3:  # the same number, written otherwise
        cells[place] = rng.choice((b"0%b", b"+%b", b" %b", b"%b.0", b"-%b")) % cells[place]
    else:
        numbers = str(rng.randrange(-3, 40)), "1260759144000", "2020-01-02", "1.5", "-1", "+1", "0x1F", "9" * 20
        cells[place] = rng.choice((*TEXTS, *numbers)).encode(errors="surrogatepass")
    lines[at] = b",".join(cells)
    return b"\n".join(lines)


def check(data: bytes, folder: Path) -> None:
    """Events are those that csv and plain Python make of the file, and what they cannot be is refused."""
    line, _, content = data.partition(b"\n")
    try:
        options = json.loads(line)
    except (ValueError, RecursionError):
        return
    if not isinstance(options, dict) or any(value not in _FULL.get(name, ()) for name, value in options.items()):
        return
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    try:
        form = LogFormat({name: name for name in _NAMES}, **options)
    except ValueError as error:
        return refused(error, "LogFormat: ")
    (path := folder / "log.csv").write_bytes(content)
    compare(path, form, lambda: _columns(content, form))


def compare(path: Path, form: LogFormat, columns: Any) -> None:
    """Reads a log, and holds what comes of it against what plain Python makes of `columns()`."""
    wanted: list[expected.Row] | None = None
    known = True
    try:
        if form.time_format is not None or form.kinds or form.impressions is not None:
            raise expected.UnknownError("left to others")
        wanted = expected.rows(columns(), form.nulls, form.positive, form.per_second, path.suffix == ".csv")
    except expected.RefusedError:
        pass
    except expected.UnknownError:
        known = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = pa.concat_tables(read_events(path, form)).to_pydict()
    except ValueError as error:
        refused(error, path)
        found = None
    else:
        found = list(zip(*(table[name] for name in _NAMES), strict=True))
    assert not known or found == wanted, (found, wanted)


def _columns(content: bytes, form: LogFormat) -> dict[str, list[Any]]:
    """The cells of the columns that are wanted."""
    text = _decoded(content, form).removeprefix("\ufeff")
    if text.count('"') % 2 or "\0" in text or form.delimiter in '"x':
        raise expected.UnknownError("csv and Arrow differ, or may")
    quoting: Any = csv.QUOTE_MINIMAL if form.quoted else csv.QUOTE_NONE
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=form.delimiter, quoting=quoting)
    rows = [row for row in lines if row]
    names = list(form.header or (rows.pop(0) if rows else ()))
    if any(names.count(name) != 1 for name in _NAMES) or any(len(row) != len(names) for row in rows):
        raise expected.RefusedError("columns")
    return {name: [row[names.index(name)] for row in rows] for name in _NAMES}


def _decoded(content: bytes, form: LogFormat) -> str:
    try:
        if form.compression == "detect":
            for unpack, pack in [ways for magic, ways in _PACKED.items() if content.startswith(magic)]:
                packed_as, content = content, unpack(content)
                if pack(content)[8:] != packed_as[8:]:  # what stands before is of gzip, a time
                    raise expected.UnknownError("damaged, perhaps, which Python may forgive")
        if content.startswith(
            (
                b"PK",
                b"\x28\xb5",
                b"\x04\x22",
                b"PAR",
                b"{",
                b"ORC",
                b"Obj",
                b"ARROW",
                b"SQL",
                b"\x1f\x8b",
                b"BZ",
                b"\xfd7",
            )
        ):
            raise expected.UnknownError("left to others")
        if form.encoding not in ("utf8", "latin-1") or form.compression not in ("detect", "none"):
            raise expected.UnknownError("left to others")
        return content.decode(form.encoding)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise expected.UnknownError(error) from error
