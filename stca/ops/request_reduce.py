"""The rows of each request's targets, summed or averaged."""

from typing import Any, Literal

from torch import Tensor

from stca.ops._autograd import batch_as_columns, differentiable, refuse_tangents
from stca.ops._common import check_total, register_fake


def request_reduce(x: Tensor, target_offsets: Tensor, reduce: Literal["sum", "mean"] = "sum") -> Tensor:
    r"""Sums or averages the rows of each request's targets: :math:`y_r = \sum_t x_t` over the targets t of request r.

    Sums are accumulated in float32 (float64 for float64) in the order of the targets and rounded once, so a sum of
    1,000 bfloat16 ones is 1,000, and the bits are the same on every run. Means and their gradients are divided in
    float32 too, before they are rounded.

    Args:
        x: [T, ...], float64 (not on CUDA), float32, bfloat16 or float16.
        target_offsets: [R + 1], int32 or int64, from 0 to T, never decreasing.
        reduce: "sum" or "mean"; the mean of no targets is 0.

    Returns:
        [R, ...] in x's dtype.

    Raises:
        ValueError: another `reduce`, or offsets that do not start at 0, decrease or do not end at T.

    Source:
        Request-level batching, arXiv 2511.06077, section 3.3.

    Example:
        >>> stca.ops.request_reduce(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 1, 1, 3]))
        tensor([1., 0., 5.])
    """
    if reduce not in ("sum", "mean"):
        raise ValueError(f"request_reduce: reduce must be 'sum' or 'mean', got {reduce!r}")
    refuse_tangents("request_reduce", x=x)
    y: Tensor = _op(x, target_offsets, reduce == "mean")
    return y


@register_fake("request_reduce")
def _fake(x: Tensor, target_offsets: Tensor, mean: bool) -> Tensor:
    return x.new_empty(target_offsets.shape[0] - 1, *x.shape[1:])


@register_fake("request_reduce_backward")
def _backward_fake(grad: Tensor, target_offsets: Tensor, mean: bool, total: int) -> Tensor:
    check_total("request_reduce", "total", total)
    return grad.new_empty(total, *grad.shape[1:])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, target_offsets, ctx.mean = inputs
    ctx.total = x.shape[0]
    ctx.save_for_backward(target_offsets)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _backward_op(grad, *ctx.saved_tensors, ctx.mean, ctx.total), None, None


def _backward_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, target_offsets, ctx.mean, _ = inputs
    ctx.save_for_backward(target_offsets)


def _backward_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _op(grad, *ctx.saved_tensors, ctx.mean), None, None, None


_op = differentiable("request_reduce", _setup_context, _backward, batch_as_columns)
_backward_op = differentiable("request_reduce_backward", _backward_setup_context, _backward_backward, batch_as_columns)
