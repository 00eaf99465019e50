"""Products with weights, in float32 where torch multiplies 16-bit numbers one by one.

A CPU without AVX-512 has no such products in oneDNN: torch's own loops then ran at 0.5 to 16 GFLOP/s in bfloat16 where
float32 ran at 50 to 90. Float32 sums of the same 16-bit operands are as exact, and the result is rounded once.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from stca.ops._common import autocast


def _slow_on_cpu() -> frozenset[torch.dtype]:
    supported = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return frozenset(supported)
    return frozenset(dtype for dtype, name in supported.items() if not getattr(torch.ops.mkldnn, name)())


SLOW_ON_CPU = _slow_on_cpu()  # dtypes


def matmul(x: Tensor, w: Tensor) -> Tensor:
    """x @ w."""
    return _multiplied(torch.matmul, x, w)


def einsum(equation: str, x: Tensor, w: Tensor) -> Tensor:
    """`torch.einsum` of two tensors."""
    return _multiplied(lambda a, b: torch.einsum(equation, a, b), x, w)


def _multiplied(multiply: Callable[[Tensor, Tensor], Tensor], x: Tensor, w: Tensor) -> Tensor:
    x, w = autocast(x), autocast(w)
    if x.dtype not in SLOW_ON_CPU or w.dtype != x.dtype or not x.is_cpu:
        return multiply(x, w)
    with torch.autocast("cpu", enabled=False):
        return multiply(x.float(), w.float()).to(x.dtype)
