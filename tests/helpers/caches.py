"""Of caches: free pages filled with NaN, so that a row that is read after its end shows; and what a selection holds."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from stca.serving import HistoryCache, Selection


def poisoned(cache: HistoryCache) -> HistoryCache:
    """The cache, whose free pages hold NaN from now on."""
    pages, page_rows = cache._pool.pages, cache._pool.page_rows
    push = pages._push

    def poison(freed: Iterable[np.int64]) -> None:
        numbers = list(freed)
        for page in numbers:
            for rows in cache._pool.rows:
                rows.pool[page * page_rows : (page + 1) * page_rows] = torch.nan
        push(numbers)

    pages._push = poison  # type: ignore[method-assign, assignment]
    for rows in cache._pool.rows:
        rows.pool.fill_(torch.nan)
    return cache


def selected(selection: Selection) -> list[Tensor]:
    """The rows of a selection, of every layer, as a cache would give them where it copies."""
    index, found = selection.history_index, []
    for kept in selection.encoded:
        rows, scale = kept if isinstance(kept, tuple) else (kept, None)
        rows = rows if index is None else rows[index]
        found.append(rows if scale is None else rows.float() * scale[index])
    return found
