"""What a request-level batch must be: shapes, offsets and ranges that fit each other."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from stca.batch.request_batch import RequestBatch

_INTEGERS = (torch.int32, torch.int64)


def check_tensors(**named: object) -> None:
    """Refuses what is no tensor, by its name."""
    for name, x in named.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"RequestBatch: {name} must be a tensor, got {type(x).__name__}")


def check_batch(batch: "RequestBatch") -> None:
    """Refuses a batch whose parts do not fit each other, by name, expectation and value."""
    tensors = batch.tensors()
    check_tensors(**tensors)
    devices = {x.device: name for name, x in tensors.items()}
    if len(devices) > 1:
        raise ValueError(f"RequestBatch: all tensors must be on one device, got {devices}")
    _check_offsets("history_offsets", batch.history_offsets)
    _check_offsets("target_offsets", batch.target_offsets)
    if batch.request_offsets is not None:
        _check_offsets("request_offsets", batch.request_offsets, end=batch.T)
    if batch.history_offsets.numel() != batch.target_offsets.numel():
        raise ValueError(
            "RequestBatch: history_offsets and target_offsets must have one length, got "
            f"{batch.history_offsets.numel()} and {batch.target_offsets.numel()}"
        )
    rows = {"history": _stored_rows(batch), "targets": batch.T, "labels": batch.T}
    for name, x in tensors.items():
        wanted = rows.get(name.split(".")[0])
        if wanted is not None and (x.dim() < 1 or x.shape[0] != wanted):
            raise ValueError(f"RequestBatch: {name} must have {wanted} rows, got shape {list(x.shape)}")
    if batch.visible is not None:
        own = torch.repeat_interleave(batch.history_offsets.diff(), batch.target_offsets.diff())
        check_ranges("visible", batch.visible, own, "rows")


def check_ranges(name: str, ranges: Tensor, sizes: Tensor, unit: str) -> None:
    """Refuses ranges [n, 2] that are none in histories of `sizes` [n], by the first that is wrong."""
    if ranges.shape != (len(sizes), 2) or ranges.dtype not in _INTEGERS:
        raise ValueError(
            f"RequestBatch: {name} must be int32 or int64 [{len(sizes)}, 2], got {ranges.dtype} {list(ranges.shape)}"
        )
    begin, end = ranges.unbind(dim=1)
    wrong = ((begin < 0) | (begin > end) | (end > sizes)).nonzero().flatten()
    if len(wrong):
        i = int(wrong[0])
        raise ValueError(
            f"RequestBatch: {name}[{i}] must be a range in a history of {int(sizes[i])} {unit}, got "
            f"{ranges[i].tolist()}"
        )


def _check_offsets(name: str, offsets: Tensor, end: int | None = None) -> None:
    if offsets.dim() != 1 or offsets.numel() < 1 or offsets.dtype not in _INTEGERS:
        raise ValueError(
            f"RequestBatch: {name} must be int32 or int64 [R + 1], got {offsets.dtype} {list(offsets.shape)}"
        )
    if offsets[0] != 0 or (offsets.diff() < 0).any() or (end is not None and offsets[-1] != end):
        wanted = "" if end is None else f" and end at T = {end}"
        raise ValueError(f"RequestBatch: {name} must start at 0, never decrease{wanted}, got {offsets.tolist()}")


def _stored_rows(batch: "RequestBatch") -> int:
    """P, which is N without `history_index`, once that is checked."""
    index = batch.history_index
    if index is None:
        return batch.N
    if index.shape != (batch.N,) or index.dtype not in _INTEGERS:
        raise ValueError(
            f"RequestBatch: history_index must be int32 or int64 [N = {batch.N}], got {index.dtype} {list(index.shape)}"
        )
    stored = next((len(x) for x in batch.history.values() if x.dim()), 0)
    wrong = ((index < 0) | (index >= stored)).nonzero().flatten()
    if len(wrong):
        n = int(wrong[0])
        raise ValueError(f"RequestBatch: history_index[{n}] must be a row of {stored} stored, got {int(index[n])}")
    return stored
