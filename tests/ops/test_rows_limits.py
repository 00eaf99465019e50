"""request_gather, request_reduce and jagged_select at their limits: narrow rows, sizes that no memory holds."""

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accuracy import assert_bitwise_equal
from cases import DTYPES, offsets
from cuda_devices import DEVICES, call_on
from torch import Tensor

import stca

_PEAK = """
import sys, torch, stca
from pathlib import Path
torch.set_num_threads(2)
dtype, backward = getattr(torch, sys.argv[1]), sys.argv[2] == "backward"
rows, offsets = 8_000_000, torch.arange(0, 8_000_001, 1000)
values, every = torch.zeros(rows, dtype=dtype, requires_grad=backward), torch.arange(8_000)
def status(field):
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(field))
def run():
    selected, _ = stca.ops.jagged_select(values, offsets, every)
    if backward:
        torch.autograd.grad(selected, values, torch.ones(1, dtype=dtype).expand(rows).contiguous())
    return selected.nbytes
nbytes = run()
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
run()
print((status("VmHWM") - before) * 1024 / nbytes)
"""


@pytest.mark.parametrize(
    ("dtype", "way", "most"), [("int8", "forward", 1.3), ("int64", "forward", 1.1), ("bfloat16", "backward", 3.4)]
)
def test_memory_of_narrow_rows(dtype: str, way: str, most: float) -> None:
    """What is allocated is the result; with gradients it, the incoming one and the one that is made."""
    run = subprocess.run([sys.executable, "-c", _PEAK, dtype, way], capture_output=True, text=True, check=True)
    assert float(run.stdout) <= most


NARROW = [(), *[(w,) for w in (*range(1, 20), 24, 31, 32, 33, 63, 64, 65)]]
KINDS = (torch.bool, torch.int8, torch.int16, torch.float32, torch.float64, torch.complex128)


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_narrow_rows(isa: str, dtype: torch.dtype, threads: Any) -> None:
    """They are stored as whole vectors, over what comes next: also where one thread's rows end and another's begin."""
    index, keep = torch.tensor([7, 2, 2, 10, 0, 1, 11]), torch.tensor([9, 1, 2, 64, 3, 5, 40])
    for shape in NARROW:
        bytes_each = dtype.itemsize * max(1, *shape, 1)
        lengths = [1, 0, 2, 3, 5, 0, 0, 40, 1, 1, 129, 140_000 // bytes_each]
        at = offsets(lengths)
        x, expected = (10 * torch.randn(len(lengths), *shape)).to(dtype), torch.empty(0)
        for count in (1, 2):
            threads(count)
            gathered, expected = (f([x], at)[0] for f in (stca.ops.request_gather, stca.reference.request_gather))
            assert_bitwise_equal({"gather": gathered}, {"gather": expected})
        selected, chosen = (f.jagged_select(expected, at, index, keep)[0] for f in (stca.ops, stca.reference))
        assert_bitwise_equal({"select": selected}, {"select": chosen})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (40,), (600,)], ids=str)
def test_gradients_of_ranges(isa: str, shape: tuple[int, ...], dtype: torch.dtype, threads: Any) -> None:
    """Suffixes of many lengths of the same history, in the order in which they were chosen, as one row at a time."""
    generator = torch.Generator().manual_seed(0)
    at = offsets([0, 9, 1, 0, 50, 3])
    index = torch.randint(6, (150,), generator=generator)
    keep = torch.randint(60, (150,), generator=generator)
    values = torch.zeros(63, *shape, dtype=dtype)
    selected, _ = stca.ops.jagged_select(values, at, index, keep)
    grad = torch.randn(selected.shape, dtype=torch.float64, generator=generator).to(dtype)
    rows = stca.reference.jagged_select(torch.arange(63), at, index, keep)[0]
    order = rows.argsort(stable=True)
    expected = stca.ops.request_reduce(grad[order], offsets(torch.bincount(rows, minlength=63).tolist()))
    for count in (1, 2):
        threads(count)
        actual = torch.ops.stca.jagged_select_backward(grad, at, index, keep, 63)
        assert_bitwise_equal({"dvalues": actual}, {"dvalues": expected})


HUGE = 2**40
SUMS: list[tuple[str, Callable[[Tensor], tuple[Any, ...]], str]] = [
    ("request_reduce", lambda x: (x, offsets([1, 2]), False), "request_reduce: x"),
    ("jagged_select_backward", lambda x: (x, offsets([3]), torch.tensor([0]), None, 3), "jagged_select: grad"),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.int64, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize(("op", "arguments", "name"), SUMS, ids=lambda x: x if isinstance(x, str) else "")
def test_sums_on_cuda_refuse_what_no_kernel_adds(
    op: str, arguments: Any, name: str, dtype: torch.dtype, device: str
) -> None:
    """float64 was taken for float16: 12 of 16 bytes of a sum were memory that nobody wrote."""
    x = torch.ones(3, 2).to(dtype)
    known = {torch.float64: "Double", torch.int32: "Int", torch.int64: "Long", torch.bool: "Bool"}
    expected = f"{name} must be float32, bfloat16 or float16 on CUDA, got {known.get(dtype, 'ComplexFloat')}"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        call_on(device, op, *arguments(x))


TOO_MUCH: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: stca.ops.request_gather(torch.randn(2, 3000), torch.tensor([0, 5, HUGE])),
        rf"request_gather: a result of \[{HUGE}, 3000\] of Float, {HUGE} rows by the last of target_offsets, does not",
    ),
    (
        lambda: stca.ops.request_gather(torch.randn(2, 9), torch.tensor([0, 5, 2**62]), total=2**62),
        rf"request_gather: a result of \[{2**62}, 9\] of Float, {2**62} rows by total, does not fit into memory",
    ),
    (
        lambda: stca.ops.request_reduce(torch.zeros(0, HUGE), torch.zeros(3000, dtype=torch.int64)),
        rf"request_reduce: a result of \[2999, {HUGE}\] of Float, 2999 rows by",
    ),
    (
        lambda: stca.ops.jagged_select(
            torch.zeros(1).expand(HUGE), offsets([HUGE]), torch.zeros(3000, dtype=torch.int64)
        ),
        rf"jagged_select: a result of \[{3000 * HUGE}\] of Float, {3000 * HUGE} rows by what index and keep select",
    ),
    (
        lambda: stca.ops.request_reduce(torch.zeros(1).expand(2**50), offsets([2**50])),
        rf"request_reduce: a contiguous copy of \[{2**50}\] of Float does not fit into memory",
    ),
]


@pytest.mark.parametrize(("call", "message"), TOO_MUCH)
def test_results_that_do_not_fit(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{message}"):
        call()


WRONG: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: stca.ops.request_gather(torch.ones(2), offsets([1, 1]), total=-1),
        "request_gather: total must be at least 0, got -1",
    ),
    (
        lambda: stca.ops.jagged_select(torch.ones(2), offsets([2]), torch.tensor([0]), None, -3),
        "jagged_select: total must be at least 0, got -3",
    ),
    (
        lambda: stca.ops.jagged_select(
            torch.zeros(2**62, 0), offsets([2**62]), torch.tensor([0, 0, 0]), torch.full((3,), 2**63 - 1)
        ),
        "jagged_select: index must select fewer than 2^63 rows, got more with index[1] = 0",
    ),
    (
        lambda: torch.ops.stca.jagged_select_backward(torch.ones(2), offsets([2]), torch.tensor([0]), None, -2),
        "jagged_select: num_rows must be at least 0, got -2",
    ),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_sizes_below_zero_or_beyond_numbers(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call()


def test_totals_below_zero_without_values() -> None:
    with pytest.raises(ValueError, match=r"^request_gather: total must be at least 0, got -1"):
        stca.ops.request_gather(torch.ones(2, device="meta"), offsets([1, 1]).to("meta"), total=-1)


@pytest.mark.parametrize("device", DEVICES)
def test_totals_below_zero_on_cuda(device: str) -> None:
    """Where offsets are trusted, and nothing else would notice."""
    with pytest.raises(ValueError, match=r"^request_gather: total must be at least 0, got -1"):
        call_on(device, "request_gather", [torch.ones(2)], offsets([1, 1]), -1)
    with pytest.raises(ValueError, match=r"^jagged_select: total must be at least 0, got -1"):
        call_on(device, "jagged_select", torch.ones(2), offsets([2]), torch.tensor([0]), None, -1)
