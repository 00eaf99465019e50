"""The library of all variants (`make tune`), by ctypes, and how a choice follows from times."""

import ctypes
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}  # csrc/kernels/dtype.h
PRODUCTS = ("gate", "down", "gate_backward", "input", "weights")  # csrc/kernels/swiglu_ffn_norm_cuda.h
GAIN = 0.98  # a variant takes the place of the one before when it needs less than that share of its time


def _struct(name: str, fields: str) -> type[ctypes.Structure]:
    kinds = {"i": ctypes.c_int, "l": ctypes.c_int64, "d": ctypes.c_double, "b": ctypes.c_bool, "p": ctypes.c_void_p}
    pairs = [field.split(":") for field in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": [(field, kinds[kind]) for field, kind in pairs]})


Device = _struct("Device", "multiprocessors:i shared_bytes:i capability:i sm90_families:i reports:p")
Attention = _struct(
    "Attention",
    "dtype:i num_requests:l num_targets:l num_rows:l heads:l kv_heads:l key_dim:l value_dim:l scale:d shared:b q:p k:p"
    " v:p k_scale:p k_scale_row_stride:l k_scale_head_stride:l v_scale:p v_scale_row_stride:l v_scale_head_stride:l"
    " q_target_stride:l q_head_stride:l k_row_stride:l k_head_stride:l v_row_stride:l v_head_stride:l"
    " target_offsets:p history_offsets:p visible:p history_index:p out:p lse:p max_and_sum:p scores:p pair_offsets:p"
    " pool_rows:l reports:p"
    " dout:p dlse:p dq:p dk:p dv:p wide:b first_row:l dq_sums:p",
)
Product = _struct("Product", "dtype:i rows:l columns:l depth:l left:p left_stride:l right:p to:p uv:p splits:i")


class Kernels:
    """The library's choices and kernels. `stream` and the device are those of the calls."""

    def __init__(self, library: Path, multiprocessors: int, shared_bytes: int, reports: int, stream: int = 0) -> None:
        self._library = ctypes.CDLL(str(library))
        for function in ("stca_choices", "stca_tune_attention", "stca_tune_product"):
            getattr(self._library, function).restype = ctypes.c_char_p
        self._library.stca_tune_workspace.restype = ctypes.c_int64
        self._library.stca_choose.restype = ctypes.c_bool
        sizes = (ctypes.c_int64 * 3)()
        self._library.stca_tune_sizes(sizes)
        own = [ctypes.sizeof(each) for each in (Attention, Device, Product)]
        if list(sizes) != own:
            raise RuntimeError(f"{library}: structs must have {own} bytes as in tools/tuning.py, got {list(sizes)}")
        self._device, self._reports, self._stream = (multiprocessors, shared_bytes, 9), reports, ctypes.c_void_p(stream)

    def choices(self) -> dict[str, tuple[int, int]]:
        """Value of each choice, and among how many variants it is; 0: a number."""
        lines = self._library.stca_choices().decode().splitlines()
        return {name: (int(value), int(variants)) for name, value, variants in map(str.split, lines)}

    def choose(self, **values: int) -> None:
        """Sets choices."""
        for name, value in values.items():
            if not self._library.stca_choose(name.encode(), value):
                raise ValueError(f"choose: {name} must be a choice and have a variant {value}, got {self.choices()}")

    @contextmanager
    def chosen(self, **values: int) -> Iterator[None]:
        """Sets choices for a while."""
        before = {name: value for name, (value, _) in self.choices().items()}
        self.choose(**values)
        try:
            yield
        finally:
            self.choose(**before)

    def _check(self, error: bytes | None) -> None:
        if error:
            raise RuntimeError(error.decode())

    def _on(self, hopper: bool) -> ctypes.Structure:
        return Device(*self._device, -1 if hopper else 0, self._reports)

    def attention(self, x: Mapping[str, Any], backward: bool, hopper: bool = True) -> None:
        """target_attention on contiguous tensors.

        Args:
            x: q [T, H, Dk], k, v or None, target_offsets, history_offsets, out, lse, max_and_sum, and, backward, dout,
                dq, dk and dv.
            backward: Whether the gradients are made.
            hopper: Whether Hopper's kernels may take the call.
        """
        q, k, v = x["q"], x["k"], x["k"] if x["v"] is None else x["v"]
        call, pointers = Attention(dtype=DTYPES[q.dtype]), {n: t.data_ptr() for n, t in x.items() if t is not None}
        numbers = {
            "num_requests": len(x["target_offsets"]) - 1,
            "num_targets": q.size(0),
            "num_rows": k.size(0),
            "heads": q.size(1),
            "kv_heads": k.size(1),
            "key_dim": q.size(2),
            "value_dim": v.size(2),
            "scale": q.size(2) ** -0.5,
            "shared": x["v"] is None,
            "q_target_stride": q.stride(0),
            "q_head_stride": q.stride(1),
            "pool_rows": k.size(0),
            "reports": self._reports,
        }
        for name, tensor in (("k", k), ("v", v)):
            numbers |= {f"{name}_row_stride": tensor.stride(0), f"{name}_head_stride": tensor.stride(1)}
        for name, value in (pointers | {"v": v.data_ptr()} | numbers).items():
            setattr(call, name, value)
        device = self._on(hopper)
        arguments = ctypes.byref(call), ctypes.byref(device)
        size = self._library.stca_tune_workspace(*arguments, ctypes.c_bool(backward))
        memory = torch.empty(size, dtype=torch.uint8, device=q.device)
        pointer = ctypes.c_void_p(memory.data_ptr())
        self._check(self._library.stca_tune_attention(*arguments, pointer, self._stream, ctypes.c_bool(backward)))

    def product(self, name: str, left: Tensor, right: Tensor, to: Tensor, uv: Tensor | None = None) -> None:
        """One of Hopper's products of swiglu_ffn_norm; `to` of "weights" is [splits, M, C] in float32."""
        weights = name == "weights"
        call = Product(
            DTYPES[left.dtype],
            left.size(1 if weights else 0),
            to.size(-1) // (2 if name == "gate_backward" else 1),
            left.size(0 if weights else 1),
            left.data_ptr(),
            left.stride(0),
            right.data_ptr(),
            to.data_ptr(),
            None if uv is None else uv.data_ptr(),
            to.size(0) if weights else 1,
        )
        device = self._on(True)
        arguments = ctypes.byref(call), ctypes.byref(device), self._stream
        self._check(self._library.stca_tune_product(PRODUCTS.index(name), *arguments))


def best_variant(ms: Mapping[int, Sequence[float]], before: int) -> int:
    """The variant whose times have the least geometric mean over the same cases.

    Args:
        ms: Times of each variant that gave right results.
        before: What stands now, which stays unless another one needs less than GAIN of its time.
    """
    mean = {variant: math.exp(sum(map(math.log, times)) / len(times)) for variant, times in ms.items()}
    best = min(mean, key=lambda variant: mean[variant])
    return before if before in mean and mean[best] > GAIN * mean[before] else best


def threshold(ms: Mapping[int, tuple[float, float]], before: int) -> int:
    """Up to which size the first of two kernels is taken, so that the product of all times is least.

    Args:
        ms: By size, the times of the kernel for sizes up to the threshold and of the one beyond it.
        before: What stands now, which stays where it is as good.
    """

    def regret(most: int) -> float:
        return sum(math.log(up_to if size <= most else beyond) for size, (up_to, beyond) in ms.items())

    best = min([0, *ms], key=regret)
    return before if regret(before) <= regret(best) - math.log(GAIN) else best
