"""Products with weights: as torch has them, save for two things.

Where oneDNN has no products of 16-bit numbers (of bfloat16: without AVX-512), torch's own loops ran at 4 to 25 GFLOP/s
in bfloat16 and float32 at 70 to 126. Float32 sums of the same 16-bit operands are as exact, and the result is rounded
once.

A history row that nobody sees gets gradient 0, and may hold anything, as padding does: 0 times NaN would be NaN in the
weights' gradients. `project_history` leaves such rows out of them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stca.nn.layout import may_read
from stca.ops._common import autocast


def _slow_on_cpu() -> frozenset[torch.dtype]:
    supported = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return frozenset(supported)
    return frozenset(dtype for dtype, name in supported.items() if not getattr(torch.ops.mkldnn, name)())


SLOW_ON_CPU = _slow_on_cpu()  # dtypes


def matmul(x: Tensor, w: Tensor) -> Tensor:
    """x @ w."""
    return _multiplied(torch.matmul, x, w)[0]


def project_history(rows: Tensor, *weights: Tensor) -> list[Tensor]:
    """rows @ w for each w; rows are converted, and kept for the backward pass, once.

    Rows whose gradient is all 0 are not part of the weights' gradients, whatever they hold.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_exporting():
        return _multiplied(_RowsProduct.apply, rows, *weights)
    return _multiplied(torch.matmul, rows, *weights)


def einsum(equation: str, x: Tensor, w: Tensor) -> Tensor:
    """`torch.einsum` of two tensors."""
    return _multiplied(lambda a, b: torch.einsum(equation, a, b), x, w)[0]


def _multiplied(multiply: Callable[[Tensor, Tensor], Tensor], x: Tensor, *weights: Tensor) -> list[Tensor]:
    x, ws = autocast(x), [autocast(w) for w in weights]
    if x.dtype not in SLOW_ON_CPU or any(w.dtype != x.dtype for w in ws) or not x.is_cpu:
        return [multiply(x, w) for w in ws]
    wide = x.float()
    with torch.autocast("cpu", enabled=False):
        return [multiply(wide, w.float()).to(x.dtype) for w in ws]


class _RowsProduct(torch.autograd.Function):
    """rows [N, D] @ w [D, F]."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, w: Tensor) -> Tensor:
        return rows @ w

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, w = ctx.saved_tensors
        drows = dy @ w.T if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return drows, None
        if may_read(dy) and dy.is_cpu:
            # A look at the small result costs less than one at all rows: only NaN and infinities leave a trace.
            dw = rows.T @ dy
            if bool(dw.isfinite().all()):
                return drows, dw
        return drows, torch.where((dy != 0).any(dim=1, keepdim=True), rows, 0).T @ dy
