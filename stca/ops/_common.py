"""What the operators' Python halves share besides autograd."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

_Fake = TypeVar("_Fake", bound=Callable[..., Any])


def register_fake(name: str) -> Callable[[_Fake], _Fake]:
    """Registers the fake kernel of the operator stca::name, and before it a check that all tensors are on one device.

    If one argument is on the device "meta", torch runs the fake kernel for the whole call. What that returned on
    another argument's device would be uninitialised memory: the call raises ValueError.
    """
    names = [argument.name for argument in getattr(torch.ops.stca, name).default._schema.arguments]

    def register(fake: _Fake) -> _Fake:
        def checked(*args: Any, **kwargs: Any) -> Any:
            _check_one_device(name.removesuffix("_backward"), dict(zip(names, args, strict=False)) | kwargs)
            return fake(*args, **kwargs)

        torch.library.register_fake(f"stca::{name}", checked)
        return fake

    return register


def _check_one_device(op: str, arguments: dict[str, Any]) -> None:
    tensors: dict[str, Tensor] = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, list | tuple):  # "xs" of the operator is "x" of the function
            tensors |= {f"{name.removesuffix('s')}[{i}]": x for i, x in enumerate(value) if isinstance(x, Tensor)}
    first = next(iter(tensors), "")
    for name, tensor in tensors.items():
        if tensor.device != tensors[first].device:
            device = tensors[first].device
            raise ValueError(f"{op}: {name} must be on the device of {first}, {device}, got {tensor.device}")


def check_total(op: str, name: str, total: int | None) -> None:
    """Raises ValueError for a negative number of rows. A compiler's symbolic number cannot be judged and passes."""
    if isinstance(total, int) and total < 0:
        raise ValueError(f"{op}: {name} must be at least 0, got {total}")
