"""Ranges of rows as the rows themselves."""

import torch
from torch import Tensor


def lengths_to_offsets(lengths: Tensor) -> Tensor:
    """[S] -> [S + 1], in the dtype of the lengths, or int64 where their sum does not fit it."""
    offsets = torch.cat([lengths.new_zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    fits = int(offsets[-1]) <= torch.iinfo(lengths.dtype).max
    return offsets.to(lengths.dtype) if fits else offsets


def ranges_to_index(begin: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of several ranges, one range after the other.

    Args:
        begin: [S], int32 or int64, the first row of each range; ranges may overlap and come in any order.
        lengths: [S], how many rows each range has.

    Returns:
        Rows [sum of lengths], and the offsets [S + 1] of the ranges in them, in the dtype of `lengths`, or int64 where
        there are more rows than it counts.

    Example:
        >>> stca.batch.ranges_to_index(torch.tensor([5, 0]), torch.tensor([2, 3]))
        (tensor([5, 6, 0, 1, 2]), tensor([0, 2, 5]))
    """
    offsets = lengths_to_offsets(lengths)
    rows = torch.repeat_interleave(begin - offsets[:-1], lengths)
    return rows + torch.arange(len(rows), device=rows.device), offsets


def hull_of_ranges(ranges: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """First row, and last plus 1, of what the ranges [T, 2] of each group hold: [R] each, 0 where all are empty."""
    begin, end = ranges.unbind(dim=1)
    holds, none = begin < end, begin.new_zeros(len(offsets) - 1)
    group = torch.repeat_interleave(torch.arange(len(none), device=begin.device), offsets.diff())[holds]
    first = none.scatter_reduce(0, group, begin[holds], "amin", include_self=False)
    return first, none.scatter_reduce(0, group, end[holds], "amax")
