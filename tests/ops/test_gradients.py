"""Gradients where they are easily wrong: rows without one, norm weights of any size, means of many targets."""

from itertools import product
from typing import Any

import pytest
import torch
from accuracy import assert_all_as_accurate, assert_bitwise_equal
from cases import DTYPES, NAN_AND_INFINITIES, swiglu_inputs
from cuda_devices import DEVICES, call_on
from cuda_devices import DTYPES as CUDA_DTYPES
from torch import Tensor

import stca

NAMES = ("x", "w_u", "w_v", "w_o", "norm_weight", "norm_bias")


def _swiglu(device: str, inputs: dict[str, Tensor], dy: Tensor) -> dict[str, Tensor]:
    """y and all gradients, by the operator on the CPU or by the CUDA kernels."""
    if device == "cpu":
        leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
        y = stca.ops.swiglu_ffn_norm(**leaves)  # type: ignore[arg-type]
        grads = torch.autograd.grad(y, list(leaves.values()), dy)
        return {"y": y.detach()} | {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    arguments = [inputs.get(name) for name in NAMES]
    y, mean, rstd, *_ = call_on(device, "swiglu_ffn_norm", *arguments, 1e-5)
    grads = call_on(device, "swiglu_ffn_norm_backward", dy, *arguments, mean, rstd, None)
    return {"y": y} | {f"d{name}": grad for name, grad in zip(inputs, grads[: len(inputs)], strict=True)}


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("norm", [0, 1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "unseen"),
    [
        (1, slice(0, 1)),  # nothing has a gradient
        (250, slice(None)),
        (250, slice(0, 0)),  # everything has
        (250, slice(7, 8)),  # one row within a tile
        (250, slice(1, None, 3)),
        (700, slice(0, 600)),  # whole tiles
        (700, slice(90, None)),
    ],
    ids=str,
)
@pytest.mark.parametrize("threads_used", [1, 2])
def test_rows_without_a_gradient_leave_no_trace(
    isa: str, rows: int, unseen: slice, dtype: torch.dtype, norm: int, threads_used: int, threads: Any
) -> None:
    """The weights' gradients are, bit for bit, those of the batch without the rows; in plain torch they are NaN."""
    threads(threads_used)
    inputs, dy = swiglu_inputs(rows, 24, 40, norm, dtype), torch.randn(rows, 24).to(dtype)
    dead = torch.zeros(rows, dtype=torch.bool)
    dead[unseen] = True
    dy[dead] = torch.where(torch.rand(24) < 0.5, 0.0, -0.0).to(dtype)
    alive = {name: x[~dead] if name == "x" else x for name, x in inputs.items()}
    expected = _swiglu("cpu", alive, dy[~dead])
    for poison in (*NAN_AND_INFINITIES, torch.finfo(dtype).max, 1e30 if dtype != torch.float16 else 6e4):
        inputs["x"][dead] = poison
        actual = _swiglu("cpu", inputs, dy)
        dx = actual["dx"]
        assert torch.equal(dx[dead], torch.zeros_like(dx[dead]))
        actual |= {name: actual[name][~dead] for name in ("y", "dx")}
        assert_bitwise_equal(actual, expected)


@pytest.mark.parametrize(
    ("rows", "norm", "dtype"),
    [*product([1, 70], [0, 1, 2], CUDA_DTYPES), (66 * 128 + 40, 2, torch.float32)],  # the last: several chunks
    ids=str,
)
@pytest.mark.parametrize("device", DEVICES)
def test_rows_without_a_gradient_on_cuda(device: str, rows: int, norm: int, dtype: torch.dtype) -> None:
    inputs, dy = swiglu_inputs(rows, 8, 12, norm, dtype), torch.randn(rows, 8).to(dtype)
    dead = torch.arange(rows) % 3 == 0
    dy[dead] = -0.0
    exact, plain = (
        _plain({name: x[~dead] if name == "x" else x for name, x in inputs.items()}, dy[~dead], each)
        for each in (torch.float64, dtype)
    )
    for poison in (torch.nan, -torch.inf, torch.finfo(dtype).max)[: 1 if rows > 100 else 3]:
        inputs["x"][dead] = poison
        actual = _swiglu(device, inputs, dy)
        assert torch.equal(actual["dx"][dead], torch.zeros_like(actual["dx"][dead]))
        actual |= {name: actual[name][~dead] for name in ("y", "dx")}
        assert_all_as_accurate(actual, {name: (exact[name], plain[name]) for name in exact})


@pytest.mark.parametrize("device", ["cpu", *DEVICES])
@pytest.mark.parametrize("norm", [0, 2])
def test_a_gradient_that_is_not_a_number_still_comes_through(norm: int, device: str) -> None:
    inputs, dy = swiglu_inputs(100, 8, 12, norm, torch.float32), torch.zeros(100, 8)
    dy[50, 3] = torch.nan
    for name, grad in _swiglu(device, inputs, dy).items():
        if name == "dx":
            assert bool(grad[50].isnan().all())
            assert not bool(grad[torch.arange(100) != 50].any())
        elif name in ("dnorm_weight", "dnorm_bias"):
            assert bool(grad[3].isnan())
            assert grad[torch.arange(8) != 3].tolist() == [0.0] * 7
        elif name != "y":
            assert bool(grad.isnan().any())


def _plain(inputs: dict[str, Tensor], dy: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """By the oracle, in this dtype."""
    leaves = {name: x.detach().to(dtype).requires_grad_() for name, x in inputs.items()}
    y = stca.reference.swiglu_ffn_norm(**leaves)  # type: ignore[arg-type]
    grads = torch.autograd.grad(y, list(leaves.values()), dy.to(dtype))
    return {"y": y.detach()} | {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}


SIZES = (1.0, 1e-20, 1e-30, 1e-37, 1e-39, 1e-41, 1e-43, 3e-45, 1e-45, 0.0, 1e30, 3e38)


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("bias", ["none", "small", "large"])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_the_gradient_of_a_norm_weight_of_any_size(isa: str, size: float, mixed: bool, bias: str) -> None:
    """It does not depend on the weight, and y = xhat * weight has no bits of xhat left where that is subnormal."""
    inputs, dy = swiglu_inputs(200, 24, 40, 1 if bias == "none" else 2, torch.float32), torch.randn(200, 24)
    inputs["norm_weight"] = torch.where(torch.arange(24) % 5 == 2, size, inputs["norm_weight"] if mixed else size)
    if bias != "none":
        inputs["norm_bias"] *= 1e-3 * inputs["norm_weight"] if bias == "small" else 1e4
    name = "dnorm_weight"
    exact, plain = (_plain(inputs, dy, dtype)[name] for dtype in (torch.float64, torch.float32))
    assert_all_as_accurate({name: _swiglu("cpu", inputs, dy)[name]}, {name: (exact, plain)})


@pytest.mark.parametrize("size", [1.0, 1e-100, 1e-300, 1e-308, 1e-312, 5e-324, 0.0, 1e300])
def test_the_gradient_of_a_norm_weight_in_float64(size: float) -> None:
    inputs, dy = swiglu_inputs(60, 8, 12, 2), torch.randn(60, 8, dtype=torch.float64)
    inputs["norm_bias"] *= size
    inputs["norm_weight"] = torch.full((8,), size, dtype=torch.float64)
    one = inputs | {"norm_weight": torch.ones(8, dtype=torch.float64)}
    expected = _plain(one, dy, torch.float64)["dnorm_weight"]
    torch.testing.assert_close(_swiglu("cpu", inputs, dy)["dnorm_weight"], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("scale", [1.0, 0.1, 1e-2, 1e-3])
@pytest.mark.parametrize("bias", [0.0, 0.1, 1.0, 8.0])
def test_a_bias_that_hides_what_the_norm_adds_to_it(isa: str, bias: float, scale: float) -> None:
    """Rows of small variance, which eps makes smaller still."""
    inputs, dy = swiglu_inputs(200, 24, 40, 2, torch.float32), torch.randn(200, 24)
    inputs |= {"norm_weight": torch.ones(24), "norm_bias": torch.full((24,), bias)}
    inputs["x"] *= scale
    exact, plain = (_plain(inputs, dy, dtype) for dtype in (torch.float64, torch.float32))
    assert_all_as_accurate(_swiglu("cpu", inputs, dy), {name: (exact[name], plain[name]) for name in exact})


def test_where_the_cpu_takes_subnormal_numbers_as_0() -> None:
    inputs, dy = swiglu_inputs(200, 24, 40, 1, torch.float32), torch.randn(200, 24)
    exact, plain = (_plain(inputs, dy, dtype)["dnorm_weight"] for dtype in (torch.float64, torch.float32))
    inputs["norm_weight"] = torch.full((24,), 1e-37)
    if not torch.set_flush_denormal(True):
        pytest.skip("the CPU has no such mode")
    try:
        actual = _swiglu("cpu", inputs, dy)["dnorm_weight"]
    finally:
        torch.set_flush_denormal(False)
    assert_all_as_accurate({"dnorm_weight": actual}, {"dnorm_weight": (exact, plain)})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 3, 1001, 65_519, 65_520, 70_000, 200_000])
def test_the_gradient_of_a_mean_of_many(count: int, dtype: torch.dtype) -> None:
    """1 / count times what came in, rounded once; the count itself is infinite in float16 from 65,520 on."""
    x = torch.ones(count + 2, 2, dtype=dtype, requires_grad=True)
    incoming = torch.tensor([[3.0, -0.7], [1.0, 2.0], [5.0, 7.0]]).to(dtype)
    at = torch.tensor([0, count, count, count + 2])
    (grad,) = torch.autograd.grad(stca.ops.request_reduce(x, at, "mean"), x, incoming)
    wide = torch.promote_types(dtype, torch.float32)
    expected = torch.stack([incoming[0].to(wide) / count, incoming[2].to(wide) / 2]).to(dtype)
    assert torch.equal(grad[:count], expected[:1].expand(count, 2))
    assert torch.equal(grad[count:], expected[1:].expand(2, 2))
    assert grad.dtype == dtype


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", CUDA_DTYPES, ids=str)
@pytest.mark.parametrize("mean", [False, True])
def test_the_gradient_of_a_mean_on_cuda(mean: bool, dtype: torch.dtype, device: str) -> None:
    arguments = torch.randn(3, 1).to(dtype), torch.tensor([0, 66_000, 66_000, 66_007]), mean, 66_007
    expected = torch.ops.stca.request_reduce_backward(*arguments)
    assert torch.equal(call_on(device, "request_reduce_backward", *arguments), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["target", "request"])
@pytest.mark.parametrize("count", [2, 70_000, 400_000])
def test_the_loss_of_many_targets(count: int, reduction: Any, dtype: torch.dtype) -> None:
    offsets = torch.tensor([0, count - 1, count])
    batch = stca.batch.RequestBatch({}, torch.tensor([0, 0, 0]), {}, offsets)
    logits, labels = torch.randn(count).to(dtype).requires_grad_(), torch.rand(count)
    loss = stca.batch.bce_loss(logits, labels, batch, reduction)
    (grad,) = torch.autograd.grad(loss, logits)
    x = logits.detach().double().requires_grad_()
    each = torch.nn.functional.binary_cross_entropy_with_logits(x, labels.double(), reduction="none")
    exact = each.mean() if reduction == "target" else (each[:-1].mean() + each[-1]) / 2
    (expected,) = torch.autograd.grad(exact, x)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(grad, expected.to(dtype), rtol=max(1e-5, torch.finfo(dtype).eps), atol=6e-8)
