"""Products with weights: as torch has them, save for two things.

Where oneDNN has no products of 16-bit numbers (of bfloat16: without AVX-512), torch's own loops ran at 4 to 25 GFLOP/s
in bfloat16 and float32 at 70 to 126. Float32 sums of the same 16-bit operands are as exact, and the result is rounded
once.

A history row that nobody sees gets gradient 0, and may hold anything, as padding does: 0 times NaN would be NaN in the
weights' gradients. `project_history` leaves such rows out of them.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stca.nn.layout import is_plain, may_read
from stca.ops._autograd import autocast, autograd_function


def _slow_on_cpu() -> frozenset[torch.dtype]:
    supported = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return frozenset(supported)
    return frozenset(dtype for dtype, name in supported.items() if not getattr(torch.ops.mkldnn, name)())


SLOW_ON_CPU = _slow_on_cpu()  # dtypes


def matmul(x: Tensor, w: Tensor) -> Tensor:
    """x @ w."""
    y: Tensor = _multiplied(torch.matmul, x, w)
    return y


def einsum(equation: str, x: Tensor, w: Tensor) -> Tensor:
    """`torch.einsum` of two tensors."""
    y: Tensor = _multiplied(lambda a, b: torch.einsum(equation, a, b), x, w)
    return y


def project_history(rows: Tensor, w_k: Tensor, w_v: Tensor) -> tuple[Tensor, Tensor]:
    """rows [N, D] @ w_k and rows @ w_v; rows are converted, and kept for the backward pass, once.

    Rows whose gradient is all 0 are not part of the weights' gradients, whatever they hold.
    """
    projected: tuple[Tensor, Tensor] = _multiplied(_project, rows, w_k, w_v)
    return projected


def rows_asked_for(rows: Tensor, scale: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Rows to project, what they are scaled by, and their index: of many more than it names, as in a cache, its own.

    Where the index cannot be read, on a GPU, a wrong number in it stays there, for the operator to tell of. Rows of a
    GPU that take part in training stay as they are, for torch adds their gradients in any order.
    """
    whole = index.dtype in (torch.int32, torch.int64) and index.dim() == 1 and index.device == rows.device
    if not is_plain(index) or not whole or (P := len(rows)) <= (N := len(index)):
        return rows, scale, index  # what is not whole is the operator's to refuse
    own, wrong = None, (index < 0) | (index >= P)
    if may_read(index):
        if wrong.any():
            row = int(wrong.nonzero()[0])
            expected = f"must be a row of history in [0, {P})"
            raise ValueError(f"TargetAttention: history_index[{row}] {expected}, got {index[row]}")
    elif torch.is_grad_enabled() and rows.requires_grad:
        return rows, scale, index
    else:
        own, index = torch.where(wrong, index, torch.arange(N, device=index.device)), index.clamp(0, P - 1)
    return rows.index_select(0, index), None if scale is None else scale.index_select(0, index), own


def _multiplied(multiply: Callable[..., Any], x: Tensor, *weights: Tensor) -> Any:
    """What `multiply` makes of the operands, a tensor or a tuple of them."""
    x, ws = autocast(x), [autocast(w) for w in weights]
    if x.dtype not in SLOW_ON_CPU or any(w.dtype != x.dtype for w in ws) or not x.is_cpu:
        return multiply(x, *ws)
    with torch.autocast("cpu", enabled=False):
        wide = multiply(x.float(), *(w.float() for w in ws))
        return wide.to(x.dtype) if isinstance(wide, Tensor) else tuple(each.to(x.dtype) for each in wide)


def _products(rows: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    return tuple(rows @ w for w in weights)


def _project(rows: Tensor, *weights: Tensor) -> Any:
    if not torch.is_grad_enabled() or torch.compiler.is_exporting():
        return _products(rows, *weights)
    return _projection(rows, *weights)


def _weight_gradient(rows: Tensor, dy: Tensor) -> Tensor:
    """rows^T dy without the rows where dy is 0."""
    if dy.is_cpu and may_read(dy):
        # A look at the small result costs less than one at all rows: only NaN and infinities leave a trace.
        dw = rows.T @ dy
        if math.isfinite(dw.sum().item()):
            return dw
    return torch.where((dy != 0).any(dim=1, keepdim=True), rows, 0).T @ dy


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, *dys: Tensor) -> tuple[Tensor | None, ...]:
    rows, *weights = ctx.saved_tensors
    rows_grad, *wanted = ctx.needs_input_grad
    pairs = zip(dys, weights, strict=True)
    drows = functools.reduce(torch.add, (dy @ w.T for dy, w in pairs)) if rows_grad else None
    dws = (_weight_gradient(rows, dy) if want else None for dy, want in zip(dys, wanted, strict=True))
    return drows, *dws


_projection = autograd_function("project_history", _products, _setup_context, _backward)
