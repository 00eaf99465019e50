"""A cache whose freed pages are filled with NaN, so that a row that is read after its end shows."""

from collections.abc import Iterable

import numpy as np
import torch

from stca.serving import HistoryCache


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
