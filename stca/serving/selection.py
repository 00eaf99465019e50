"""What a cache gives: histories to attend to, and counts."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from stca.serving.pages import Integers, integers
from stca.serving.pool import User


@dataclass(frozen=True)
class Statistics:
    """What a cache holds, and what happened since it was made.

    Attributes:
        users, rows: that it holds.
        free_rows: rows of free pages.
        hits, misses: users that were asked for and were there, or not.
        appended_rows, evicted_users: so far.
    """

    users: int
    rows: int
    free_rows: int
    hits: int
    misses: int
    appended_rows: int
    evicted_users: int


class Selection:
    """Histories of chosen users as `STCA.attend` takes them. What it refers to stays until `release`, or its own end.

    Attributes:
        encoded: of every layer the whole pool, [P, D] or [P, 2, H, D / H], where the cache stores what it gives, and
            with its scales where it stores int8; else the N rows.
        history_index: [N] rows of the pool; None where `encoded` holds the rows themselves.
        history_offsets: [U + 1], user by user.
    """

    def __init__(
        self,
        encoded: list[Any],
        history_index: Tensor | None,
        history_offsets: Tensor,
        release: Callable[[], None],
    ) -> None:
        self.encoded, self.history_index, self.history_offsets = encoded, history_index, history_offsets
        self.release: Callable[[], object] = weakref.finalize(self, release)

    def __enter__(self) -> "Selection":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def for_each(name: str, value: int | Sequence[int] | None, users: Sequence[User]) -> Integers | None:
    """One value for each user, or None."""
    if value is None:
        return None
    values = integers("HistoryCache.select", name, value)
    if values.ndim > 0 and values.shape != (len(users),):
        raise ValueError(f"HistoryCache.select: {name} must be one of {len(users)} users, got {list(values.shape)}")
    return np.broadcast_to(values, len(users))
