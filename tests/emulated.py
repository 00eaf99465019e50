"""The CUDA kernels on the CPU: the library that tests/simt builds, `make simt`."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from cases import TargetAttentionInputs
from torch import Tensor

_LIBRARY = Path(__file__).parents[1] / "build" / "simt" / "libstca_simt.so"


@cache
def _library() -> ctypes.CDLL:
    if not _LIBRARY.exists():
        raise FileNotFoundError(f"{_LIBRARY} is missing: run `make simt`, or `make test`, which does")
    torch.ops.load_library(_LIBRARY)
    return ctypes.CDLL(str(_LIBRARY))


@contextmanager
def emulated_device(seed: int = 1) -> Iterator[Any]:
    """Gives the emulated operators. What torch allocates meanwhile is the memory of the emulated device.

    Threads of a block take turns in an order that `seed` chooses.
    """
    _library().simt_start(seed)
    try:
        yield torch.ops.stca_simt
    finally:
        _library().simt_stop()


def emulated_results(inputs: TargetAttentionInputs, seed: int = 1) -> dict[str, Tensor]:
    """What `TargetAttentionInputs.results` gives, by the CUDA kernels: out, lse, dq, dk and, where v is given, dv."""
    with emulated_device(seed) as ops:
        *tensors, scale = (x.clone() if isinstance(x, Tensor) else x for x in inputs.arguments())
        out, lse, softmax = ops.target_attention(*tensors, scale)
        dlse = inputs.dlse.to(lse.dtype, copy=True)
        dq, dk, dv = ops.target_attention_backward(inputs.dout.clone(), dlse, *tensors, out, softmax, scale)
        results = {"out": out, "lse": lse, "dq": dq, "dk": dk} | ({} if inputs.v is None else {"dv": dv})
    return {name: x.clone() for name, x in results.items()}
