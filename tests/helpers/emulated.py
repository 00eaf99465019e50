"""The CUDA kernels on the CPU: the PTX that nvcc makes of them, run by the machine of tests/ptx (`make ptx`)."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tuning
from cases import TargetAttentionInputs
from torch import Tensor

_LIBRARY = Path(__file__).parents[2] / "build" / "ptx" / "libstca_ptx.so"


@cache
def _library() -> ctypes.CDLL:
    if not _LIBRARY.exists():
        raise FileNotFoundError(f"{_LIBRARY} is missing: run `make ptx`, or `make test`, which does")
    torch.ops.load_library(_LIBRARY)  # type: ignore[no-untyped-call]
    library = ctypes.CDLL(str(_LIBRARY))
    library.ptx_fault.restype = library.ptx_items.restype = library.ptx_launched.restype = ctypes.c_char_p
    return library


def refuse(requests: int) -> None:
    """Has the next so many requests of kernels for shared memory refused, as by a GPU whose memory is full."""
    _library().ptx_refuse(requests)


@contextmanager
def emulated_device(
    seed: int = 1,
    shared_bytes: int = 227 * 1024,
    rough: bool = False,
    hopper: bool = False,
    multiprocessors: int | None = None,
) -> Iterator[Any]:
    """Gives the emulated operators. What torch allocates meanwhile is the memory of the emulated device.

    Warps of a block take turns in an order that `seed` chooses, which also says when asynchronous copies land. A block
    has as much shared memory as on sm_90. A `rough` device rounds as freely as the hardware may: tensor cores cut low
    bits, approximate functions err by 2 units in the last place. A `hopper` one takes Hopper's own kernels. It has few
    multiprocessors unless told otherwise, so that short histories are split too.
    """
    _library().ptx_start(seed, shared_bytes, rough, hopper, multiprocessors or (4 if hopper else 3))
    try:
        yield torch.ops.stca_ptx
    finally:
        _library().ptx_stop()


def in_new_memory(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """A copy in memory that torch allocates now."""
    return torch.empty(len(storage), dtype=torch.uint8).untyped_storage().copy_(storage)


def launched_kernels() -> list[str]:
    """Names of the kernels that the emulated device ran, in order; of the last device, where it is gone."""
    names: bytes = _library().ptx_launched()
    return names.decode().splitlines()


def emulated_fault(name: str) -> tuple[str, Tensor]:
    """Runs a kernel of tests/ptx/faults*.cu; what the machine says, and the 256 floats that the kernel had."""
    memory = torch.arange(256.0)
    with emulated_device(hopper=True):
        message = _library().ptx_fault(name.encode(), ctypes.c_void_p(memory.data_ptr()))
    assert message is not None, f"{name} is not in faults.cu or faults_sm90.cu"
    return message.decode(), memory


def tuned_kernels() -> tuning.Kernels:
    """Choices among variants of the emulated device's kernels, and these as tools/gpu_tune.py calls them."""
    _library()
    return tuning.Kernels(_LIBRARY, multiprocessors=4, shared_bytes=227 * 1024, reports=0)


def run_ptx(text: str, name: str, grid: tuple[int, ...], threads: int, shared_bytes: int, arguments: list[Any]) -> None:
    """Runs kernel `name` of PTX text on ctypes values; pointers must be to memory of the emulated device."""
    pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(each) for each in arguments))
    error = ctypes.create_string_buffer(1000)
    sizes = (ctypes.c_int * 3)(*grid)
    if _library().ptx_run(text.encode(), name.encode(), sizes, threads, shared_bytes, pointers, error, 1000):
        raise RuntimeError(error.value.decode())


class Tiling(NamedTuple):
    """As in csrc/kernels/cuda/schedule.cuh."""

    tile_rows: int
    block_rows: int
    num_ranges: int
    history: bool = False
    unit_rows: int = 0
    left_out: int = 0


class Item(NamedTuple):
    """One tile of query rows against consecutive rows of its history; where its partial result goes, or -1."""

    target_begin: int
    row_begin: int
    kv_head: int
    tile: int
    split_begin: int
    split_end: int
    partial: int


def emulated_items(
    target_offsets: Tensor, history_offsets: Tensor, heads: int, kv_heads: int, tiling: Tiling
) -> list[list[Item]]:
    """The items of each of the `tiling.num_ranges` ranges that the kernels give a call."""
    rows = int(history_offsets[-1] * kv_heads if tiling.history else target_offsets[-1] * heads)
    most = rows // tiling.tile_rows + len(target_offsets) * kv_heads
    with emulated_device():
        offsets = [target_offsets.clone(), history_offsets.clone()]
        items = torch.empty(tiling.num_ranges, most, len(Item._fields), dtype=torch.int64)  # -1: new memory is 0xff
        message = _library().ptx_items(
            ctypes.c_int64(len(target_offsets) - 1),
            *(ctypes.c_void_p(x.data_ptr()) for x in offsets),
            ctypes.c_int64(heads),
            ctypes.c_int64(kv_heads),
            (ctypes.c_int * 6)(*tiling),
            ctypes.c_void_p(items.data_ptr()),
            ctypes.c_int64(most),
        )
        assert not message, message.decode()
        return [[Item(*fields) for fields in one[one[:, 0] >= 0].tolist()] for one in items]


def emulated_target_attention(
    inputs: TargetAttentionInputs, seed: int = 1, rough: bool = False, **device: Any
) -> dict[str, Tensor]:
    """What `TargetAttentionInputs.results` gives, by the CUDA kernels: out, lse, dq, dk and, where v is given, dv."""
    with emulated_device(seed, rough=rough, **device) as ops:
        moved = inputs.on(in_new_memory)
        *tensors, scale = moved.arguments()
        out, lse, max_and_sum, _ = ops.target_attention(*tensors, scale)
        dlse = moved.dlse.to(lse.dtype)
        dq, dk, dv = ops.target_attention_backward(moved.dout, dlse, *tensors, out, max_and_sum, scale)
        results = {"out": out, "lse": lse, "dq": dq, "dk": dk} | ({} if inputs.v is None else {"dv": dv})
    return {name: x.clone() for name, x in results.items()}
