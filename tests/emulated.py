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
    torch.ops.load_library(_LIBRARY)  # type: ignore[no-untyped-call]
    library = ctypes.CDLL(str(_LIBRARY))
    library.simt_fault.restype = ctypes.c_char_p
    return library


@contextmanager
def emulated_device(seed: int = 1, shared_bytes: int = 227 * 1024) -> Iterator[Any]:
    """Gives the emulated operators. What torch allocates meanwhile is the memory of the emulated device.

    Threads of a block take turns in an order that `seed` chooses. A block has as much shared memory as on sm_90.
    """
    _library().simt_start(seed, shared_bytes)
    try:
        yield torch.ops.stca_simt
    finally:
        _library().simt_stop()


def emulated_fault(name: str) -> tuple[str, Tensor]:
    """Runs a kernel of tests/simt/faults.cpp; what the emulator says, and the 256 floats that the kernel had."""
    memory = torch.arange(256.0)
    message = _library().simt_fault(name.encode(), ctypes.c_void_p(memory.data_ptr()))
    assert message is not None, f"{name} is not in faults.cpp"
    return message.decode(), memory


def emulated_target_attention(inputs: TargetAttentionInputs, seed: int = 1) -> dict[str, Tensor]:
    """What `TargetAttentionInputs.results` gives, by the CUDA kernels: out, lse, dq, dk and, where v is given, dv."""
    with emulated_device(seed) as ops:
        moved = inputs.on(lambda storage: torch.empty(len(storage), dtype=torch.uint8).untyped_storage().copy_(storage))
        *tensors, scale = moved.arguments()
        out, lse, softmax = ops.target_attention(*tensors, scale)
        dq, dk, dv = ops.target_attention_backward(moved.dout, moved.dlse.to(lse.dtype), *tensors, out, softmax, scale)
        results = {"out": out, "lse": lse, "dq": dq, "dk": dk} | ({} if inputs.v is None else {"dv": dv})
    return {name: x.clone() for name, x in results.items()}
