"""Checks that the fake kernels of all operators make."""

import torch
from torch import Tensor


def check_one_device(op: str, **tensors: Tensor | None) -> None:
    """Raises ValueError unless all tensors are on the device of the first one.

    If one argument is on the device "meta", torch runs the fake kernel for the whole call. What that returned on
    another argument's device would be uninitialised memory, so the call must fail.
    """
    first: tuple[str, torch.device] | None = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if first is None:
            first = name, tensor.device
        elif tensor.device != first[1]:
            raise ValueError(f"{op}: {name} must be on the device of {first[0]}, {first[1]}, got {tensor.device}")


def check_total(op: str, name: str, total: int | None) -> None:
    """Raises ValueError for a negative number of rows. A compiler's symbolic number cannot be judged and passes."""
    if isinstance(total, int) and total < 0:
        raise ValueError(f"{op}: {name} must be at least 0, got {total}")
