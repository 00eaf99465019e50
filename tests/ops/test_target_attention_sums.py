"""target_attention where sums round badly and memory could grow: weights of one row, many targets, indexed rows."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accuracy import assert_all_as_accurate, assert_bitwise_equal
from cases import DTYPES, TargetAttentionCase, TargetAttentionInputs
from cuda_devices import DEVICES, call_on
from cuda_devices import DTYPES as CUDA_DTYPES
from plain import target_attention_references
from torch import Tensor

import stca

# 256 rows of this width at once for each thread: requests end, begin and are empty where ranges of rows meet.
RANGES = [(1, 256), (2, 0), (1, 0), (0, 512), (3, 1), (0, 0), (2, 255), (20, 300), (2, 0), (1, 300), (3, 0)]
IN_RANGES = [
    TargetAttentionCase("shared", RANGES, 4, 2, 1024, None, "random", pool=900),
    TargetAttentionCase("given", RANGES, 2, 2, 520, 504, "prefix", pool=5000, index=torch.int32),
    TargetAttentionCase("one-row", RANGES, 2, 1, 2048, None, pool=1),
]


def _gradients_of_one_row(op: Callable[..., Any], dtype: torch.dtype, n: int, shared: bool, incoming: float) -> Tensor:
    """k's gradient (v's where it is given), where n history rows are one row of ones: what came in, to each element."""
    q, k = torch.ones(1, 2, 4, dtype=dtype), torch.ones(1, 2, 4, dtype=dtype)
    v, offsets = None if shared else k.clone(), (torch.tensor([0, 1]), torch.tensor([0, n]))
    arguments = q, k, v, *offsets, None, torch.zeros(n, dtype=torch.int64)
    out, _, max_and_sum, _ = op("target_attention", *arguments, None)
    dout = torch.full_like(out, incoming)
    _, dk, dv = op("target_attention_backward", dout, None, *arguments, out, max_and_sum, None, True)
    gradient: Tensor = dk if shared else dv
    return gradient


def _on_cpu(name: str, *arguments: Any) -> Any:
    return getattr(torch.ops.stca, name)(*arguments)


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("n", [10_000, 100_000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shared", [True, False])
def test_weights_of_one_row_sum_to_one(shared: bool, dtype: torch.dtype, n: int, isa: str) -> None:
    gradient = _gradients_of_one_row(_on_cpu, dtype, n, shared, 1e-3)
    # 1 / n itself is rounded where the CPU multiplies bfloat16.
    eps = max(torch.finfo(dtype).eps, 1e-6 if dtype == torch.float32 else 0.0)
    exact = dtype == torch.float16 or (dtype == torch.bfloat16 and isa != "avx512bf16")
    expected = torch.full_like(gradient, 1e-3)
    torch.testing.assert_close(gradient, expected, rtol=0 if exact else max(eps, 1e-12), atol=0)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", CUDA_DTYPES, ids=str)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("device", DEVICES)
def test_weights_of_one_row_sum_to_one_on_cuda(device: str, shared: bool, dtype: torch.dtype) -> None:
    gradient = _gradients_of_one_row(lambda *arguments: call_on(device, *arguments), dtype, 3000, shared, 1e-3)
    expected = torch.full_like(gradient, 1e-3)
    torch.testing.assert_close(gradient, expected, rtol=max(torch.finfo(dtype).eps, 1e-6), atol=0)


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("value_dim", [None, 3])
@pytest.mark.parametrize("visible", ["all", "random"])
def test_sums_of_several_rows_are_rounded_once(
    visible: str, value_dim: int | None, dtype: torch.dtype, isa: str
) -> None:
    """Each of 5 rows stands for thousands, whose own gradients are less than float16 holds."""
    inputs = TargetAttentionCase("", [(3, 20_000), (2, 9000)], 4, 2, 5, value_dim, visible, pool=5).build(dtype)
    inputs = inputs.but(q=inputs.q / 8, dout=inputs.dout / 512, dlse=torch.zeros_like(inputs.dlse))
    actual, expected = inputs.results(), inputs.to(torch.float64).results(stca.reference.target_attention)
    for name in ("dk",) if value_dim is None else ("dk", "dv"):
        bound = 2 * torch.finfo(dtype).eps * float(expected[name].abs().max())
        if dtype == torch.float32:
            bound *= 16
        assert float((actual[name].double() - expected[name]).abs().max()) <= bound, name


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", IN_RANGES, ids=str)
def test_ranges_of_history_rows(case: TargetAttentionCase, dtype: torch.dtype, threads: Callable[[int], None]) -> None:
    inputs = case.build(dtype)
    references = target_attention_references(inputs)
    for count in (1, 2, 5):
        threads(count)
        actual = inputs.results()
        # Where all rows are one, dq is what a difference of equals leaves.
        assert_all_as_accurate(actual, references, sensitivity=2 if case.pool == 1 else 1)
        assert_bitwise_equal(inputs.results(), actual)


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value_dim", [None, 24])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_rows_that_are_seen_once_keep_their_bits(
    count: int, value_dim: int | None, dtype: torch.dtype, threads: Callable[[int], None], isa: str
) -> None:
    """Rows in another order, among others that nobody sees: each gradient is that of the row alone."""
    threads(count)
    case = TargetAttentionCase("", [(3, 9000), (1, 0), (2, 17_000)], 2, 1, 64, value_dim)
    plain = case.build(dtype)
    N, P = len(plain.k), len(plain.k) + 100
    index = torch.randperm(P)[:N]

    def spread(x: Tensor) -> Tensor:
        return torch.full((P, *x.shape[1:]), torch.nan, dtype=dtype).index_copy_(0, index, x)

    v = None if plain.v is None else spread(plain.v)
    indexed = plain.but(k=spread(plain.k), v=v, history_index=index).results()
    expected = plain.results()
    unused = torch.ones(P, dtype=torch.bool)
    unused[index] = False
    for name in ("dk",) if value_dim is None else ("dk", "dv"):
        assert torch.equal(indexed[name][index], expected[name]), name
        assert not indexed[name][unused].any(), name


MANY_TARGETS = TargetAttentionCase("many-targets", [(600, 900), (1, 0), (2, 3000), (70, 1100)], 4, 2, 8)


@pytest.mark.exhaustive
@pytest.mark.parametrize("count", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [MANY_TARGETS, *IN_RANGES[:1]], ids=str)
@pytest.mark.usefixtures("uninitialized_is_nan")
def test_the_same_bits_whoever_is_done_first(
    case: TargetAttentionCase, dtype: torch.dtype, count: int, threads: Callable[[int], None]
) -> None:
    """Pieces of a history are done in any order, and their dq are added up in one."""
    inputs = case.build(dtype)
    threads(1)
    alone = inputs.results()
    threads(count)
    first = inputs.results()
    for _ in range(5):
        assert_bitwise_equal(inputs.results(), first)
    for name, x in first.items():
        scale = float(alone[name].masked_fill(~alone[name].isfinite(), 0).abs().max())
        torch.testing.assert_close(x, alone[name], rtol=0, atol=32 * torch.finfo(x.dtype).eps * scale, msg=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_targets_are_as_accurate(dtype: torch.dtype, threads: Callable[[int], None]) -> None:
    threads(5)
    inputs: TargetAttentionInputs = MANY_TARGETS.build(dtype)
    assert_all_as_accurate(inputs.results(), target_attention_references(inputs))


_MEMORY = """
import sys, torch, stca
threads, T, N, P = map(int, sys.argv[1:5])
dtype, given = getattr(torch, sys.argv[5]), sys.argv[6] == "given"
torch.set_num_threads(threads)

def call(T, N):
    q, k, v = (torch.randn(rows, heads, 64, dtype=dtype) for rows, heads in ((T, 8), (P or N, 1), (P or N, 1)))
    leaves = [x.requires_grad_() for x in (q, k, v)][: 3 if given else 2]
    index = torch.randint(P, (N,)) if P else None
    offsets = torch.tensor([0, T]), torch.tensor([0, N])
    out = stca.ops.target_attention(q, k, v if given else None, *offsets, history_index=index)
    dout = torch.ones_like(out)
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    grads = torch.autograd.grad(out, leaves, dout)
    return status("VmHWM") - before - sum(x.numel() * x.element_size() for x in grads)

def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024

call(3, 600)  # threads, code
print(call(T, N))
"""


def _extra_memory(*arguments: Any) -> float:
    """MB beyond the gradients that the resident memory of a process of its own grows by in one backward pass."""
    command = [sys.executable, "-c", _MEMORY, *map(str, arguments)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1e6


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("count", "dtype"), [(2, "float32"), pytest.param(8, "float32", marks=pytest.mark.slow), (8, "bfloat16")]
)
def test_memory_of_many_targets(count: int, dtype: str) -> None:
    """1,000 targets of 8 x 64, whose dq takes 2 MB: one for each thread, and one where sums are to be rounded."""
    extra = [_extra_memory(count, 1000, rows, 0, dtype, "none") for rows in (4000, 12_000)]
    assert max(extra) < 2.1 * (count + (dtype != "float32")) + 1.5 * count + 2
    assert extra[1] - extra[0] < 3


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("value", ["none", "given"])
def test_memory_of_indexed_rows(value: str, dtype: str) -> None:
    """A gradient of each of 400,000 rows, 64 wide, would take 100 MB in float32."""
    extra = [_extra_memory(2, 1, rows, 1000, dtype, value) for rows in (50_000, 400_000)]
    assert max(extra) < 12
    assert extra[1] - extra[0] < 2
