"""What the operators' Python halves share besides autograd."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

Recompute = bool | Literal["auto"]
KEPT_BYTES = 2**30  # what "auto" keeps at most, in one call

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


_KINDS: dict[str, tuple[Any, str]] = {
    "Tensor": (Tensor, "a Tensor"),
    "float": ((float, int), "a number"),
    "int": ((int, torch.SymInt), "an integer"),
    "bool": (bool, "a bool"),
}


def check_types(schema: Any, args: tuple[Any, ...]) -> None:
    """Raises for the first of an operator's arguments that is not of its type, by the operator's name and its own.

    The dispatcher's own error is a RuntimeError, which callers take for something else than a wrong argument.

    Raises:
        TypeError: another type.
        ValueError: an integer that has more than 64 bits.
    """
    op, arguments = schema.name.removeprefix("stca::").removesuffix("_backward"), list(schema.arguments)
    names, types = [each.name for each in arguments], [str(each.type) for each in arguments]
    if types[0] == "List[Tensor]":  # its tensors come one by one
        count = len(args) - len(arguments) + 1
        names[:1], types[:1] = [f"{names[0].removesuffix('s')}[{i}]" for i in range(count)], ["Tensor"] * count
    for name, kind, value in zip(names, types, args, strict=False):
        optional = kind.startswith("Optional[")
        expected, what = _KINDS[kind.removeprefix("Optional[").removesuffix("]").replace("SymInt", "int")]
        if value is None and optional:
            continue
        if not isinstance(value, expected):
            either = " or None" if optional else ""
            raise TypeError(f"{op}: {name} must be {what}{either}, got {type(value).__name__} {value!r}") from None
        if what == "an integer" and isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"{op}: {name} must be an integer of 64 bits, got {value}") from None


def dynamic_size(op: str) -> Any:
    """A compiler's symbolic number of rows, for an operator whose `total` is not given."""
    try:
        return torch.library.get_ctx().new_dynamic_size()
    except RuntimeError:  # on the device "meta" there are neither values nor symbols
        raise ValueError(f"{op}: total must be given for tensors on the device meta, got None") from None


def check_total(op: str, name: str, total: int | None) -> None:
    """Raises ValueError for a negative number of rows. A compiler's symbolic number cannot be judged and passes."""
    if isinstance(total, int) and total < 0:
        raise ValueError(f"{op}: {name} must be at least 0, got {total}")


def keeps(op: str, recompute: Recompute, tensors: Sequence[Tensor | None], size: Callable[[], int]) -> bool:
    """Whether a call with these tensors keeps what its backward pass needs, `size()` bytes, or computes it again."""
    if recompute is not True and recompute is not False and recompute != "auto":
        raise ValueError(f"{op}: recompute must be True, False or 'auto', got {recompute!r}")
    if recompute is True or not torch.is_grad_enabled():
        return False
    if recompute == "auto" and torch.compiler.is_exporting():  # sizes are not known, and nothing is trained
        return False
    if not any(getattr(each, "requires_grad", False) for each in tensors):
        return False
    try:
        return recompute is False or size() <= KEPT_BYTES
    except (AttributeError, IndexError, RuntimeError, TypeError):  # the operator refuses what has no size, by its name
        return False


def has_values(*tensors: Tensor | None) -> bool:
    """Whether all tensors hold numbers: not those of the device "meta", nor a compiler's."""
    return not any(x is not None and (x.is_meta or is_fake(x)) for x in tensors)


def count_pairs(q: Tensor, rows: int, target_offsets: Tensor, history_offsets: Tensor, visible: Tensor | None) -> int:
    """Targets with a history row that they see; of tensors without values as many as if all requests were alike."""
    if not has_values(target_offsets, history_offsets, visible):
        return q.shape[0] * rows // max(1, target_offsets.shape[0] - 1)
    if visible is not None:
        return int((visible[:, 1] - visible[:, 0]).sum())
    return int((target_offsets.diff().long() * history_offsets.diff().long()).sum())
