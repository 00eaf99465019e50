"""target_attention gives the same bits on every run, whoever calls it, and takes little memory."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from accuracy import assert_bitwise_equal
from cases import DTYPES, TARGET_ATTENTION_SMALL, TargetAttentionCase

CASES = [
    *TARGET_ATTENTION_SMALL,
    TargetAttentionCase("one-long", [(3, 10_000)], 4, 1, 8),
    TargetAttentionCase("long-among-short", [(1, 3), (2, 5000), (70, 40), (0, 9)], 4, 2, 5, 7, "random"),
]


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_bits_on_every_run(
    case: TargetAttentionCase, dtype: torch.dtype, count: int, threads: Callable[[int], None], isa: str
) -> None:
    threads(count)
    inputs = case.build(dtype)
    first = inputs.results()
    for _ in range(3):
        assert_bitwise_equal(inputs.results(), first)


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_thread_counts_agree_to_rounding(
    case: TargetAttentionCase, dtype: torch.dtype, threads: Callable[[int], None], isa: str
) -> None:
    """More threads cut a long history into more pieces, whose sums round differently."""
    inputs = case.build(dtype)
    threads(1)
    expected = inputs.results()
    for count in (2, 3, 8):
        threads(count)
        for name, x in inputs.results().items():
            scale = float(expected[name].masked_fill(~expected[name].isfinite(), 0).abs().max())
            atol = 32 * torch.finfo(x.dtype).eps * scale
            torch.testing.assert_close(x, expected[name], rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_concurrent_callers(dtype: torch.dtype) -> None:
    inputs = [case.build(dtype, seed) for case in CASES for seed in range(2)]
    expected = [each.results() for each in inputs]

    def work(i: int) -> None:
        torch.set_num_threads(2)  # each Python thread has a setting of its own
        for _ in range(3):
            assert_bitwise_equal(inputs[i].results(), expected[i])

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(len(inputs)))) == [None] * len(inputs)


_MEMORY = """
import sys, torch, stca
torch.set_num_threads(2)
L, D, direction, value = int(sys.argv[1]), 256, sys.argv[2], sys.argv[3]

def call(L):
    q = torch.randn(16, 8, D, requires_grad=direction == "backward")
    k = torch.randn(L, 1, D, requires_grad=direction == "backward")
    v = torch.randn(L, 1, D) if value == "given" else None
    offsets = torch.tensor([0, 16]), torch.tensor([0, L])
    out = stca.ops.target_attention(q, k, v, *offsets) if direction == "backward" else None
    dout = torch.randn(16, 8, D)
    before = reset_peak()
    if direction == "forward":
        out = stca.ops.target_attention(q, k, v, *offsets)
    else:
        grads = torch.autograd.grad(out, (q, k), dout)
    return peak() - before

def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024

def peak():
    return status("VmHWM")

def reset_peak():
    open("/proc/self/clear_refs", "w").write("5")
    return status("VmRSS")

call(64)  # threads, BLAS buffers
print(call(L))
"""


def _extra_memory(rows: int, direction: str, value: str = "none") -> int:
    """Bytes that the resident memory of a process of its own grows by, at most, during one call."""
    command = [sys.executable, "-c", _MEMORY, str(rows), direction, value]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("value", ["none", "given"])
def test_forward_memory(value: str) -> None:
    """16 targets of 8 heads, width 256, 10,000 history rows; a copy of the history would take 10 MB."""
    extra = _extra_memory(10_000, "forward", value)
    assert extra < 64e6
    assert abs(_extra_memory(40_000, "forward", value) - extra) < 4e6


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_backward_memory_grows_by_the_gradient_only() -> None:
    short, long = (_extra_memory(rows, "backward") for rows in (10_000, 40_000))
    assert abs(long - short - 30_000 * 256 * 4) < 4e6
