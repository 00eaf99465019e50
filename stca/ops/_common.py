"""What the operators' Python halves share."""

from typing import TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

_MaybeTensor = TypeVar("_MaybeTensor", bound=Tensor | None)


def check_one_device(op: str, **tensors: Tensor | None) -> None:
    """Raises ValueError unless all tensors are on the first one's device.

    Fake kernels call it: a tensor on "meta" among others sends the whole call to them, and what they return for
    tensors of another device would be memory that nobody wrote.
    """
    first: tuple[str, torch.device] | None = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if first is None:
            first = name, tensor.device
        elif tensor.device != first[1]:
            raise ValueError(f"{op}: {name} must be on the device of {first[0]}, {first[1]}, got {tensor.device}")


def autocast(tensor: _MaybeTensor) -> _MaybeTensor:
    """The tensor as `torch.autocast` hands it to torch's own operators now: float64 and integers stay what they are."""
    if tensor is None or tensor.dtype == torch.float64 or not tensor.is_floating_point():
        return tensor
    device = tensor.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensor
    return cast("_MaybeTensor", tensor.to(torch.get_autocast_dtype(device)))


def refuse_tangents(op: str, **tensors: Tensor | None) -> None:
    """Raises NotImplementedError if a tensor carries a forward-mode gradient: operators would drop it silently."""
    if torch.compiler.is_compiling():
        return
    for name, tensor in tensors.items():
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:  # type: ignore[no-untyped-call]
            raise NotImplementedError(f"{op}: forward-mode derivatives are not supported, got a tangent of {name}")
