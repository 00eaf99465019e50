"""A row per request, repeated for each of its targets."""

from collections.abc import Sequence
from typing import Any, overload

from torch import Tensor

from stca.ops._autograd import batch_as_columns, differentiable, refuse_tangents
from stca.ops._common import check_total, dynamic_size, register_fake
from stca.ops.request_reduce import request_reduce


@overload
def request_gather(x: Tensor, target_offsets: Tensor, *, total: int | None = ...) -> Tensor: ...
@overload
def request_gather(x: Sequence[Tensor], target_offsets: Tensor, *, total: int | None = ...) -> list[Tensor]: ...
def request_gather(
    x: Tensor | Sequence[Tensor], target_offsets: Tensor, *, total: int | None = None
) -> Tensor | list[Tensor]:
    r"""Repeats each request's row for each of its targets: :math:`y_t = x_r` for the request r of target t.

    The gradient is `request_reduce`: a sum over each request's targets, in float32 whatever the dtype and in a fixed
    order. Targets lie grouped by request, so there is no index tensor, no sort and no atomic addition.

    Args:
        x: [R, ...] of any dtype (gradients need a floating one, on CUDA not float64), or a sequence of such tensors,
            of several widths and dtypes, gathered in one call.
        target_offsets: [R + 1], int32 or int64, from 0, never decreasing: request r owns targets
            `target_offsets[r]:target_offsets[r+1]`.
        total: T, the last offset; read from `target_offsets` when None.

    Returns:
        [T, ...] in x's dtype, or a list of such tensors.

    Raises:
        TypeError: an x that is neither a tensor nor a sequence of tensors.
        ValueError: an x whose first dimension is not R, a negative `total`, or offsets that do not start at 0, decrease
            or do not end at `total`.
        RuntimeError: a result that does not fit into memory, also as torch.OutOfMemoryError.

    Source:
        Request-level batching, arXiv 2511.06077, section 3.3.

    Example:
        >>> stca.ops.request_gather(torch.tensor([10.0, 20.0]), torch.tensor([0, 1, 3]))
        tensor([10., 20., 20.])
    """
    if not isinstance(x, Tensor | Sequence):
        raise TypeError(f"request_gather: x must be a Tensor or a sequence of them, got {type(x).__name__} {x!r}")
    xs = [x] if isinstance(x, Tensor) else list(x)
    refuse_tangents("request_gather", x=xs)
    ys: tuple[Tensor, ...] = _op(*xs, target_offsets, total)
    return ys[0] if isinstance(x, Tensor) else list(ys)


@register_fake("request_gather")
def _fake(xs: Sequence[Tensor], target_offsets: Tensor, total: int | None) -> list[Tensor]:
    check_total("request_gather", "total", total)
    size = dynamic_size("request_gather") if total is None else total
    return [x.new_empty(size, *x.shape[1:]) for x in xs]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[1])


def _backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    (target_offsets,) = ctx.saved_tensors
    needed = zip(grads, ctx.needs_input_grad[0], strict=True)
    dxs = [request_reduce(grad, target_offsets) if grad is not None and need else None for grad, need in needed]
    return dxs, None, None


_op = differentiable("request_gather", _setup_context, _backward, batch_as_columns)
