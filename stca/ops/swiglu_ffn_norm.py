"""A gated feed-forward network and a layer norm, row by row: the history path of one STCA layer."""

from typing import Any

import torch
from torch import Tensor

from stca.ops._autograd import autocast, differentiable, once_differentiable, refuse_tangents
from stca.ops._common import register_fake


def swiglu_ffn_norm(
    x: Tensor,
    w_u: Tensor,
    w_v: Tensor,
    w_o: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    r"""SwiGLU feed-forward network without biases, then layer norm, without ever storing its hidden rows.

    .. math::
        h = \big((x W_u) \odot \mathrm{silu}(x W_v)\big) W_o \qquad
        y = \frac{h - \mathrm{mean}(h)}{\sqrt{\mathrm{var}(h) + \epsilon}} \odot \text{norm\_weight} + \text{norm\_bias}

    Tiles of rows go through the whole network while they are in cache. For its backward pass the op keeps x, y and two
    numbers per row: a training step holds `2 D * itemsize + 8` bytes per row, against about `(4 F + 3 D) * itemsize` of
    the eager composition. The backward pass computes the hidden rows again. It recovers the normalised rows from y as
    `(y - norm_bias) / norm_weight`, and computes h again where that would lose digits: for 16-bit dtypes, where
    norm_bias is more than 8 times the term that is added to it, and where norm_weight is close to the smallest or the
    largest numbers of its dtype. As with `torch.sigmoid`, y must not be changed in place before the backward pass. On
    the CPU x's gradient is computed only where it is required. On CUDA the products are torch's, in chunks of rows, and
    each product is rounded to x's dtype, as in plain PyTorch.

    A row whose incoming gradient is all 0, as of padding that nobody sees, leaves no trace in the weights' gradients
    and gets a gradient of 0, whatever it holds: NaN, infinities or numbers whose products overflow, of which plain
    PyTorch makes NaN. On the CPU the backward pass takes no time for such rows.

    Args:
        x: [N, D], float64, float32, bfloat16 or float16. Sums are accumulated in float32 (float64 for float64);
            where the CPU multiplies bfloat16 itself, hidden rows are rounded to it for the next product, as in PyTorch.
        w_u: [D, F], x's dtype, as are all weights.
        w_v: [D, F].
        w_o: [F, D].
        norm_weight: [D], or None: no norm, y = h.
        norm_bias: [D], or None: zero.
        eps: added to the variance of h.

    Returns:
        y [N, D] in x's dtype.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or a norm_bias without a norm_weight.

    Under `torch.autocast` all inputs are first converted to the autocast dtype, unless they are float64.

    Source:
        arXiv 2511.06077, section 3.2 (history side of a layer).

    Example:
        >>> x, w_u, w_v, w_o = torch.randn(5, 8), torch.randn(8, 16), torch.randn(8, 16), torch.randn(16, 8)
        >>> y = stca.ops.swiglu_ffn_norm(x, w_u, w_v, w_o, torch.ones(8))
        >>> bool((y.mean(dim=1).abs() < 1e-5).all())
        True
    """
    refuse_tangents("swiglu_ffn_norm", x=x, w_u=w_u, w_v=w_v, w_o=w_o, norm_weight=norm_weight, norm_bias=norm_bias)
    inputs = x, w_u, w_v, w_o, norm_weight, norm_bias
    y: Tensor = _op(*map(autocast, inputs), eps)[0]
    return y


@register_fake("swiglu_ffn_norm")
def _fake(x: Tensor, w_u: Tensor, w_v: Tensor, w_o: Tensor, norm_weight: Tensor | None, *_: Any) -> tuple[Tensor, ...]:
    accumulation = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = 0 if norm_weight is None else x.shape[0]
    return (
        x.new_empty(x.shape),
        x.new_empty(rows, dtype=accumulation),
        x.new_empty(rows, dtype=accumulation),
    )


@register_fake("swiglu_ffn_norm_backward")
def _backward_fake(
    dy: Tensor,
    x: Tensor,
    w_u: Tensor,
    w_v: Tensor,
    w_o: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    y: Tensor | None = None,  # torch leaves trailing arguments out where they equal the schema's defaults
    x_grad: bool = True,
) -> tuple[Tensor, ...]:
    D = x.shape[1]
    return (
        x.new_empty(x.shape if x_grad else 0),
        *(like.new_empty(like.shape) for like in (w_u, w_v, w_o)),
        x.new_empty(0 if norm_weight is None else D),
        x.new_empty(0 if norm_bias is None else D),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, w_u, w_v, w_o, norm_weight, norm_bias, _ = inputs
    y, mean, rstd = output
    # The normalised rows are recovered from y, save in 16 bits, which are too few, and on CUDA, which computes h again.
    recovers = norm_weight is not None and x.dtype in (torch.float32, torch.float64) and x.device.type == "cpu"
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, w_u, w_v, w_o, norm_weight, norm_bias, mean, rstd, y if recovers else None)


def _backward(ctx: Any, dy: Tensor, dmean: Tensor, drstd: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # read once, since checkpointing drops them after the first read
    norm_weight, norm_bias = saved[4:6]
    x_grad = ctx.needs_input_grad[0]
    dx, dw_u, dw_v, dw_o, dnorm_weight, dnorm_bias = _backward_op(dy, *saved, x_grad)
    return (
        dx if x_grad else None,
        dw_u,
        dw_v,
        dw_o,
        None if norm_weight is None else dnorm_weight,
        None if norm_bias is None else dnorm_bias,
        None,
    )


_op = differentiable("swiglu_ffn_norm", _setup_context, _backward)
_backward_op = once_differentiable("swiglu_ffn_norm")
