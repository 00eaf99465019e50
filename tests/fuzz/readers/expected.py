"""What events a log holds, in plain Python and one value at a time: slow, and with nothing of the package."""

import re
import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

Row = tuple[int, int, int, float]
_INTEGER = re.compile(r"0|-?[1-9]\d*", re.ASCII)
_REAL = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d{1,2})?", re.ASCII)
_DAY = re.compile(r"(199|20\d)\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(([01]\d|2[0-3])([0-5]\d)?)?", re.ASCII)
_YEAR_1, _YEAR_10000, _YEAR_1990, _YEAR_2100 = -62_135_596_800, 253_402_300_800, 631_152_000, 4_102_444_800
_ASCII_SPACE = " \t\n\r\v\f"


class RefusedError(Exception):
    """The log must be refused."""


class UnknownError(Exception):
    """This reader does not know: either may be."""


def rows(
    columns: dict[str, list[Any]], nulls: Sequence[str], positive: Any, per_second: float | None, text: bool
) -> list[Row]:
    """User, item, time and label of each event; `text`: of a text file, whose integers are written as text.

    Raises:
        RefusedError: a log that must be refused.
        UnknownError: values that this reader leaves to others.
    """
    for cells in columns.values():
        for cell in cells:
            if cell is None or (isinstance(cell, str) and (not cell or cell.isspace() or cell in nulls)):
                raise RefusedError("an empty cell")
    if not columns["user_id"]:
        raise RefusedError("no event")
    users, items = (_ids(columns[name], text) for name in ("user_id", "item_id"))
    times = _times(columns["timestamp"], per_second)
    labels = [_label(cell, positive) for cell in columns["label"]]
    return list(zip(users, items, times, labels, strict=True))


def _is_integer(text: str) -> bool:
    return bool(_INTEGER.fullmatch(text)) and -(2**63) <= int(text[:30]) < 2**63


def _ids(cells: list[Any], text: bool) -> list[int]:
    if any(isinstance(cell, bool | float) for cell in cells):
        raise RefusedError("an id that may have been rounded")
    texts = [str(cell) for cell in cells]
    if all(map(_is_integer, texts)) and (text or not isinstance(cells[0], str)):
        return list(map(int, texts))
    known: dict[str, int] = {}
    return [known.setdefault(text, len(known)) for text in texts]


def _label(cell: Any, positive: Any) -> float:
    if isinstance(positive, tuple):
        raise UnknownError(positive)
    if isinstance(cell, str):
        text = cell.strip(_ASCII_SPACE)
        if text.lower() in ("true", "false"):
            text = str(int(text.lower() == "true"))
        if not _REAL.fullmatch(text):
            try:
                float(text)
            except ValueError:
                if text.startswith(("+", ".", "0x")) or not text.isascii():
                    raise UnknownError(text) from None
                raise RefusedError(text) from None
            raise UnknownError(text)
        cell = float(text)
    x = float(cell)
    if x != x or x in (float("inf"), -float("inf")):
        raise RefusedError(x)
    if abs(x) >= 2**53:
        raise UnknownError(x)
    if positive is not None:
        return float(x >= positive)
    if x not in (0, 1):
        raise RefusedError(x)
    return float(struct.unpack("f", struct.pack("f", x))[0])


def _times(cells: list[Any], per_second: float | None) -> list[int]:
    if any(isinstance(cell, bool) for cell in cells):
        raise RefusedError("no time")
    texts = [cell.strip(_ASCII_SPACE) if isinstance(cell, str) else str(cell) for cell in cells]
    if any(isinstance(cell, int) for cell in cells) and not all(map(_is_integer, texts)):
        raise RefusedError("beyond int64")
    if not all(map(_is_integer, texts)):
        raise UnknownError("times that are no integers")
    values = list(map(int, texts))
    rate = Fraction(1)
    if per_second is not None:
        rate = Fraction(per_second).limit_denominator(1_000_000)
    else:
        if all(map(_DAY.fullmatch, texts)) and len({*map(len, texts)}) == 1:
            raise RefusedError("days written without a sign between, or hours, or minutes of them")
        units = [
            unit
            for unit in (1, 10**3, 10**6, 10**9)
            if any(_YEAR_1990 <= Fraction(v, unit) < _YEAR_2100 for v in values)
        ]
        if len(units) > 1:
            raise RefusedError("times of two units")
        rate = Fraction(units[0]) if units else rate
    seconds = [Fraction(value) / rate for value in values]
    if any(abs(second) > _YEAR_10000 - 10**6 or second < _YEAR_1 + 10**6 for second in seconds):
        if any(second < _YEAR_1 - 10**6 or second > _YEAR_10000 + 10**6 for second in seconds):
            raise RefusedError("no year")
        raise UnknownError("at the edge")
    return [second.numerator // second.denominator for second in seconds]
