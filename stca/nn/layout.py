"""The forms in which requests come, flat rows, padded batches and nested tensors, and the way to flat rows and back."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Flat(NamedTuple):
    """Flat rows of all requests, and how to bring a result per target into the form that the targets had."""

    targets: Tensor  # [T, D]
    history: Tensor  # [N, D], or [P, D] with an index
    target_offsets: Tensor  # [R + 1]
    history_offsets: Tensor  # [R + 1]
    visible: Tensor | None  # [T, 2]
    restore: Callable[[Tensor], Tensor]  # [T, D] -> the targets' form


def flatten(
    owner: str,
    dim: int,
    targets: Tensor,
    history: Tensor,
    target_offsets: Tensor | None,
    history_offsets: Tensor | None,
    visible: Tensor | None,
    history_index: Tensor | None,
    target_lengths: Tensor | None = None,
    history_lengths: Tensor | None = None,
) -> Flat:
    """Flat rows without copying any: nested tensors by their values, padded batches by views and visible ranges.

    Args:
        owner: name of the module, for messages.
        dim: D.
        targets: flat [T, D], padded [B, m, D], or nested [B, j, D] with layout=torch.jagged.
        history: in the same form: [N, D], [B, L, D] or nested.
        target_offsets: [R + 1], with flat rows only.
        history_offsets: [R + 1], with flat rows only.
        visible: [T, 2], or [B, m, 2] with padded targets: rows [begin, end) of its own history that a target sees.
        history_index: [N], with flat rows only; not used otherwise.
        target_lengths: [B], with padded targets only; all m when None.
        history_lengths: [B], with padded history only; all L when None.

    Raises:
        ValueError: arguments of different forms, or rows of another width than D.
    """
    offsets = (target_offsets, history_offsets)
    lengths = (target_lengths, history_lengths)
    if targets.is_nested != history.is_nested or targets.dim() != history.dim() or targets.dim() not in (2, 3):
        raise ValueError(
            f"{owner}: targets and history must both be flat [rows, D], padded [B, rows, D] or nested, got "
            f"{_form(targets)} and {_form(history)}"
        )
    padded = targets.dim() == 3 and not targets.is_nested
    if targets.dim() == 2 and (offsets[0] is None or offsets[1] is None):
        raise ValueError(f"{owner}: flat rows need target_offsets and history_offsets [R + 1], got None")
    if targets.dim() == 3 and (offsets[0] is not None or offsets[1] is not None):
        raise ValueError(f"{owner}: offsets must be None unless rows are flat, got {_form(targets)} targets")
    if not padded and (lengths[0] is not None or lengths[1] is not None):
        raise ValueError(f"{owner}: lengths must be None unless rows are padded, got {_form(targets)} targets")
    if targets.dim() == 3 and history_index is not None:
        raise ValueError(f"{owner}: history_index must be None unless rows are flat, got {_form(targets)} targets")
    for name, rows in (("targets", targets), ("history", history)):
        if rows.is_nested and rows.layout != torch.jagged:
            raise ValueError(f"{owner}: nested {name} must have layout torch.jagged, got {rows.layout}")
        if rows.is_nested and rows.lengths() is not None:  # type: ignore[attr-defined]
            raise ValueError(
                f"{owner}: nested {name} must have no holes between its rows (torch.nested.narrow leaves some)"
            )
        if rows.shape[-1] != dim:
            raise ValueError(f"{owner}: {name} must have rows of width D = {dim}, got {list(rows.shape)}")
    if padded:
        return _flatten_padded(owner, targets, history, visible, target_lengths, history_lengths)
    if targets.is_nested:
        like: Tensor = targets.offsets()  # type: ignore[attr-defined]
        return Flat(
            targets.values(),
            history.values(),
            like,
            history.offsets(),  # type: ignore[attr-defined]
            visible,
            lambda z: torch.nested.nested_tensor_from_jagged(z, like),
        )
    assert offsets[0] is not None
    assert offsets[1] is not None
    return Flat(targets, history, offsets[0], offsets[1], visible, lambda z: z)


def _form(rows: Tensor) -> str:
    return "nested" if rows.is_nested else str(list(rows.shape))


def _flatten_padded(
    owner: str,
    targets: Tensor,
    history: Tensor,
    visible: Tensor | None,
    target_lengths: Tensor | None,
    history_lengths: Tensor | None,
) -> Flat:
    B, m, D = targets.shape
    L = history.shape[1]
    if history.shape[0] != B:
        raise ValueError(f"{owner}: history must be padded [B, L, D] with B = {B}, got {list(history.shape)}")
    for name, lengths in (("target_lengths", target_lengths), ("history_lengths", history_lengths)):
        if lengths is not None and lengths.shape != (B,):
            raise ValueError(f"{owner}: {name} must be [B] = [{B}], got {list(lengths.shape)}")
        if lengths is not None and lengths.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{owner}: {name} must be int32 or int64, got {lengths.dtype}")
    if visible is not None and visible.shape != (B, m, 2):
        raise ValueError(f"{owner}: visible must be [B, m, 2] = [{B}, {m}, 2], got {list(visible.shape)}")
    steps = torch.arange(B + 1, device=targets.device)
    ranges: Tensor | None = None
    if history_lengths is not None:
        ends = history_lengths.to(torch.int64)[:, None].expand(B, m)
        ranges = torch.stack([torch.zeros_like(ends), ends], dim=2)
        if visible is not None:
            ranges = torch.minimum(visible, ends[:, :, None])
    elif visible is not None:
        ranges = visible
    flat_targets = targets.reshape(B * m, D)

    def restore(z: Tensor) -> Tensor:
        z = z.reshape(B, m, z.shape[-1])
        if target_lengths is None:
            return z
        real = torch.arange(m, device=z.device) < target_lengths[:, None]
        return torch.where(real[:, :, None], z, torch.zeros((), dtype=z.dtype, device=z.device))

    return Flat(
        flat_targets,
        history.reshape(B * L, D),
        steps * m,
        steps * L,
        None if ranges is None else ranges.reshape(B * m, 2),
        restore,
    )
