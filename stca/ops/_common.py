"""What the operators' Python halves share."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

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


def check_total(op: str, name: str, total: int | None) -> None:
    """Raises ValueError for a number of rows below 0, where it is a number and not a compiler's symbol."""
    if isinstance(total, int) and total < 0:
        raise ValueError(f"{op}: {name} must be at least 0, got {total}")


def autocast(tensor: _MaybeTensor) -> _MaybeTensor:
    """The tensor as `torch.autocast` hands it to torch's own operators now: float64 and integers stay what they are."""
    if tensor is None or not torch._C._is_any_autocast_enabled():
        return tensor
    if tensor.dtype == torch.float64 or not tensor.is_floating_point():
        return tensor
    device = tensor.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensor
    return cast("_MaybeTensor", tensor.to(torch.get_autocast_dtype(device)))


def refuse_tangents(op: str, **tensors: Tensor | None) -> None:
    """Raises NotImplementedError if a tensor carries a forward-mode gradient: operators would drop it silently."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:  # outside every forward_ad.dual_level
        return
    for name, tensor in tensors.items():
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:  # type: ignore[no-untyped-call]
            raise NotImplementedError(f"{op}: forward-mode derivatives are not supported, got a tangent of {name}")


def once_differentiable(op_name: str, op: Callable[..., Any]) -> Callable[..., Any]:
    """A backward operator for Python callers: a backward pass through it raises RuntimeError."""

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(f"{op_name}: second derivatives are not supported, got a backward pass through backward")

    torch.library.register_autograd(op.name(), refuse)  # type: ignore[attr-defined]
    return with_eager_autograd(op, lambda ctx, inputs, output: None, refuse)


def batch_as_columns(name: str) -> None:
    """Registers what `torch.vmap` makes of an operator that copies or adds up whole rows of its first argument.

    A batch of such tensors is one of wider rows: one call, and its results have the batch as their second dimension.
    Where offsets or indices are a batch too, each member is a call of its own.
    """
    op = getattr(torch.ops.stca, name).default

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        def of_member(i: int) -> list[Any]:
            leaves, spec = tree_flatten(args)
            pairs = zip(leaves, tree_leaves(in_dims), strict=True)
            return tree_unflatten([x if dim is None else x.select(dim, i) for x, dim in pairs], spec)  # type: ignore[no-any-return]

        if any(dim is not None for dim in in_dims[1:]):
            results = [op(*of_member(i)) for i in range(info.batch_size)]
            shapes = [[tuple(x.shape) for x in tree_leaves(each)] for each in results]
            if any(each != shapes[0] for each in shapes):
                raise ValueError(f"{name}: under vmap all members must give as many rows, got shapes {shapes}")
            stacked = tree_map(lambda *members: torch.stack(members), *results)
            return stacked, tree_map(lambda _: 0, stacked)
        first = tree_map(lambda x, dim: x if dim is None else x.movedim(dim, 1), args[0], in_dims[0])
        result = op(first, *args[1:])
        if isinstance(result, tuple):  # the rows, and offsets, which are nobody's batch
            return result, (1, *(None for _ in result[1:]))
        return result, tree_map(lambda dim: None if dim is None else 1, in_dims[0])

    torch.library.register_vmap(f"stca::{name}", rule)


def with_eager_autograd(
    op: Callable[..., Any], setup_context: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """`op` for Python callers, in eager mode without the kernel that register_autograd makes.

    That kernel would dispatch plain calls a second time: without a gradient these take what lies below it, with one
    they take `Recorded`. That has no setup_context, for which torch would inspect the signature at every call.
    torch.func's transforms need one, and take `Function`. Compilers and `__torch_function__` handlers take the operator
    itself.
    """

    def below_autograd(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    class Function(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*args: Any) -> Any:
            return op(*args)

    Function.setup_context = staticmethod(setup_context)  # type: ignore[method-assign]
    Function.backward = staticmethod(backward)  # type: ignore[method-assign]

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            output = below_autograd(*args)
            setup_context(ctx, args, output)
            return output

    Recorded.backward = staticmethod(backward)  # type: ignore[method-assign]

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return op(*args)
        if torch._C._are_functorch_transforms_active():
            return Function.apply(*args)  # type: ignore[no-untyped-call]
        if torch.overrides.has_torch_function(args):  # a handler may bring in tensors that require a gradient
            return op(*args)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return Recorded.apply(*args)  # type: ignore[no-untyped-call]
        return below_autograd(*args)

    return call
