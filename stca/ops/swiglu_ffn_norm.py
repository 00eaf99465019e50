"""A gated feed-forward network and a layer norm, row by row: the history path of one STCA layer."""

from typing import Any

import torch
from torch import Tensor

from stca.ops._autograd import autocast, differentiable, once_differentiable, refuse_tangents
from stca.ops._common import Recompute, keeps, register_fake


def swiglu_ffn_norm(
    x: Tensor,
    w_u: Tensor,
    w_v: Tensor,
    w_o: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    recompute: Recompute = True,
) -> Tensor:
    r"""SwiGLU feed-forward network without biases, then layer norm, whose hidden rows need not be stored.

    .. math::
        h = \big((x W_u) \odot \mathrm{silu}(x W_v)\big) W_o \qquad
        y = \frac{h - \mathrm{mean}(h)}{\sqrt{\mathrm{var}(h) + \epsilon}} \odot \text{norm\_weight} + \text{norm\_bias}

    Tiles of rows go through the whole network while they are in cache. For its backward pass the op keeps x, y and two
    numbers per row: a training step holds `2 D * itemsize + 8` bytes per row, against about `(4 F + 3 D) * itemsize` of
    the eager composition. The backward pass computes the hidden rows again, so that a step takes 11 products of `D F`
    (12 where it computes h again too) in place of 9. With `recompute=False` the op keeps :math:`x W_u` and
    :math:`x W_v` in x's dtype as well, and h in float32 (float64 for float64; on CUDA in x's dtype):
    `2 F * itemsize + 4 D` bytes per row more, and a step takes 9. y is the same to the bit.

    Without h the backward pass recovers the normalised rows from y as `(y - norm_bias) / norm_weight`, and computes h
    again where that would lose digits: for 16-bit dtypes, where norm_bias is more than 8 times the term that is added
    to it, and where norm_weight is close to the smallest or the largest numbers of its dtype. As with `torch.sigmoid`,
    y must not be changed in place before the backward pass. On the CPU x's gradient is computed only where it is
    required. On CUDA the products are torch's, in chunks of rows, and each product is rounded to x's dtype, as in plain
    PyTorch.

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
        recompute: True: the backward pass computes hidden rows again. False: it gets those of the forward pass, which
            are kept where a gradient is required. "auto": they are kept where those of this call take 1 GiB at most.

    Returns:
        y [N, D] in x's dtype.

    Raises:
        TypeError: an argument that is no tensor, or an eps that is no number.
        ValueError: shapes, dtypes or devices that do not fit, a norm_bias without a norm_weight, or another
            `recompute`.
        RuntimeError: weights whose packed copy does not fit into memory, also as torch.OutOfMemoryError.

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
    x, w_u = autocast(x), autocast(w_u)
    others = [autocast(each) for each in (w_v, w_o, norm_weight, norm_bias)]

    def kept_bytes() -> int:
        return x.shape[0] * (2 * w_u.shape[-1] * x.itemsize + x.shape[-1] * max(4, x.itemsize))

    y: Tensor = _op(x, w_u, *others, eps, keeps("swiglu_ffn_norm", recompute, (x, w_u, *others), kept_bytes))[0]
    return y


@register_fake("swiglu_ffn_norm")
def _fake(
    x: Tensor,
    w_u: Tensor,
    w_v: Tensor,
    w_o: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    keep: bool = False,
) -> tuple[Tensor, ...]:
    accumulation = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = 0 if norm_weight is None else x.shape[0]
    return (
        x.new_empty(x.shape),
        x.new_empty(rows, dtype=accumulation),
        x.new_empty(rows, dtype=accumulation),
        x.new_empty((x.shape[0], 2 * w_u.shape[1]) if keep else 0),
        x.new_empty(x.shape if keep and norm_weight is not None else 0, dtype=x.dtype if x.is_cuda else accumulation),
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
    uv: Tensor | None = None,
    h: Tensor | None = None,
) -> tuple[Tensor, ...]:
    D = x.shape[1]
    return (
        x.new_empty(x.shape if x_grad else 0),
        *(like.new_empty(like.shape) for like in (w_u, w_v, w_o)),
        x.new_empty(0 if norm_weight is None else D),
        x.new_empty(0 if norm_bias is None else D),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, norm_weight, keep = inputs[0], inputs[4], inputs[7]
    y, *statistics, uv, h = output
    # The normalised rows are recovered from y, save in 16 bits, which are too few, and on CUDA, which computes h again.
    recovers = norm_weight is not None and x.dtype in (torch.float32, torch.float64) and x.device.type == "cpu"
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else uv and h get gradients of zeros
    for_h = (None, uv, h) if keep else (y if recovers else None, None, None)
    ctx.save_for_backward(*inputs[:6], *statistics, *for_h)


def _backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    *saved, uv, h = ctx.saved_tensors  # read once, since checkpointing drops them after the first read
    if dy is None:
        return (None,) * 8
    norm_weight, norm_bias = saved[4:6]
    x_grad = ctx.needs_input_grad[0]
    dx, dw_u, dw_v, dw_o, dnorm_weight, dnorm_bias = _backward_op(dy, *saved, x_grad, uv, h)
    return (
        dx if x_grad else None,
        dw_u,
        dw_v,
        dw_o,
        None if norm_weight is None else dnorm_weight,
        None if norm_bias is None else dnorm_bias,
        None,
        None,
    )


_op = differentiable("swiglu_ffn_norm", _setup_context, _backward)
_backward_op = once_differentiable("swiglu_ffn_norm")
