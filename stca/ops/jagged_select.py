"""The histories of chosen requests, each cut to its most recent rows, in one copy."""

from typing import Any

from torch import Tensor

from stca.ops._autograd import batch_as_columns, differentiable, refuse_tangents
from stca.ops._common import check_total, dynamic_size, register_fake


def jagged_select(
    values: Tensor, offsets: Tensor, index: Tensor, keep: Tensor | None = None, total: int | None = None
) -> tuple[Tensor, Tensor]:
    r"""Copies, for each s, the last `keep[s]` rows of the history of request `index[s]`.

    Selection, reordering, repetition and the recent suffix of length-extrapolative training, in one copy, range by
    range: memory beyond the result does not grow with its rows. The gradient of a row that was taken several times is
    added up in the order of s, in float32 whatever the dtype.

    Args:
        values: [N, ...] of any dtype; gradients need a floating one, on CUDA not float64.
        offsets: [R + 1], int32 or int64, from 0 to N, never decreasing.
        index: [S], int32 or int64, requests in [0, R), in any order, any number of times.
        keep: [S], int32 or int64, at least 0: how many of the last rows to take; shorter histories come whole. None:
            all rows.
        total: number of rows selected, where it is known; found from the values of the other arguments when None.

    Returns:
        values [total, ...] and offsets [S + 1] in the dtype of `offsets`.

    Raises:
        ValueError: a request out of range, a negative `keep`, a wrong `total`, 2^63 rows or more, or offsets that do
            not start at 0, decrease or do not end at N.
        RuntimeError: a result that does not fit into memory, also as torch.OutOfMemoryError.

    Source:
        Length-extrapolative training on recent suffixes, arXiv 2511.06077, section 3.4.

    Example:
        >>> values, offsets = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([0, 3, 4])
        >>> stca.ops.jagged_select(values, offsets, torch.tensor([1, 0]), torch.tensor([9, 2]))
        (tensor([3., 1., 2.]), tensor([0, 1, 3]))
    """
    refuse_tangents("jagged_select", values=values)
    selected: tuple[Tensor, Tensor] = _op(values, offsets, index, keep, total)
    return selected


@register_fake("jagged_select")
def _fake(
    values: Tensor, offsets: Tensor, index: Tensor, keep: Tensor | None, total: int | None
) -> tuple[Tensor, Tensor]:
    check_total("jagged_select", "total", total)
    size = dynamic_size("jagged_select") if total is None else total
    return values.new_empty(size, *values.shape[1:]), offsets.new_empty(index.shape[0] + 1)


@register_fake("jagged_select_backward")
def _backward_fake(grad: Tensor, offsets: Tensor, index: Tensor, keep: Tensor | None, num_rows: int) -> Tensor:
    check_total("jagged_select", "num_rows", num_rows)
    return grad.new_empty(num_rows, *grad.shape[1:])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    values, offsets, index, keep, _ = inputs
    ctx.num_rows = values.shape[0]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(offsets, index, keep)


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    offsets, index, keep = ctx.saved_tensors
    return _backward_op(grad, offsets, index, keep, ctx.num_rows), None, None, None, None


def _backward_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, offsets, index, keep, _ = inputs
    ctx.total = inputs[0].shape[0]
    ctx.save_for_backward(offsets, index, keep)


def _backward_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, _ = _op(grad, *ctx.saved_tensors, ctx.total)
    return values, None, None, None, None


_op = differentiable("jagged_select", _setup_context, _backward, batch_as_columns)
_backward_op = differentiable("jagged_select_backward", _backward_setup_context, _backward_backward, batch_as_columns)
