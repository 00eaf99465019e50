"""Attention of the targets of each request to that request's history."""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from stca.ops._autograd import autocast, differentiable, is_transformed, once_differentiable, refuse_tangents
from stca.ops._common import Recompute, count_pairs, has_values, keeps, register_fake


@overload
def target_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    target_offsets: Tensor,
    history_offsets: Tensor,
    *,
    visible: Tensor | None = ...,
    history_index: Tensor | None = ...,
    scale: float | None = ...,
    recompute: Recompute = ...,
    return_lse: Literal[False] = ...,
    k_scale: Tensor | None = ...,
    v_scale: Tensor | None = ...,
) -> Tensor: ...
@overload
def target_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    target_offsets: Tensor,
    history_offsets: Tensor,
    *,
    visible: Tensor | None = ...,
    history_index: Tensor | None = ...,
    scale: float | None = ...,
    recompute: Recompute = ...,
    return_lse: Literal[True],
    k_scale: Tensor | None = ...,
    v_scale: Tensor | None = ...,
) -> tuple[Tensor, Tensor]: ...
def target_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    target_offsets: Tensor,
    history_offsets: Tensor,
    *,
    visible: Tensor | None = None,
    history_index: Tensor | None = None,
    scale: float | None = None,
    recompute: Recompute = True,
    return_lse: bool = False,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Exact softmax attention of every target to the history of its own request, without padding or copies.

    .. math::
        s_{t,h,n} = \text{scale} \cdot q_{t,h} \cdot k_{n,\lfloor h / G \rfloor} \qquad
        \text{lse}_{t,h} = \log \sum_n e^{s_{t,h,n}} \qquad
        \text{out}_{t,h} = \sum_n e^{s_{t,h,n} - \text{lse}_{t,h}} \, v_{n,\lfloor h / G \rfloor}

    with G = H / Hk and n over the rows of the request that target t belongs to. Request r owns the targets
    `target_offsets[r]:target_offsets[r+1]` and the history rows `history_offsets[r]:history_offsets[r+1]`. Hk = 1 is
    the reordered form of STCA, Hk = H the projected one, grouped-query attention lies between. A target that sees no
    row gets out 0, lse -inf and gradients 0. On the CPU the gradients of k and v are made only where one of them is
    required.

    Memory beyond the outputs, the gradients and kept scores does not grow with the history's length. A forward pass
    takes a few MB a thread; a backward pass on the CPU also, for each thread, the float32 gradient of one request's q,
    and for 16-bit dtypes one of all of q. With `history_index` it takes, besides, k's and v's gradients in float32
    where they have 16 bits, 4 bytes a row of k, and 4 MB a thread, or what 256 rows of both take where that is more.
    Exceptions: k and v are copied where their last dimension is not contiguous, an int32 `history_index` takes 8 bytes
    a history row, and on CUDA its backward pass takes lists of 24 bytes and a float32 gradient of every history row.

    The same call gives the same bits on every run. With other thread counts, instruction sets, GPUs, or other requests
    in the batch, work may be cut elsewhere, and sums round differently.

    Args:
        q: [T, H, Dk], float64, float32, bfloat16 or float16. Sums are accumulated in float32 (float64 for float64);
            where the CPU or GPU multiplies 16 bits itself, softmax weights are rounded to them for the next product.
        k: [N, Hk, Dk], q's dtype, or int8 with `k_scale`; Hk divides H.
        v: [N, Hk, Dv], q's dtype, or int8 with `v_scale`. None means V = K: the history is read once, and k's gradient
            is the sum of both roles.
        target_offsets: [R + 1], int32 or int64, from 0 to T, never decreasing.
        history_offsets: [R + 1], int32 or int64, from 0 to N, never decreasing.
        visible: [T, 2], int32 or int64: target t sees only rows [begin, end) of its request's history, counted from
            that history's first row. Several requests of one user can share one history this way, each without its
            future. Rows outside are not read. None: all rows.
        history_index: [N], int32 or int64, rows of k and v in [0, P): history row n is row `history_index[n]` of k
            and v, which then are [P, ...]. A row that stands for several history rows gets the sum of their gradients,
            in their order, accumulated in float32 too and rounded once. None: row n itself, P = N.
        scale: factor of the scores; 1 / sqrt(Dk) when None.
        recompute: True: the backward pass computes scores again, 7 products of `T H L Dk` with those of the forward
            pass. False: it gets them, 6 products, at 4 bytes (float64: 8) for each target, head and history row.
            "auto": they are kept where those of this call take 1 GiB at most. The gradients are the same to the bit.
            Kept are those of the reordered form alone, where V = K, without `visible`, on the CPU, outside compiled
            programs and transforms of `torch.func`, and where a gradient is required; those of requests with so few
            query rows for each history head that scores are dot products (up to about 16) are computed again all the
            same, though room is taken.
        return_lse: also return the natural logarithm of each softmax's denominator; gradients flow through it.
        k_scale: [N, Hk], float32 ([P, Hk] with `history_index`): k is int8, and row n of head j stands for
            `k_scale[n, j] * k[n, j]`. The product is made as a tile is read, in float32 (float64 for float64), and
            rounded to 16 bits where those are multiplied: to bfloat16 where q is and the CPU multiplies that itself,
            to q's dtype on CUDA. The result is that of rows that hold such products, on the CPU to the bit; on CUDA
            Hopper's own kernels take no int8. Without a backward pass. None: k has q's dtype.
        v_scale: [N, Hk], float32, the same for v. On CUDA both are given, or neither.

    Returns:
        out [T, H, Dv] in q's dtype; with `return_lse` also lse [T, H], float32 (float64 for float64).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, another `recompute`, offsets that do not start at 0,
            decrease or do not end at T or N, a visible range outside its request's history, an index that is no row of
            k, int8 without a scale or where an input requires a gradient or, on CUDA, of k or v alone, or widths that
            take more shared memory than the GPU has, for the gradients too where one is required.

    Under `torch.autocast` q, k and v are first converted to the autocast dtype, unless they are float64.

    Source:
        arXiv 2511.06077, section 3.2 (attention of target to history, and its reordering).

    Example:
        Two requests, of 2 and 1 targets, with histories of 3 and 0 rows:

        >>> q, history = torch.randn(3, 4, 8), torch.randn(3, 1, 8)
        >>> out = stca.ops.target_attention(q, history, None, torch.tensor([0, 2, 3]), torch.tensor([0, 3, 3]))
        >>> out.shape, bool((out[2] == 0).all())
        (torch.Size([3, 4, 8]), True)
    """
    if isinstance(scale, Tensor):
        raise ValueError("target_attention: scale must be a float or None, got a Tensor (it would get no gradient)")
    refuse_tangents("target_attention", q=q, k=k, v=v, k_scale=k_scale, v_scale=v_scale)
    q, k, v = autocast(q), autocast(k), autocast(v)
    inputs = q, k, v, k_scale, v_scale
    backward = torch.is_grad_enabled() and any(getattr(x, "requires_grad", False) for x in inputs)
    tensors = q, k, v, target_offsets, history_offsets, visible, history_index

    def kept_bytes() -> int:
        rows = (k if history_index is None else history_index).shape[0]
        itemsize = 8 if q.dtype == torch.float64 else 4
        return itemsize * q.shape[1] * count_pairs(q, rows, target_offsets, history_offsets, visible)

    served = inputs if _serves(q, v, target_offsets, visible) else ()
    keep = keeps("target_attention", recompute, served, kept_bytes)
    out, lse, *_ = _op(*tensors, scale, backward, k_scale, v_scale, keep)
    return (out, lse) if return_lse else out


def _serves(q: Tensor, v: Tensor | None, target_offsets: Tensor, visible: Tensor | None) -> bool:
    """Whether kept scores serve the backward pass.

    How many there are depends on values, which no compiler has, and in which members of a vmap differ.
    """
    if torch.compiler.is_compiling() or is_transformed() or v is not None or visible is not None:
        return False
    return all(isinstance(each, Tensor) and each.is_cpu and has_values(each) for each in (q, target_offsets))


@register_fake("target_attention")
def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    target_offsets: Tensor,
    history_offsets: Tensor,
    visible: Tensor | None,
    history_index: Tensor | None,
    scale: float | None,
    backward: bool = False,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    keep: bool = False,
) -> tuple[Tensor, ...]:
    T, H = q.shape[:2]
    accumulation = torch.float64 if q.dtype == torch.float64 else torch.float32
    return (
        q.new_empty(T, H, (k if v is None else v).shape[2]),
        q.new_empty(T, H, dtype=accumulation),
        q.new_empty(T, H, 2, dtype=accumulation),
        q.new_empty(torch.library.get_ctx().new_dynamic_size() if keep and q.is_cpu else 0, dtype=accumulation),
    )


@register_fake("target_attention_backward")
def _backward_fake(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    target_offsets: Tensor,
    history_offsets: Tensor,
    visible: Tensor | None,
    history_index: Tensor | None,
    out: Tensor,
    max_and_sum: Tensor,
    scale: float | None,
    history_grads: bool = True,
    scores: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    dk, dv = (q.new_empty(x.shape if x is not None and history_grads else 0) for x in (k, v))
    return q.new_empty(q.shape), dk, dv


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.scale, _, _, _, keep = inputs
    out, _, max_and_sum, scores = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(max_and_sum, scores)
    ctx.save_for_backward(*tensors, out, max_and_sum, scores if keep else None)


def _backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    *inputs, out, max_and_sum, scores = ctx.saved_tensors
    if dout is None and dlse is None:
        return (None,) * 12
    if dout is None:
        dout = torch.zeros_like(out)
    history_grads = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
    dq, dk, dv = _backward_op(dout, dlse, *inputs, out, max_and_sum, ctx.scale, history_grads, scores)
    own_dv = history_grads and inputs[2] is not None
    return dq, dk if history_grads else None, dv if own_dv else None, *(None,) * 9


_op = differentiable("target_attention", _setup_context, _backward)
_backward_op = once_differentiable("target_attention")
