# mypy: ignore-errors
"""Triton's kernels, whose code is known to run on GPUs, give in this machine what torch and numpy give.

Where one fails, the machine is wrong. `make ptx-check` installs Triton, which compiles without a GPU, and runs this.
"""

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from emulated import emulated_device, run_ptx
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def run(kernel: Any, grid: tuple[int, ...], *arguments: Any, warps: int = 4, stages: int = 3, **constants: int) -> None:
    """Compiles for sm_80 and runs in the machine; tensors are written in place."""
    names = [name for name in kernel.arg_names if name not in constants]
    kinds, values = dict.fromkeys(constants, "constexpr"), []
    for name, x in zip(names, arguments, strict=True):
        is_tensor = isinstance(x, torch.Tensor)
        kinds[name] = POINTERS[x.dtype] if is_tensor else "i32"
        values.append(ctypes.c_void_p(x.data_ptr()) if is_tensor else ctypes.c_int(x))
    values += [ctypes.c_void_p(), ctypes.c_void_p()]  # scratch memory, which these kernels do not use
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(ASTSource(kernel, kinds, constants), target=GPUTarget("cuda", 80, 32), options=options)
    run_ptx(compiled.asm["ptx"], compiled.metadata.name, grid, 32 * warps, compiled.metadata.shared, values)


@triton.jit
def copy_kernel(x, y, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)


@triton.jit
def softmax_kernel(x, y, n, B: tl.constexpr):
    row, i = tl.program_id(0), tl.arange(0, B)
    v = tl.load(x + row * n + i, mask=i < n, other=-float("inf"))
    v = tl.exp(v - tl.max(v, 0))
    tl.store(y + row * n + i, v / tl.sum(v, 0), mask=i < n)


@triton.jit
def matmul_kernel(a, b, c, M, N, K, am, ak, bk, bn, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m, n, k = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN), tl.arange(0, BK)
    total = tl.zeros((BM, BN), tl.float32)
    for first in range(0, K, BK):
        depth = first + k
        x = tl.load(a + m[:, None] * am + depth[None, :] * ak, mask=(m[:, None] < M) & (depth[None, :] < K), other=0.0)
        y = tl.load(b + depth[:, None] * bk + n[None, :] * bn, mask=(depth[:, None] < K) & (n[None, :] < N), other=0.0)
        total += tl.dot(x, y)
    tl.store(c + m[:, None] * N + n[None, :], total, mask=(m[:, None] < M) & (n[None, :] < N))


@triton.jit
def arithmetic_kernel(x, y, z, B: tl.constexpr):
    i = tl.arange(0, B)
    a, b = tl.load(x + i), tl.load(y + i)
    tl.store(z + i, a // b)
    tl.store(z + B + i, a % b)
    tl.store(z + 2 * B + i, (a << 3) ^ (b >> 1))
    tl.store(z + 3 * B + i, tl.where(a > b, a * b, a - b))
    tl.store(z + 4 * B + i, tl.cumsum(a, 0))


@triton.jit
def reduction_kernel(x, rows, columns, M: tl.constexpr, N: tl.constexpr):
    m, n = tl.arange(0, M), tl.arange(0, N)
    v = tl.load(x + m[:, None] * N + n[None, :])
    tl.store(rows + m, tl.sum(v, 1))
    tl.store(columns + n, tl.max(v, 0))


@triton.jit
def functions_kernel(x, y, half, B: tl.constexpr):
    i = tl.arange(0, B)
    v = tl.load(x + i)
    tl.store(y + i, tl.sqrt(v))
    tl.store(y + B + i, tl.log(v))
    tl.store(y + 2 * B + i, tl.exp2(v) + tl.abs(v - 2))
    tl.store(y + 3 * B + i, tl.sin(v))
    tl.store(half + i, v.to(half.dtype.element_ty))


@pytest.fixture
def device() -> Iterator[None]:
    with emulated_device():
        yield


@pytest.mark.parametrize("n", [1, 1000, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64], ids=str)
def test_copy(n: int, dtype: torch.dtype, device: None) -> None:
    x, y = torch.arange(n).to(dtype), torch.empty(n, dtype=dtype)
    run(copy_kernel, (-(-n // 1024), 1, 1), x, y, n, B=1024)
    assert torch.equal(x, y)


@pytest.mark.parametrize("warps", [1, 4, 8])
def test_softmax(warps: int, device: None) -> None:
    x, y = torch.randn(5, 700), torch.empty(5, 700)
    run(softmax_kernel, (5, 1, 1), x, y, 700, B=1024, warps=warps)
    torch.testing.assert_close(y, x.softmax(1), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("warps", [1, 4])
@pytest.mark.parametrize("transposed", ["", "a", "b", "ab"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_product(dtype: torch.dtype, transposed: str, warps: int, stages: int, device: None) -> None:
    M, N, K = 70, 50, 200
    a, b, c = torch.randn(M, K).to(dtype), torch.randn(K, N).to(dtype), torch.empty(M, N)
    left = a.t().contiguous().t() if "a" in transposed else a.clone()
    right = b.t().contiguous().t() if "b" in transposed else b.clone()
    strides = *left.stride(), *right.stride()
    run(matmul_kernel, (2, 2, 1), left, right, c, M, N, K, *strides, BM=64, BN=32, BK=32, warps=warps, stages=stages)
    torch.testing.assert_close(c, a.float() @ b.float(), rtol=1e-5, atol=1e-4)


def test_integer_arithmetic(device: None) -> None:
    x, y = torch.randint(1, 10**6, (128,), dtype=torch.int32), torch.randint(1, 100, (128,), dtype=torch.int32)
    z = torch.empty(5, 128, dtype=torch.int32)
    run(arithmetic_kernel, (1, 1, 1), x, y, z, B=128)
    a, b = x.numpy(), y.numpy()
    expected = [a // b, a % b, (a << 3) ^ (b >> 1), np.where(a > b, a * b, a - b), np.cumsum(a, dtype=np.int32)]
    assert np.array_equal(z.numpy(), np.stack(expected))


@pytest.mark.parametrize("warps", [1, 4])
def test_reductions(warps: int, device: None) -> None:
    x, rows, columns = torch.randn(32, 64), torch.empty(32), torch.empty(64)
    run(reduction_kernel, (1, 1, 1), x, rows, columns, M=32, N=64, warps=warps)
    torch.testing.assert_close(rows, x.sum(1), rtol=1e-5, atol=1e-5)
    assert torch.equal(columns, x.amax(0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_functions_and_conversions(dtype: torch.dtype, device: None) -> None:
    x, y, half = torch.rand(256) * 4 + 0.1, torch.empty(4, 256), torch.empty(256, dtype=dtype)
    run(functions_kernel, (1, 1, 1), x, y, half, B=256)
    torch.testing.assert_close(
        y, torch.stack([x.sqrt(), x.log(), x.exp2() + (x - 2).abs(), x.sin()]), rtol=1e-5, atol=1e-5
    )
    assert torch.equal(half, x.to(dtype))
