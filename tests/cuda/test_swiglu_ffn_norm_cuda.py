"""The CUDA kernels of swiglu_ffn_norm agree with the oracle, and the operator's chunks with each other."""

import re
from typing import Any

import pytest
import torch
from accuracy import assert_all_as_accurate, assert_bitwise_equal
from cases import SWIGLU_SHAPES, swiglu_inputs
from cuda_devices import DEVICES, DTYPES, call_on
from torch import Tensor

import stca

CHUNK = 66 * 128  # rows

pytestmark = pytest.mark.parametrize("device", DEVICES)


def _on(device: str, inputs: dict[str, Tensor], dy: Tensor, **options: Any) -> dict[str, Tensor]:
    arguments = [inputs.get(name) for name in ("x", "w_u", "w_v", "w_o", "norm_weight", "norm_bias")]
    y, mean, rstd = call_on(device, "swiglu_ffn_norm", *arguments, 1e-5, **options)
    grads = call_on(device, "swiglu_ffn_norm_backward", dy, *arguments, mean, rstd, None, **options)
    return {"y": y} | {f"d{name}": grad for name, grad in zip(inputs, grads[: len(inputs)], strict=True)}


def _by_oracle(inputs: dict[str, Tensor], dy: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    leaves = {name: x.detach().to(dtype).requires_grad_() for name, x in inputs.items()}
    y = stca.reference.swiglu_ffn_norm(**leaves)  # type: ignore[arg-type]
    grads = torch.autograd.grad(y, list(leaves.values()), dy.to(dtype))
    return {"y": y.detach()} | {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}


def _judge(device: str, inputs: dict[str, Tensor], dy: Tensor) -> None:
    exact, plain = (_by_oracle(inputs, dy, dtype) for dtype in (torch.float64, dy.dtype))
    assert_all_as_accurate(_on(device, inputs, dy), {name: (exact[name], plain[name]) for name in exact})


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("norm", [0, 1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SWIGLU_SHAPES, ids=str)
def test_accuracy(shape: tuple[int, int, int], dtype: torch.dtype, norm: int, device: str) -> None:
    _judge(device, swiglu_inputs(*shape, norm, dtype), torch.randn(shape[:2]).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_several_chunks(dtype: torch.dtype, device: str) -> None:
    N = CHUNK + 70
    inputs, dy = swiglu_inputs(N, 8, 12, 2, dtype), torch.randn(N, 8).to(dtype)
    _judge(device, inputs, dy)
    apart = {name: x[CHUNK:] if name == "x" else x for name, x in inputs.items()}
    whole, last = _on(device, inputs, dy), _on(device, apart, dy[CHUNK:])
    for name in ("y", "dx"):
        assert torch.equal(whole[name][CHUNK:], last[name])


def test_the_same_bits_in_any_order_of_threads(device: str) -> None:
    inputs, dy = swiglu_inputs(300, 40, 24, 2, torch.float32), torch.randn(300, 40)
    assert_bitwise_equal(_on(device, inputs, dy, seed=5), _on(device, inputs, dy))


def test_strided_inputs(device: str) -> None:
    inputs, dy = swiglu_inputs(100, 24, 40, 2, torch.bfloat16), torch.randn(100, 24).bfloat16()
    strided = {n: torch.stack([x, x + 1], dim=-1).flatten(-2)[..., ::2] for n, x in inputs.items()}
    transposed = {n: x.mT.contiguous().mT if x.dim() == 2 else x for n, x in inputs.items()}
    exact, plain = (_by_oracle(inputs, dy, dtype) for dtype in (torch.float64, dy.dtype))
    for each in (strided, transposed):
        actual = _on(device, each, dy.T.contiguous().T)
        assert_all_as_accurate(actual, {name: (exact[name], plain[name]) for name in exact})


def test_every_row_is_on_its_own(device: str) -> None:
    inputs, dy = swiglu_inputs(100, 24, 40, 2, torch.float32), torch.randn(100, 24)
    expected = _on(device, inputs, dy)
    inputs["x"][70] = torch.nan
    poisoned = _on(device, inputs, dy)
    others = torch.arange(100) != 70
    for name in ("y", "dx"):
        assert torch.equal(poisoned[name][others], expected[name][others])
        assert bool(poisoned[name][70].isnan().all())


def test_float64_is_refused(device: str) -> None:
    inputs = swiglu_inputs(3, 4, 5)
    expected = "swiglu_ffn_norm: x must be float32, bfloat16 or float16 on CUDA, got Double"
    with pytest.raises(ValueError, match=re.escape(expected)):
        call_on(device, "swiglu_ffn_norm", *inputs.values(), 1e-5)
