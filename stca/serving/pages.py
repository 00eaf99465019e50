"""Pages of a pool: which are free, and which have to wait until nobody reads them any more."""

import heapq
from collections import deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Integers = NDArray[np.int64]


def integers(owner: str, name: str, values: object) -> Integers:
    """Whole numbers of 64 bits, from wherever they are."""
    try:
        found = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    except (TypeError, ValueError, RuntimeError) as error:  # a dtype that numpy has not, lists of unequal lengths
        raise ValueError(f"{owner}: {name} must be whole numbers: {error}") from error
    if found.size and found.dtype.kind not in "iu":
        raise ValueError(f"{owner}: {name} must be whole numbers, got {found.dtype}")
    if found.dtype.kind == "u" and found.size and found.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{owner}: {name} must be below 2^63, got {found.max()}")
    return found.astype(np.int64)


def whole(owner: str, name: str, value: object, least: int | None = None) -> int:
    """One whole number."""
    found = integers(owner, name, value)
    if found.shape != ():
        raise ValueError(f"{owner}: {name} must be one whole number, got {list(found.shape)} of them")
    if least is not None and found < least:
        raise ValueError(f"{owner}: {name} must be at least {least}, got {found}")
    return int(found)


class Pages:
    """Numbers of pages from 0. Every method but `let_go` is called under the lock of whoever owns them.

    A page that is freed while readers hold it becomes free when the last of them lets go.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        # A heap: the lowest first, so that pages of one user tend to follow one another.
        self._free = list(range(count))
        self._readers = np.zeros(count, dtype=np.int32)
        self._waiting = np.zeros(count, dtype=bool)
        self._left: deque[Integers] = deque()  # by readers that let go, from any thread and without a lock

    def held(self, pages: Integers) -> bool:
        """Whether some of them would not become free at once."""
        self._collect()
        return bool((self._readers[pages] > 0).any())

    @property
    def free_count(self) -> int:
        """Pages that can be taken."""
        self._collect()
        return len(self._free)

    def take(self, count: int) -> Integers:
        """So many free pages; `free_count` says whether they are there."""
        return np.array([heapq.heappop(self._free) for _ in range(count)], dtype=np.int64)

    def give_back(self, pages: Integers) -> None:
        """Frees pages, at once where nobody reads them."""
        held = self._readers[pages] > 0
        self._waiting[pages[held]] = True
        self._push(pages[~held])

    def hold(self, pages: Integers) -> None:
        """One more reader of each."""
        self._collect()
        self._readers[pages] += 1

    def let_go(self, pages: Integers) -> None:
        """One reader of each less, as soon as pages are looked for."""
        self._left.append(pages)

    def _collect(self) -> None:
        while self._left:
            pages = self._left.popleft()
            self._readers[pages] -= 1
            done = pages[self._waiting[pages] & (self._readers[pages] == 0)]
            self._waiting[done] = False
            self._push(done)

    def _push(self, pages: Iterable[np.int64]) -> None:
        for page in pages:
            heapq.heappush(self._free, int(page))
