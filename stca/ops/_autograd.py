"""The operators inside torch's autograd, autocast, compilers and transforms.

Only this file calls private functions of torch. They were run with torch 2.11, 2.13, 2.14 and 2.15, which
have them all; tests/house/test_private_names.py names the one that a torch lacks. What each is needed for:

- `_AutoDispatchBelowAutograd` goes past the autograd kernel that `torch.library.register_autograd` makes.
- `_are_functorch_transforms_active` and `_len_torch_dispatch_stack` have no public counterpart.
- `_any_requires_grad` is the question of that kernel itself, None and numbers among the arguments allowed.
- `_is_any_autocast_enabled` and forward_ad's `_current_level` save a question to every tensor, 3 of the 13 microseconds
  of a short call (benchmarks/NOTES.md, "Calls").
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.overrides import has_torch_function
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from stca.ops._common import check_types

_MaybeTensor = TypeVar("_MaybeTensor", bound=Tensor | None)


def within_autocast() -> bool:
    """Whether `torch.autocast` is on, for any device."""
    return torch._C._is_any_autocast_enabled()


def autocast(tensor: _MaybeTensor) -> _MaybeTensor:
    """The tensor in the dtype in which `torch.autocast` wants it now; float64 and integers stay what they are.

    Every operator and every product of stca.nn converts its own inputs, as torch's operators do. Inputs that another
    one has converted already are returned as they are.
    """
    if not within_autocast() or not isinstance(tensor, Tensor):
        return tensor
    if tensor.dtype == torch.float64 or not tensor.is_floating_point():
        return tensor
    device = tensor.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensor
    return cast("_MaybeTensor", tensor.to(torch.get_autocast_dtype(device)))


def is_transformed() -> bool:
    """Whether a transform of torch.func sees the calls made now."""
    return torch._C._are_functorch_transforms_active()


def is_watched() -> bool:
    """Whether a transform of torch.func or a dispatch mode, such as that of fake tensors, sees the calls made now."""
    return is_transformed() or torch._C._len_torch_dispatch_stack() > 0


def refuse_tangents(op: str, **tensors: Tensor | Sequence[Tensor] | None) -> None:
    """Raises NotImplementedError if a tensor carries a forward-mode derivative, which operators would drop silently."""
    if is_compiling() or forward_ad._current_level < 0:  # outside every forward_ad.dual_level
        return
    for name, each in tensors.items():
        for tensor in each if isinstance(each, Sequence) else [each]:
            if isinstance(tensor, Tensor) and forward_ad.unpack_dual(tensor).tangent is not None:  # type: ignore[no-untyped-call]
                raise NotImplementedError(f"{op}: forward-mode derivatives are not supported, got a tangent of {name}")


def autograd_function(
    name: str, forward: Callable[..., Any], setup_context: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """`forward` with the gradient `backward`, also under the transforms of `torch.func`.

    Transforms need a function with a `setup_context`, whose signature torch would inspect at every call. Plain calls
    take one without.
    """

    def recorded(ctx: Any, *args: Any) -> Any:
        output = forward(*args)
        setup_context(ctx, args, output)
        return output

    def function(**methods: Callable[..., Any]) -> Any:
        members = {key: staticmethod(method) for key, method in methods.items()}
        return type(name, (torch.autograd.Function,), {**members, "generate_vmap_rule": True})

    plain = function(forward=recorded, backward=backward)
    transformed = function(forward=forward, setup_context=setup_context, backward=backward)

    def apply(*args: Any) -> Any:
        return (transformed if is_transformed() else plain).apply(*args)

    return apply


def differentiable(
    name: str,
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    vmap: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Registers the gradient of the operator stca::name, and returns what Python callers call in its place.

    torch makes an autograd kernel of what is registered, by which a call is dispatched twice (6 microseconds, 70 where
    caches are cold). Compilers and `__torch_function__` handlers take the operator with that kernel. Other calls go
    past it: to the kernel below where no gradient is required, else to an autograd function.

    Args:
        name: the operator's; all its arguments are positional.
        setup_context: as `torch.library.register_autograd` takes it.
        backward: likewise.
        vmap: as `torch.library.register_vmap` takes it, after the operator. None: one call for each member.
    """
    op = getattr(torch.ops.stca, name).default
    schema = op._schema
    torch.library.register_autograd(f"stca::{name}", backward, setup_context=setup_context)
    torch.library.register_vmap(f"stca::{name}", partial(vmap or one_by_one, op))
    if isinstance(schema.arguments[0].type, torch.ListType):
        op, setup_context, backward = _without_lists(op, setup_context, backward)

    def below_autograd(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    apply = autograd_function(name, below_autograd, setup_context, backward)

    def call(*args: Any) -> Any:
        if is_compiling():
            return op(*args)
        try:
            if is_transformed():
                return apply(*args)
            if has_torch_function(args):  # a handler may bring in tensors that require a gradient
                return op(*args)
            if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
                return apply(*args)
            return below_autograd(*args)
        except (RuntimeError, TypeError, ValueError, AttributeError):
            check_types(schema, args)
            raise

    return call


def once_differentiable(name: str) -> Callable[..., Any]:
    """`differentiable` for the gradient of the operator stca::name, which has none: backward through it is refused."""

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(f"{name}: second derivatives are not supported, got a backward pass through backward")

    return differentiable(f"{name}_backward", lambda ctx, inputs, output: None, refuse)


def _without_lists(
    op: Any, setup_context: Callable[..., None], backward: Callable[..., Any]
) -> tuple[Callable[..., Any], ...]:
    """An operator from a list of tensors and other arguments to a list of tensors, with each tensor as an argument.

    `torch.autograd.Function` records no tensor inside a list: it takes the list's tensors, then the other arguments.
    """
    others = len(op._schema.arguments) - 1

    def nested(flat: tuple[Any, ...]) -> tuple[Any, ...]:
        return list(flat[:-others]), *flat[-others:]

    def flat_op(*args: Any) -> tuple[Tensor, ...]:
        return tuple(op(*nested(args)))

    def flat_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        setup_context(ctx, nested(inputs), output)

    def flat_backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        flat = ctx.needs_input_grad
        ctx.needs_input_grad = nested(flat)
        try:
            of_tensors, *of_others = backward(ctx, grads)
        finally:
            ctx.needs_input_grad = flat
        return *of_tensors, *of_others

    return flat_op, flat_setup_context, flat_backward


def one_by_one(op: Any, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    """The vmap rule of any operator: a call for each member. torch would do so too, and warn that it is slow."""
    leaves, spec = tree_flatten(args)
    dims = tree_leaves(in_dims)

    def of_member(i: int) -> Any:
        members = [x if dim is None else x.select(dim, i) for x, dim in zip(leaves, dims, strict=True)]
        return op(*tree_unflatten(members, spec))

    name = op.name().removeprefix("stca::")
    if info.batch_size == 0:
        raise ValueError(f"{name}: under vmap there must be a member, got a dimension of size 0")
    results = [of_member(i) for i in range(info.batch_size)]
    shapes = [[tuple(x.shape) for x in tree_leaves(each)] for each in results]
    if any(each != shapes[0] for each in shapes):
        raise ValueError(f"{name}: under vmap all members must give as many rows, got shapes {shapes}")
    stacked = tree_map(lambda *members: torch.stack(members), *results)
    return stacked, tree_map(lambda _: 0, stacked)


def batch_as_columns(op: Any, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    """The vmap rule of an operator that copies or adds up whole rows of its first argument.

    The batch becomes the second dimension: each row gets wider, one call serves all members, and their results lie in
    that dimension too. Where offsets or indices have a batch dimension, the operator is called once for each member.
    """
    if any(dim is not None for dim in in_dims[1:]):
        return one_by_one(op, info, in_dims, *args)
    first = tree_map(lambda x, dim: x if dim is None else x.movedim(dim, 1), args[0], in_dims[0])
    result = op(first, *args[1:])
    if isinstance(result, tuple):  # rows, which have the batch, and offsets, which all members share
        return result, (1, *(None for _ in result[1:]))
    return result, tree_map(lambda dim: None if dim is None else 1, in_dims[0])
