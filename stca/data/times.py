"""Times of a log's events, in whatever form a file has them, to seconds."""

from contextlib import suppress
from datetime import datetime
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stca.data.cells import as_integers, cells, finite, integers_of_text
from stca.data.formats import UNITS, LogFormat
from stca.data.git import YEAR_1, YEAR_10000
from stca.data.piece import BROKEN, Piece, converted, good_part, parsed


def times(piece: Piece, theirs: str, form: LogFormat) -> tuple[NDArray[Any], int | None]:
    """Times as whole or real numbers, and how many are a second; None: the file does not say.

    Raises:
        ValueError: what is neither a number nor a time.
    """
    if form.time_format is None and (integers := integers_of_text(piece, theirs, form)) is not None:
        return integers.to_numpy(), None
    column = cells(piece, theirs, form)
    if form.time_format is not None:
        expected = f"be times like {form.time_format}"
        text = converted(piece, theirs, column, pa.string(), expected)
        found = parsed(piece, theirs, text, lambda part: pc.strptime(part, form.time_format, "s"), expected)
        _check_days(piece, theirs, text, found, form.time_format)
        return found.cast(pa.int64()).to_numpy(), 1
    if column.type == pa.string():
        column = _times_of_text(piece, theirs, column)
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.int64()).to_numpy(), UNITS[column.type.unit]
    if pa.types.is_integer(column.type) or (pa.types.is_decimal(column.type) and column.type.scale == 0):
        return converted(piece, theirs, column, pa.int64(), "be within int64").to_numpy(), None
    if pa.types.is_float64(column.type) or pa.types.is_decimal(column.type):
        return finite(piece, theirs, column.cast(pa.float64())).to_numpy(), None
    raise ValueError(f"{piece.path}: column {theirs} must be numbers or times, got {column.type}")


def _check_days(piece: Piece, theirs: str, text: pa.Array, found: pa.Array, time_format: str) -> None:
    """Refuses days such as the 31st of June, of which Arrow makes one of the first three of the next month."""
    doubtful = text.filter(pc.less_equal(pc.day(found), 3)).unique()
    for each in doubtful.to_pylist():
        try:
            datetime.strptime(each, time_format)
        except ValueError as error:
            at = pc.index(text, each).as_py()
            raise piece.error(theirs, f"be times like {time_format}", at, each) from error


def _times_of_text(piece: Piece, theirs: str, column: pa.Array) -> pa.Array:
    """int64, float64, or timestamps where a value is no number."""
    column = pc.ascii_trim_whitespace(column)
    if (integers := as_integers(column)) is not None:
        return integers
    for parse in (_real, _iso_8601):
        with suppress(*BROKEN):
            return parse(column)
    at = max(good_part(column, _real), good_part(column, _iso_8601))  # of what most of the column is
    raise piece.error(theirs, "be numbers or times as in ISO 8601", at, column[at].as_py())


def _real(column: pa.Array) -> pa.Array:
    return column.cast(pa.float64())


def _iso_8601(column: pa.Array) -> pa.Array:
    """Times with a zone or without, which are taken as UTC."""
    zone = pc.match_substring_regex(column, r"\d\d:\d\d.*(Z|[+-]\d\d(:?\d\d)?)$")
    unit = "ns" if pc.any(pc.match_substring_regex(column, r"\.\d{7}")).as_py() else "us"
    if not pc.any(zone).as_py():
        return column.cast(pa.timestamp(unit))
    local = pc.if_else(zone, None, column).cast(pa.timestamp(unit))
    aware = pc.if_else(zone, column, None).cast(pa.timestamp(unit, "UTC"))
    return pc.coalesce(local.cast(pa.int64()), aware.cast(pa.int64())).cast(pa.timestamp(unit))


def seconds(piece: Piece, theirs: str, form: LogFormat, per_second: float) -> pa.Array:
    """Times as int64 seconds, rounded down; `per_second` where the file itself does not say.

    Raises:
        ValueError: a time before the year 1 or after 9999.
    """
    values, own = times(piece, theirs, form)
    rate = Fraction(own or per_second).limit_denominator(1_000_000)
    real = np.floor(values / float(rate))
    wrong = (real < YEAR_1) | (real >= YEAR_10000)
    if wrong.any():
        at = int(wrong.argmax())
        raise piece.error(theirs, "be a time in the years 1 to 9999", at, values[at].item())
    if values.dtype == np.int64:  # exactly
        return pa.array(values * rate.denominator // rate.numerator)
    return pa.array(real.astype(np.int64))
