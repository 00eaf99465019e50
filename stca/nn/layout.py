"""The forms in which requests come, flat rows, padded batches and nested tensors, and the way to flat rows and back."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stca.nn.module import check_tensor
from stca.ops._autograd import is_watched

_ARGUMENTS = (
    "targets",
    "history",
    "target_offsets",
    "history_offsets",
    "visible",
    "history_index",
    "target_lengths",
    "history_lengths",
)


Kept = Tensor | tuple[Tensor, Tensor]
"""A history that was kept: rows, or keys and values; or int8 and, with a last dimension of 1, what it is scaled by."""


def split_kept(owner: str, kept: Kept) -> tuple[Tensor, Tensor | None]:
    """A kept history's rows and what they are scaled by."""
    if isinstance(kept, Tensor) and kept.dtype == torch.int8:
        raise ValueError(f"{owner}: int8 rows must come with their scale, as a pair, got {list(kept.shape)} alone")
    if not isinstance(kept, tuple) or len(kept) != 2:
        return kept, None  # who takes rows refuses what is no tensor
    for name, each in zip(("rows", "their scale"), kept, strict=True):
        check_tensor(owner, name, each)
    rows, scale = kept
    flat = rows.dim() in (2, 4) and scale.shape == (*rows.shape[:-1], 1)
    if not flat or rows.dtype != torch.int8 or scale.dtype != torch.float32:
        raise ValueError(
            f"{owner}: rows with a scale must be int8 [N, D] or [N, 2, H, D / H], and the scale float32 with a last "
            f"dimension of 1, got {rows.dtype} {list(rows.shape)} and {scale.dtype} {list(scale.shape)}"
        )
    return rows, scale


class PackedRequests(NamedTuple):
    """The rows of all requests back to back, and how to bring a result per target into the form of the targets."""

    targets: Tensor  # [T, D]
    history: Tensor  # [N, D], or keys and values [N, 2, H, D / H]; P rows with an index
    target_offsets: Tensor  # [R + 1]
    history_offsets: Tensor  # [R + 1]
    visible: Tensor | None  # [T, 2]
    history_index: Tensor | None  # [N], rows of the history
    unpack: Callable[[Tensor, float], Tensor]  # [T, ...] and what padding gets -> the targets' form

    def options(self) -> dict[str, Any]:
        """All but the rows themselves, as keyword arguments of a module that takes flat rows."""
        return {
            "target_offsets": self.target_offsets,
            "history_offsets": self.history_offsets,
            "visible": self.visible,
            "history_index": self.history_index,
        }


def pack_requests(
    owner: str,
    dim: int,
    targets: Tensor | None,
    history: Tensor | None,
    target_offsets: Tensor | None,
    history_offsets: Tensor | None,
    visible: Tensor | None,
    history_index: Tensor | None,
    target_lengths: Tensor | None = None,
    history_lengths: Tensor | None = None,
) -> PackedRequests:
    """Flat rows without copying any of the history: nested tensors by their values, padded batches by views.

    Args:
        owner: name of the module, for messages.
        dim: D.
        targets: flat [T, D], padded [B, m, D], or nested [B, j, D] with layout=torch.jagged.
        history: in the same form: [N, D], [B, L, D] or nested; with flat targets also keys and values [N, 2, H, D / H].
        target_offsets: [R + 1], with flat rows only.
        history_offsets: [R + 1], with flat rows only.
        visible: [T, 2], or [B, m, 2] with padded targets, or nested like nested targets: rows [begin, end) of its own
            history that a target sees.
        history_index: [N], with flat rows only; not used otherwise.
        target_lengths: [B], with padded targets only; all m when None.
        history_lengths: [B], with padded history only; all L when None.

    Raises:
        TypeError: something else than a tensor.
        ValueError: arguments of different forms, rows of another width than D, or lengths that no padded batch has.
    """
    arguments = (
        targets,
        history,
        target_offsets,
        history_offsets,
        visible,
        history_index,
        target_lengths,
        history_lengths,
    )
    for at, argument in enumerate(arguments):
        if not isinstance(argument, Tensor) and (argument is not None or at < 2):
            check_tensor(owner, _ARGUMENTS[at], argument)
    assert targets is not None
    assert history is not None
    kept = targets.dim() == 2 and history.dim() == 4
    alike = targets.is_nested == history.is_nested and (kept or targets.dim() == history.dim())
    if not alike or targets.dim() not in (2, 3):
        raise ValueError(
            f"{owner}: targets and history must both be flat [rows, D], padded [B, rows, D] or nested, got "
            f"{_form(targets)} and {_form(history)}"
        )
    padded = targets.dim() == 3 and not targets.is_nested
    if targets.dim() == 3 and (target_offsets is not None or history_offsets is not None):
        raise ValueError(f"{owner}: offsets must be None unless rows are flat, got {_form(targets)} targets")
    if not padded and (target_lengths is not None or history_lengths is not None):
        raise ValueError(f"{owner}: lengths must be None unless rows are padded, got {_form(targets)} targets")
    if targets.dim() == 3 and history_index is not None:
        raise ValueError(f"{owner}: history_index must be None unless rows are flat, got {_form(targets)} targets")
    if visible is not None and visible.is_nested and not targets.is_nested:
        raise ValueError(f"{owner}: visible must be nested only where targets are, got {_form(targets)} targets")
    for name, rows in (("targets", targets), ("history", history)):
        if rows.is_nested:
            _check_jagged(owner, name, rows)
        if rows is history and kept:
            if rows.shape[1] != 2 or rows.shape[2] * rows.shape[3] != dim:
                raise ValueError(f"{owner}: kept keys and values must be [N, 2, H, {dim} / H], got {list(rows.shape)}")
        elif rows.shape[-1] != dim:
            raise ValueError(f"{owner}: {name} must have rows of width D = {dim}, got {list(rows.shape)}")
    if padded:
        return _pack_padded(owner, targets, history, visible, target_lengths, history_lengths)
    if targets.is_nested:
        return _pack_nested(owner, targets, history, visible)
    if target_offsets is None or history_offsets is None:
        raise ValueError(f"{owner}: flat rows need target_offsets and history_offsets [R + 1], got None")
    return PackedRequests(
        targets, history, target_offsets, history_offsets, visible, history_index, lambda z, padding: z
    )


def _form(rows: Tensor) -> str:
    return "nested" if rows.is_nested else str(list(rows.shape))


def is_plain(x: Tensor) -> bool:
    """Whether x is a tensor like any other, whose calls no compiler, transform or mode follows."""
    return not torch.compiler.is_compiling() and type(x) in (Tensor, torch.nn.Parameter) and not is_watched()


def may_read(x: Tensor) -> bool:
    """Whether x's values may decide what Python does next: they are there, and no device has to be waited for."""
    return is_plain(x) and (x.is_cpu or (x.is_cuda and os.environ.get("STCA_DEBUG") == "1"))


def _check_jagged(owner: str, name: str, rows: Any) -> None:
    if rows.layout != torch.jagged:
        raise ValueError(f"{owner}: nested {name} must have layout torch.jagged, got {rows.layout}")
    if rows.lengths() is not None:
        raise ValueError(
            f"{owner}: nested {name} must have no holes between its rows (torch.nested.narrow leaves some)"
        )


def _pack_nested(owner: str, targets: Any, history: Any, visible: Any) -> PackedRequests:
    offsets: Tensor = targets.offsets()
    if visible is not None and visible.is_nested:
        _check_jagged(owner, "visible", visible)
        own = visible.offsets()
        if own.shape != offsets.shape or (may_read(own) and not torch.equal(own, offsets)):
            raise ValueError(
                f"{owner}: nested visible must have the offsets of targets, {offsets.tolist()}, got {own.tolist()}"
            )
        visible = visible.values()
    return PackedRequests(
        targets.values(),
        history.values(),
        offsets,
        history.offsets(),
        visible,
        None,
        lambda z, padding: torch.nested.nested_tensor_from_jagged(z, offsets),
    )


def _check_lengths(owner: str, name: str, lengths: Tensor, B: int, most: int, axis: str) -> None:
    if lengths.shape != (B,):
        raise ValueError(f"{owner}: {name} must be [B] = [{B}], got {list(lengths.shape)}")
    if lengths.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{owner}: {name} must be int32 or int64, got {lengths.dtype}")
    if may_read(lengths):
        for request, length in enumerate(lengths.tolist()):
            if not 0 <= length <= most:
                raise ValueError(f"{owner}: {name} must be from 0 to {axis} = {most}, got {name}[{request}] = {length}")


def _pack_padded(
    owner: str,
    targets: Tensor,
    history: Tensor,
    visible: Tensor | None,
    target_lengths: Tensor | None,
    history_lengths: Tensor | None,
) -> PackedRequests:
    B, m, D = targets.shape
    L = history.shape[1]
    if history.shape[0] != B:
        raise ValueError(f"{owner}: history must be padded [B, L, D] with B = {B}, got {list(history.shape)}")
    if target_lengths is not None:
        _check_lengths(owner, "target_lengths", target_lengths, B, m, "m")
    if history_lengths is not None:
        _check_lengths(owner, "history_lengths", history_lengths, B, L, "L")
    if visible is not None and visible.shape != (B, m, 2):
        raise ValueError(f"{owner}: visible must be [B, m, 2] = [{B}, {m}, 2], got {list(visible.shape)}")
    device = targets.device
    steps, ranges = torch.arange(B + 1, device=device), visible
    if history_lengths is not None:
        ends = history_lengths.to(torch.int64)[:, None, None]
        if visible is not None:
            ranges = torch.where(visible <= L, torch.minimum(visible, ends), visible)  # what is wrong stays wrong
        else:
            ranges = torch.cat([torch.zeros_like(ends), ends], dim=2).expand(B, m, 2)
    real: Tensor | None = None
    if target_lengths is not None:
        # Padding sees nothing and is 0, so that nothing it holds, nor what it alone would see, is in any gradient.
        real = (torch.arange(m, device=device) < target_lengths[:, None])[:, :, None]
        targets = torch.where(real, targets, 0)
        whole = torch.arange(2, device=device) * L  # a copy from the host would wait for the device
        ranges = torch.where(real, whole if ranges is None else ranges, 0)

    def unpack(z: Tensor, padding: float) -> Tensor:
        z = z.reshape(B, m, z.shape[-1])
        return z if real is None else torch.where(real, z, padding)

    return PackedRequests(
        targets.reshape(B * m, D),
        history.reshape(B * L, D),
        steps * m,
        steps * L,
        None if ranges is None else ranges.reshape(B * m, 2),
        None,
        unpack,
    )
