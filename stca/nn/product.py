"""Products with weights, in float32 where torch multiplies 16-bit numbers one by one.

Where oneDNN has no such products (of bfloat16: without AVX-512), torch's own loops ran at 4 to 25 GFLOP/s in bfloat16
and float32 at 70 to 126. Float32 sums of the same 16-bit operands are as exact, and the result is rounded once.
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
    return matmuls(x, w)[0]


def matmuls(x: Tensor, *weights: Tensor) -> list[Tensor]:
    """x @ w for each w; x is converted, and kept for the backward pass, once."""
    return _multiplied(torch.matmul, x, *weights)


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
