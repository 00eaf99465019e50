"""A file of an event log: told by its first bytes, and read a piece at a time."""

import codecs
import csv
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from stca.data.cells import stored
from stca.data.formats import FORMATS, LogFormat
from stca.data.piece import Piece, converted
from stca.data.read import UNREADABLE, broken_part, open_file

_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
_OTHERS = {
    b"PAR1": "Parquet that is packed",
    b"PARE": "Parquet that is encrypted",
    b"ORC": "ORC",
    b"Obj\x01": "Avro",
    b"ARROW1": "Arrow's own format",
    b"SQLite": "a database",
    b"{": "JSON",
}
# What unpacking and decoding raise; RuntimeError: a zip that is encrypted, or packed in a way that is not known here.
_BROKEN = zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, UnicodeError, RuntimeError
_HEAD = 1 << 20  # bytes in which a header must end
_BLOCKS = 1 << 20, 1 << 28  # bytes of a piece; the second where a row does not fit into the first
_SMALL = 1 << 10  # bytes of a file that may be nothing but its packing


def is_parquet(path: Path) -> bool:
    """Whether a file begins as Parquet does, whatever its name; a name that says so must be right."""
    with path.open("rb") as file:
        begin = file.read(4)
    return begin == b"PAR1" or path.suffix.lower() == ".parquet"


def is_empty(path: Path) -> bool:
    """Whether a file holds nothing, packed or not, or is Parquet without a row, whose types then say nothing."""
    if path.stat().st_size and is_parquet(path):
        with open_file(path) as file:
            return bool(file.metadata.num_rows == 0)
    if path.stat().st_size > _SMALL:
        return False
    with opened(path, FORMATS["generic"]) as stream:
        return not _begin_of(stream, _SMALL).removeprefix(b"\xef\xbb\xbf").strip()


def column_names(path: Path, form: LogFormat) -> list[str]:
    """The columns of a file, those that a packed cell holds included.

    Raises:
        ValueError: a file that cannot be read, or two columns of one name that the format asks for.
    """
    if is_parquet(path):
        with open_file(path) as file:
            names = list(file.schema_arrow.names)
    else:
        names = list(form.header or _header(path, form))
    if form.impressions in names:
        names += [f"{form.impressions}.item", f"{form.impressions}.label"]
    for name in form.wanted():
        if names.count(name) > 1:
            raise ValueError(f"{path}: column {name} must be there once, got {names}")
    return names


def _header(path: Path, form: LogFormat) -> list[str]:
    with opened(path, form) as stream:
        head = _begin_of(stream, _HEAD)
        text = head.decode(form.encoding, errors="replace").removeprefix("\ufeff").lstrip("\r\n")
    for begin, kind in _OTHERS.items():
        if head.startswith(begin):
            raise ValueError(f"{path}: must be text, packed or not, or Parquet as it is, got {kind}")
    if codecs.lookup(form.encoding).name == "utf-8" and (head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head):
        raise ValueError(f"{path}: must be UTF-8, or of the encoding that is given, got UTF-16 or bytes of 0")
    lines = csv.reader(
        io.StringIO(text, newline=None),
        delimiter=form.delimiter,
        quoting=csv.QUOTE_MINIMAL if form.quoted else csv.QUOTE_NONE,
    )
    try:
        return next(lines, [])
    except csv.Error as error:
        raise unreadable(path, error) from error


def _begin_of(stream: Any, size: int) -> bytes:
    """The first bytes of a stream, at most so many. Where pyarrow's `read` fails, it keeps what it was to fill."""
    begin = bytearray(size)
    return bytes(memoryview(begin)[: stream.readinto(begin)])


@contextmanager
def opened(path: Path, form: LogFormat) -> Iterator[Any]:
    """The bytes of a text file, unpacked: as the format says, or as its first bytes do.

    Raises:
        ValueError: what cannot be unpacked.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(6)
        if begin.startswith(b"\xfd7zXZ") and form.compression == "detect":
            with lzma.open(path) as file:
                yield pa.PythonFile(file, mode="r")
            return
        if begin.startswith(b"PK\x03\x04") and form.compression == "detect":
            with zipfile.ZipFile(path) as archive, archive.open(_only_member(path, archive)) as member:
                yield pa.PythonFile(member, mode="r")
            return
        packed = form.compression
        if packed == "detect":
            packed = next((name for magic, name in _PACKED.items() if begin.startswith(magic)), "none")
        with pa.input_stream(str(path), compression=None if packed == "none" else packed) as stream:
            yield stream
    except (*UNREADABLE, *_BROKEN) as error:
        raise unreadable(path, error) from error


def _only_member(path: Path, archive: zipfile.ZipFile) -> str:
    members = [each.filename for each in archive.infolist() if not each.is_dir()]
    if len(members) != 1:
        raise ValueError(f"{path}: must hold one file to be read packed, got {members}")
    return members[0]


def pieces(path: Path, form: LogFormat, wanted: Sequence[str], integers: Collection[str] = ()) -> Iterator[Piece]:
    """The wanted columns of a file: typed where it is Parquet, as bytes of text where it is not.

    Args:
        path: the file.
        form: how it is laid out.
        wanted: columns.
        integers: those of a text file that are known to hold integers alone, which are int64 then.

    Raises:
        ValueError: a file that cannot be read.
    """
    kept = sorted({form.impressions or "" if _in_cell(name, form) else name for name in wanted})
    row = 1
    text = not is_parquet(path)
    known = {name: pa.int64() if name in integers else pa.binary() for name in kept}
    for table in _of_text(path, form, known) if text else _of_parquet(path, kept):
        if len(table):
            piece = Piece(path, table, row, text)
            yield _unpacked(piece, form.impressions) if form.impressions in kept else piece
            row += len(table)


def _in_cell(name: str, form: LogFormat) -> bool:
    return form.impressions is not None and name in (f"{form.impressions}.item", f"{form.impressions}.label")


def _of_parquet(path: Path, wanted: list[str]) -> Iterator[pa.Table]:
    with open_file(path) as file:
        try:
            yield from map(pa.table, file.iter_batches(columns=wanted))
        except UNREADABLE as error:
            part = broken_part(file, range(file.num_row_groups), wanted)
            raise ValueError(f"{path}: {part} cannot be read: {error}") from error


def _of_text(path: Path, form: LogFormat, types: dict[str, pa.DataType]) -> Iterator[pa.Table]:
    done = 0
    for size in _BLOCKS:
        try:
            left = done
            for table in _blocks(path, form, types, size):
                if left < len(table):
                    done += len(table) - left
                    yield table.slice(left)
                left = max(0, left - len(table))
            return
        except ValueError as error:
            if "Expected" in str(error):
                _refuse_row(path, form, types, size)
            if "straddling" not in str(error) or size == _BLOCKS[-1]:
                raise


def _refuse_row(path: Path, form: LogFormat, types: dict[str, pa.DataType], size: int) -> None:
    """Reads a file again, by one thread, up to the first row with too many cells or too few: only so is it counted."""
    try:
        for _ in _blocks(path, form, types, size, threads=False):
            pass
    except ValueError as error:
        if found := re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+): (.*)", str(error), re.DOTALL):
            row, expected, got, text = found.groups()
            place = f"row {int(row) - (form.header is None)}: {text}"
            raise ValueError(f"{path}: must have {expected} cells in each row, got {got} in {place}") from error


def _blocks(
    path: Path, form: LogFormat, types: dict[str, pa.DataType], size: int, threads: bool = True
) -> Iterator[pa.Table]:
    # Types are given: one that Arrow finds in the first megabyte would not fit what comes later.
    with opened(path, form) as stream:
        yield from map(
            pa.table,
            pyarrow.csv.open_csv(
                stream,
                read_options=pyarrow.csv.ReadOptions(
                    column_names=form.header and [name or f"empty{i}" for i, name in enumerate(form.header)],
                    encoding=form.encoding,
                    block_size=size,
                    use_threads=threads,
                ),
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=form.delimiter, quote_char='"' if form.quoted else False, newlines_in_values=form.quoted
                ),
                convert_options=pyarrow.csv.ConvertOptions(include_columns=list(types), column_types=types),
            ),
        )


def _unpacked(piece: Piece, column: str) -> Piece:
    """A row for each of the impressions in a cell, `N1-0 N2-1`: what was shown, and what came of it."""
    cells = converted(piece, column, stored(piece, column), pa.string(), "be UTF-8")
    shown = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(cells))
    rows = pc.list_parent_indices(shown).to_numpy()
    each = pc.list_flatten(shown)
    parts = pc.split_pattern(each, "-", max_splits=1, reverse=True)
    if (at := pc.index(pc.equal(pc.list_value_length(parts), 2), False).as_py()) >= 0:
        raise replace(piece, rows=rows).error(column, "hold ITEM-LABEL in each place", at, each[at].as_py())
    table, kind = piece.table.drop_columns([column]).take(pa.array(rows)), pa.binary() if piece.text else pa.string()
    for name, place in (("item", 0), ("label", 1)):
        table = table.append_column(f"{column}.{name}", pc.list_element(parts, place).cast(kind))
    return replace(piece, table=table, rows=rows)


def unreadable(path: Path, error: Exception) -> ValueError:
    """What to raise for a file that is broken, cut off or of another kind."""
    return ValueError(f"{path}: must be a whole CSV or Parquet file: {error}")
