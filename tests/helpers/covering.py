"""Which tests of a product of parameters stand for all of it: what `make test` runs, and leaves to `make slow`."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest


def covering(rows: Sequence[Sequence[int]], strength: int = 1) -> list[int]:
    """Of rows of values, few that hold every combination of `strength` columns' values that any row holds.

    Greedy: always the row with the most combinations that are new; of equals the one whose values came up least often,
    so that each goes with many others; of equals the first.
    """
    columns = range(len(rows[0]))
    values = _numbered([[(c, row[c]) for c in columns] for row in rows])
    groups = list(combinations(columns, min(strength, len(columns))))
    held = _numbered([[(group, *(row[c] for c in group)) for group in groups] for row in rows])
    new, uses = np.ones(held.max() + 1, dtype=np.int64), np.zeros(values.max() + 1, dtype=np.int64)
    chosen: list[int] = []
    while new.any():
        gains = new[held].sum(axis=1)
        best = np.flatnonzero(gains == gains.max())
        row = int(best[uses[values[best]].sum(axis=1).argmin()])
        new[held[row]] = 0
        uses[values[row]] += 1
        chosen.append(row)
    return chosen


def _numbered(rows: Sequence[Sequence[object]]) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """The same table with a number for each different entry."""
    numbers: dict[object, int] = {}
    return np.array([[numbers.setdefault(each, len(numbers)) for each in row] for row in rows])


def mark_what_is_covered(items: Sequence[pytest.Item]) -> None:
    """Of each test marked `exhaustive`, marks as `slow` the combinations of parameters that need not run every time.

    `exhaustive` alone keeps every value of each parameter, `exhaustive(2)` every pair of values of two parameters; both
    on every device.
    """
    products: dict[tuple[Any, ...], list[pytest.Function]] = {}
    for item in items:
        mark = item.get_closest_marker("exhaustive")
        if mark is not None and isinstance(item, pytest.Function):
            test = item.nodeid.removesuffix(f"[{item.callspec.id}]")
            products.setdefault((test, item.callspec.params.get("device"), mark.args), []).append(item)
    for (_, _, strength), product in products.items():
        kept = covering([list(map(id, each.callspec.params.values())) for each in product], *strength)
        for i in {*range(len(product))} - {*kept}:
            product[i].add_marker("slow")
