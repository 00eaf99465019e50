"""What each order of attention costs on this machine: measured once, kept in a file, replaced at will."""

import json
import os
import platform
import re
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import stca
from stca import ops
from stca.nn.product import matmul


class OrderCosts(NamedTuple):
    """Time of a FLOP of attention, in each order, over that of a FLOP of the products that project keys and values."""

    reordered: float
    projected: float


BY_FLOPS = OrderCosts(1.0, 1.0)
_ROUNDS, _ROUNDS_LEAST, _SECONDS = 8, 3, 1.0


def order_costs(device: torch.device, dtype: torch.dtype, training: bool, dim: int = 256, heads: int = 8) -> OrderCosts:
    r"""What `TargetAttention(order="auto")` weighs FLOPs with.

    The first that there is of: the environment variable STCA_ORDER_COSTS ("reordered,projected", "1,1" for FLOPs
    alone); the file `$XDG_CACHE_HOME/stca/order.json` (`~/.cache` by default), by version, processor, threads,
    dtype, pass and size; a measurement of about a second, near the number of targets at which both orders take as many
    FLOPs, which goes into that file. While torch compiles or captures a CUDA graph, nothing is measured: FLOPs alone
    decide then.

    Args:
        device: where the module runs; a GPU is waited for while it is measured.
        dtype: of queries and history.
        training: costs of forward and backward pass together, else of the forward pass.
        dim: D of the module.
        heads: its H.

    Raises:
        ValueError: heads that do not divide dim, or STCA_ORDER_COSTS that is not two positive numbers.

    Example:
        >>> costs = stca.nn.order_costs(torch.device("cpu"), torch.float32, training=False)
        >>> costs.reordered > 0 and costs.projected > 0
        True
    """
    if min(dim, heads) < 1 or dim % heads != 0:
        raise ValueError(f"order_costs: heads must divide dim, got dim {dim} and heads {heads}")
    if given := os.environ.get("STCA_ORDER_COSTS"):
        return _parsed(given)
    if device.type not in ("cpu", "cuda"):
        return BY_FLOPS
    what = f"{dtype}, {'training' if training else 'inference'}, D={dim} H={heads}".removeprefix("torch.")
    name = f"stca {stca.__version__}, {_processor(device)}, {what}"
    if name not in _costs():
        capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if capturing or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return BY_FLOPS
        measured = _measure(device, dtype, training, dim, heads)
        if measured is None:
            return BY_FLOPS
        _costs()[name] = measured
        _write()
    return _costs()[name]


# A compiled program keeps the costs that it was compiled with.
compiled_order_costs: Callable[[torch.device, torch.dtype, bool, int, int], OrderCosts]
compiled_order_costs = torch.compiler.assume_constant_result(order_costs)  # type: ignore[no-untyped-call]


def _parsed(text: str) -> OrderCosts:
    try:
        reordered, projected = map(float, text.split(","))
    except ValueError:
        reordered = projected = 0.0
    if not (reordered > 0 and projected > 0):
        raise ValueError(f"STCA_ORDER_COSTS must be two positive numbers like '1.0,1.5', got {text!r}")
    return OrderCosts(reordered, projected)


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu()}, {torch.get_num_threads()} threads, {stca.cpu_isa()}"


@cache
def _cpu() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def _file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stca" / "order.json"


@cache
def _costs() -> dict[str, OrderCosts]:
    """Everything known, as the file had it when it was first needed."""
    try:
        return {name: OrderCosts(*map(float, costs)) for name, costs in json.loads(_file().read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # none yet, or not one of ours: measured again


def _write() -> None:
    """Keeps what is known, if there is a place for it."""
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        part = _file().with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(_costs(), indent=1) + "\n")
        part.replace(_file())
    except OSError:
        pass


def _measure(device: torch.device, dtype: torch.dtype, training: bool, D: int, H: int) -> OrderCosts | None:
    """None where tensors are not real, as while shapes are propagated."""
    m = min(max(D // max(H - 1, 1), 1), 64)  # about where H * m * D and m * D + D * D, FLOPs of a row, are equal
    R, elements = (2, 2**18) if device.type == "cpu" else (64, 2**20)
    L = min(max(elements // D, 256), 2048)
    with torch.inference_mode(False), torch.set_grad_enabled(training), torch.autocast(device.type, enabled=False):

        def filled(*shape: int) -> Tensor:  # not drawn: the caller's random numbers stay what they are
            return torch.full(shape, 0.1, dtype=dtype, device=device, requires_grad=training)

        rows = filled(R * L, D)
        if type(rows) is not Tensor:
            return None
        weight, k = filled(D, D), filled(R * L, H, D // H)
        offsets = [torch.arange(R + 1, device=device) * length for length in (m, L)]
        u, q = filled(R * m, H, D), filled(R * m, H, D // H)
        seconds = _shortest(
            {
                "project": lambda: matmul(rows, weight),
                "reordered": lambda: ops.target_attention(u, rows[:, None], None, *offsets),
                "projected": lambda: ops.target_attention(q, k, k, *offsets),
            },
            device,
            training,
        )
    flop = seconds["project"] / (2 * D * D)
    attention = 4 * D * m
    return OrderCosts(seconds["reordered"] / (attention * H) / flop, seconds["projected"] / attention / flop)


def _shortest(calls: dict[str, Callable[[], Tensor]], device: torch.device, training: bool) -> dict[str, float]:
    """Seconds of each call at its best, which a busy machine disturbs least; the calls take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for turn in range(_ROUNDS):
        if turn >= _ROUNDS_LEAST and time.perf_counter() - began > _SECONDS:
            break
        for name, call in calls.items():
            start = time.perf_counter()
            result = call()
            if training:
                result.backward(result.detach())  # type: ignore[no-untyped-call]
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - start)
    return {name: min(each) for name, each in times.items()}
