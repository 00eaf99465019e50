"""Every operator against its oracle on a small case, forward and backward: `python -m stca.check`.

What to run first on a new machine, and to send with a bug report. Prints versions, then for each device, instruction
set and dtype the largest error of each operator, relative to the largest number of its result or gradient; exits with
1 where one is over its bound. Takes seconds, and no test tools.
"""

import sys
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import stca

# Relative errors that rounding to a dtype explains, in results as small as these.
BOUNDS = {torch.float64: 1e-13, torch.float32: 5e-6, torch.bfloat16: 3e-2, torch.float16: 3e-3}
TARGETS, HISTORY = torch.tensor([0, 3, 3, 8]), torch.tensor([0, 40, 57, 57])  # no targets, no history among them
CHOSEN, LAST = torch.tensor([1, 0]), torch.tensor([5, 33])

Case = tuple[Callable[..., Any], list[tuple[int, ...]]]
# What is called, of `ops` stca.ops or stca.reference, and the shapes of its floating-point arguments.
CASES: dict[str, Case] = {
    "target_attention": (
        lambda ops, at, q, k, v: ops.target_attention(q, k, v, TARGETS.to(at), HISTORY.to(at)),
        [(8, 4, 16), (57, 2, 16), (57, 2, 24)],
    ),
    "target_attention, v is k": (
        lambda ops, at, q, k: ops.target_attention(q, k, None, TARGETS.to(at), HISTORY.to(at)),
        [(8, 4, 32), (57, 1, 32)],
    ),
    "swiglu_ffn_norm": (
        lambda ops, at, *tensors: ops.swiglu_ffn_norm(*tensors),
        [(19, 24), (24, 40), (24, 40), (40, 24), (24,), (24,)],
    ),
    "swiglu_ffn_norm, hidden rows kept": (
        lambda ops, at, *tensors: ops.swiglu_ffn_norm(
            *tensors, **({} if ops is stca.reference else {"recompute": False})
        ),
        [(19, 24), (24, 40), (24, 40), (40, 24), (24,), (24,)],
    ),
    "request_gather": (lambda ops, at, x: ops.request_gather(x, TARGETS.to(at)), [(3, 5)]),
    "request_reduce": (lambda ops, at, x: ops.request_reduce(x, TARGETS.to(at), "mean"), [(8, 5)]),
    "jagged_select": (
        lambda ops, at, x: ops.jagged_select(x, HISTORY.to(at), CHOSEN.to(at), LAST.to(at))[0],
        [(57, 5)],
    ),
}


def results(ops: ModuleType, case: Case, inputs: list[Tensor]) -> list[Tensor]:
    """The result, and the gradients of a sum of its elements, the i-th weighted by sin(i)."""
    function, _ = case
    leaves = [x.detach().requires_grad_() for x in inputs]
    result: Tensor = function(ops, inputs[0].device, *leaves)
    weights = torch.arange(result.numel(), device=result.device).sin().view(result.shape).to(result.dtype)
    return [result.detach(), *torch.autograd.grad(result, leaves, weights)]


def error(name: str, dtype: torch.dtype, device: torch.device) -> float:
    """The largest of the result and of each gradient, relative to the oracle's largest number. NaN: not finite."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator).div(2).to(device, dtype) for shape in CASES[name][1]]
    found = results(stca.ops, CASES[name], inputs)
    oracle = results(stca.reference, CASES[name], [x.double() for x in inputs])
    distances = [(x.double() - y).abs().max() / y.abs().max() for x, y in zip(found, oracle, strict=True)]
    return float(torch.stack(distances).max())


def places() -> Iterator[tuple[str, torch.device, list[torch.dtype]]]:
    """Where operators run here: each instruction set of the CPU, which is in use meanwhile, then each kind of GPU."""
    info = stca.build_info()
    try:
        for isa in info["cpu_isas_supported"]:
            stca.set_cpu_isa(isa)
            yield f"CPU, {isa}", torch.device("cpu"), list(BOUNDS)
    finally:
        stca.set_cpu_isa(info["cpu_isa"])
    if info["cuda_archs"] and torch.cuda.is_available():
        yield torch.cuda.get_device_name(), torch.device("cuda"), [d for d in BOUNDS if d != torch.float64]


def main() -> int:
    """Prints what was found; the number of operators that are off."""
    began = time.perf_counter()
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{stca.native.LIBRARY}: {stca.build_info()}")
    failures = 0
    for place, device, dtypes in places():
        for dtype in dtypes:
            errors = {name: error(name, dtype, device) for name in CASES}
            off = [name for name, value in errors.items() if not value <= BOUNDS[dtype]]
            failures += len(off)
            worst = max(errors.values(), key=lambda value: float("inf") if value != value else value)
            line = f"{place:16} {str(dtype).removeprefix('torch.'):9} {len(errors)} cases, largest error {worst:.1e}"
            print(line + "".join(f"\n  OFF: {name}, {errors[name]:.1e} > {BOUNDS[dtype]:.0e}" for name in off))
    print(f"{'all right' if failures == 0 else f'{failures} OFF'}, {time.perf_counter() - began:.1f} s")
    return failures


if __name__ == "__main__":
    sys.exit(main() > 0)
