"""Some rows of a file of an event log, and what becomes of a column of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

BROKEN = (pa.ArrowInvalid, pa.ArrowNotImplementedError)


@dataclass(frozen=True)
class Piece:
    """Some rows of a file, with the file's own columns."""

    path: Path
    table: pa.Table
    first: int  # row of the file that the first is, counted from 1 and without the header
    text: bool  # of a text file, whose cells are bytes
    rows: NDArray[np.int64] | None = None  # rows of the file, where they are not one after the other

    def with_columns(self, columns: Mapping[str, pa.Array | None]) -> "Piece":
        """The same rows with some columns in another form."""
        names = self.table.column_names
        arrays = [self.table[name] if columns.get(name) is None else columns[name] for name in names]
        return replace(self, table=pa.table(arrays, names))

    def error(self, theirs: str, expected: str, at: int, value: Any, count: int | None = None) -> ValueError:
        """What to raise for the value of a row."""
        row = self.first + (at if self.rows is None else int(self.rows[at]))
        got = repr(value) if count is None else f"{count}, the first"
        return ValueError(f"{self.path}: column {theirs} must {expected}, got {got} in row {row}")


def converted(piece: Piece, theirs: str, column: pa.Array, kind: pa.DataType, expected: str) -> pa.Array:
    """The column as another type.

    Raises:
        ValueError: the first value that cannot be it.
    """
    return parsed(piece, theirs, column, lambda part: pc.cast(part, kind), expected)


def parsed(
    piece: Piece, theirs: str, column: pa.Array, parse: Callable[[pa.Array], pa.Array], expected: str
) -> pa.Array:
    """What `parse` makes of a column.

    Raises:
        ValueError: the first value of which it makes nothing.
    """
    try:
        return parse(column)
    except BROKEN as error:
        at = good_part(column, parse)
        raise piece.error(theirs, expected, at, column[at].as_py()) from error


def good_part(column: pa.Array, parse: Callable[[pa.Array], pa.Array]) -> int:
    """How many values, from the first on, can be parsed, of a column that cannot."""
    good, bad = 0, len(column)
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            parse(column[:middle])
            good = middle
        except BROKEN:
            bad = middle
    return good
