"""The columns of a file of request-level batches: a row is one history with all that looks at it, in lists."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

KINDS = {"history": "history_", "targets": "target_", "labels": "label_"}
VISIBLE, REQUESTS = ("visible_begin", "visible_end"), "request_targets"


class Layout(NamedTuple):
    """What a list holds: numbers (width None), or vectors of them, of a width that the type may not tell (0)."""

    number: pa.DataType
    width: int | None

    def differs(self, other: "Layout") -> bool:
        """Whether both cannot be one feature, as far as their types tell."""
        told = None not in (self.width, other.width) and 0 in (self.width, other.width)
        return bool(self.number != other.number or (self.width != other.width and not told))


def is_ours(column: str) -> bool:
    """Whether a column is one of these."""
    return column.startswith(tuple(KINDS.values())) or column in (*VISIBLE, REQUESTS)


def layout_of(name: str, kind: pa.DataType) -> Layout:
    """Of a column that `write_requests` wrote, or that others wrote again with lists of their own kind.

    Raises:
        ValueError: a type of which no tensor can be made, by column and type.
    """
    index = name in (REQUESTS, *VISIBLE)
    value, width = (kind.value_type if _is_list(kind) else pa.null()), None
    if _is_list(value) and not index:
        value, width = value.value_type, value.list_size if pa.types.is_fixed_size_list(value) else 0
    fits = pa.types.is_integer(value)
    if not index:
        fits = fits or pa.types.is_floating(value) or pa.types.is_boolean(value)
    if not fits:
        wanted = "integers" if index else "numbers, or of lists of as many numbers each"
        raise ValueError(f"column {name} must be a list of {wanted}, got {kind}")
    return Layout(value, width)


def check_columns(path: Path, types: Mapping[str, pa.DataType]) -> None:
    """Refuses a file that `write_requests` could not have written, by file and column."""
    for name in (REQUESTS, *VISIBLE):
        if name not in types:
            raise ValueError(f"{path}: column {name} is missing, so write_requests did not write this file")
    for name, kind in types.items():
        try:
            layout_of(name, kind)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def check_alike(first: Path, types: Mapping[str, pa.DataType], path: Path, others: Mapping[str, pa.DataType]) -> None:
    """Refuses a file whose columns are not those of the first, by both files."""
    for name in {**types, **others}:
        for has, lacks, present in ((first, path, others), (path, first, types)):
            if name not in present:
                raise ValueError(f"{lacks}: column {name} of {has} is missing, got {list(present)}")
        if layout_of(name, types[name]).differs(layout_of(name, others[name])):
            raise ValueError(f"{path}: column {name} must be {types[name]} as in {first}, got {others[name]}")


def _is_list(kind: Any) -> bool:
    t = pa.types
    lists = (t.is_list, t.is_large_list, t.is_fixed_size_list, t.is_list_view, t.is_large_list_view)
    return any(is_one(kind) for is_one in lists)
