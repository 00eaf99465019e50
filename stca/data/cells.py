"""Cells of a log's columns to ids, labels and features: what does not fit is an error that names its row."""

from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stca.data.formats import LogFormat
from stca.data.piece import BROKEN, Piece, converted


def is_number(kind: pa.DataType) -> bool:
    """Whether a column holds numbers, truth values included."""
    return _is_any(kind, "integer", "floating", "decimal", "boolean")


def stored(piece: Piece, theirs: str) -> pa.Array:
    """A column as numbers, times, string, or binary where Parquet has bytes.

    Raises:
        ValueError: text that is no UTF-8.
    """
    column: pa.Array = piece.table[theirs].combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.type == pa.uuid():
        found = column.storage.dictionary_encode()
        names = [each and str(UUID(bytes=each)) for each in found.dictionary.to_pylist()]
        column = pa.array(names, pa.string()).take(found.indices)
    if _is_any(column.type, "string", "large_string", "string_view"):  # Parquet's, of which nobody has read a byte
        column = converted(piece, theirs, column.cast(pa.string()).cast(pa.binary()), pa.string(), "be UTF-8")
    elif piece.text and column.type == pa.binary():
        column = converted(piece, theirs, column, pa.string(), "be UTF-8")
    elif _is_any(column.type, "binary", "large_binary", "binary_view", "fixed_size_binary"):
        column = column.cast(pa.binary())
    return column


def cells(piece: Piece, theirs: str, form: LogFormat) -> pa.Array:
    """A column without empty cells.

    Raises:
        ValueError: empty cells, or text that is no UTF-8.
    """
    column = stored(piece, theirs)
    empty = column.is_null()
    if column.type == pa.string():
        blank = pc.or_kleene(pc.is_in(column, pa.array(("", *form.nulls), pa.string())), pc.utf8_is_space(column))
        empty = pc.or_kleene(empty, blank)
    elif column.type == pa.binary():
        empty = pc.or_kleene(empty, pc.match_substring_regex(column, r"^\s*$"))
    if (count := pc.sum(empty).as_py() or 0) > 0:
        raise piece.error(theirs, "not have empty values", pc.index(empty, True).as_py(), None, count)
    return column


def id_cells(piece: Piece, theirs: str, form: LogFormat) -> pa.Array:
    """Ids that are exactly what the file holds: int64 where each is one, else string or binary.

    Raises:
        ValueError: floats, which may have been rounded, and whatever else no id can be.
    """
    if (integers := integers_of_text(piece, theirs, form)) is not None:
        return integers
    column = cells(piece, theirs, form)
    if pa.types.is_decimal(column.type):
        whole = converted(piece, theirs, column, pa.decimal128(38, 0), "be integers or text")
        integers = as_integers(column := whole.cast(pa.string()))
        return column if integers is None else integers
    if pa.types.is_integer(column.type):
        try:
            column = column.cast(pa.int64())
        except pa.ArrowInvalid:
            column = column.cast(pa.string())
    if column.type not in (pa.int64(), pa.string(), pa.binary()):
        raise ValueError(f"{piece.path}: column {theirs} must be integers or text, got {column.type}")
    return column


def integers_of_text(piece: Piece, theirs: str, form: LogFormat) -> pa.Array | None:
    """The column of a text file as int64, if it is: the quick way for what most logs are."""
    column: pa.Array = piece.table[theirs].combine_chunks()
    if not piece.text or column.type != pa.binary():
        return None
    if any(null.lstrip("-").isdigit() for null in form.nulls):  # else no integer is an empty cell
        column = cells(piece, theirs, form)
    return as_integers(column)


def as_integers(column: pa.Array) -> pa.Array | None:
    """Text as int64, if each is an int64 written as an int64 is: no leading zero, no sign but one minus."""
    try:
        integers = column.cast(pa.int64())
    except BROKEN:
        return None
    offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset :][: len(column) + 1]
    written = np.frombuffer(column.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    # Arrow takes 007 and 0x7 as well: digits alone, and no more of them than the numbers have.
    if len(written) and written.max() > ord("9"):
        return None
    values = integers.to_numpy()
    size, digits = np.abs(values).view(np.uint64), len(values) + int((values < 0).sum())
    for exponent in range(1, len(str(size.max()))) if len(size) else ():
        digits += int((size >= np.uint64(10**exponent)).sum())
    return integers if digits == len(written) else None


def finite(piece: Piece, theirs: str, column: pa.Array) -> pa.Array:
    """The column, in which no float is NaN or infinite.

    Raises:
        ValueError: the first that is.
    """
    if pa.types.is_floating(column.type) and not pc.all(good := pc.is_finite(column)).as_py():
        at = pc.index(good, False).as_py()
        raise piece.error(theirs, "be finite", at, column[at].as_py())
    return column


def numbers(piece: Piece, theirs: str, form: LogFormat, kind: pa.DataType) -> pa.Array:
    """A column of numbers, text of numbers or truth values as one type, exactly.

    Raises:
        ValueError: what is no finite number, or none of that type.
    """
    if (integers := integers_of_text(piece, theirs, form)) is not None:
        return converted(piece, theirs, integers, kind, f"be numbers of {kind}")
    column = cells(piece, theirs, form)
    if column.type == pa.string():
        column = pc.ascii_trim_whitespace(column)
        if pc.any(truth := pc.is_in(word := pc.utf8_lower(column), pa.array(["true", "false"]))).as_py():
            column = pc.if_else(truth, pc.if_else(pc.equal(word, "true"), "1", "0"), column)
    elif not is_number(column.type):
        raise ValueError(f"{piece.path}: column {theirs} must be numbers, got {column.type}")
    result = finite(piece, theirs, converted(piece, theirs, column, kind, f"be numbers of {kind}"))
    if column.type == pa.string() and kind == pa.float64():  # of other types Arrow refuses what would be rounded
        for at in np.flatnonzero(np.abs(result.to_numpy()) >= 2**53).tolist():
            if (text := column[at].as_py()).lstrip("-").isdigit() and int(text) != int(result[at].as_py()):
                raise piece.error(theirs, f"be numbers of {kind}", at, text)
    return result


def are_integers(piece: Piece, theirs: str, form: LogFormat) -> bool:
    """Whether text of numbers is integers alone.

    Raises:
        ValueError: what is no finite number.
    """
    column = cells(piece, theirs, form)
    if column.type == pa.string() and as_integers(pc.ascii_trim_whitespace(column)) is not None:
        return True
    numbers(piece, theirs, form, pa.float64())
    return False


def label(piece: Piece, theirs: str, form: LogFormat, binary: bool) -> pa.Array:
    """What came of events, float32; `binary`: 0 or 1, by `form.positive` where it is given.

    Raises:
        ValueError: what is no number that float32 holds, or neither 0 nor 1 where it must be.
    """
    positive = form.positive if binary else None
    if isinstance(positive, tuple):
        text = pc.utf8_trim_whitespace(converted(piece, theirs, cells(piece, theirs, form), pa.string(), "be text"))
        return pc.is_in(text, pa.array(positive)).cast(pa.float32())
    values = numbers(piece, theirs, form, pa.float64()).to_numpy()
    if positive is not None:
        values = values >= positive
    if binary and not (good := (values == 0) | (values == 1)).all():
        raise piece.error(theirs, "be 0 or 1", at := int(good.argmin()), values[at].item())
    with np.errstate(over="ignore"):
        return finite(piece, theirs, pa.array(values.astype(np.float32)))


def _is_any(kind: pa.DataType, *names: str) -> bool:
    return any(getattr(pa.types, f"is_{name}")(kind) for name in names)
