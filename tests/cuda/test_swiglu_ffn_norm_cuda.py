"""The CUDA kernels of swiglu_ffn_norm agree with the oracle, and the operator's chunks with each other."""

import re

import pytest
import torch
from accuracy import assert_all_as_accurate, assert_bitwise_equal
from cases import SWIGLU_SHAPES, swiglu_inputs, swiglu_inputs_of_equal_columns
from cuda_devices import DEVICES, DTYPES, call_on, swiglu_on
from plain import swiglu_references

CHUNK = 66 * 128  # rows

pytestmark = pytest.mark.parametrize("device", DEVICES)


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("norm", [0, 1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SWIGLU_SHAPES, ids=str)
def test_accuracy(shape: tuple[int, int, int], dtype: torch.dtype, norm: int, device: str) -> None:
    inputs, dy = swiglu_inputs(*shape, norm, dtype), torch.randn(shape[:2]).to(dtype)
    assert_all_as_accurate(swiglu_on(device, inputs, dy), swiglu_references(inputs, dy))


@pytest.mark.parametrize("shape", [(100, 33, 40), (60, 72, 20)], ids=str)
def test_a_norm_of_equal_numbers(shape: tuple[int, int, int], device: str) -> None:
    inputs, dy = swiglu_inputs_of_equal_columns(*shape), torch.randn(shape[:2])
    assert_all_as_accurate(swiglu_on(device, inputs, dy), swiglu_references(inputs, dy))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_several_chunks(dtype: torch.dtype, device: str) -> None:
    N = CHUNK + 70
    inputs, dy = swiglu_inputs(N, 8, 12, 2, dtype), torch.randn(N, 8).to(dtype)
    whole = swiglu_on(device, inputs, dy)
    assert_all_as_accurate(whole, swiglu_references(inputs, dy))
    apart = {name: x[CHUNK:] if name == "x" else x for name, x in inputs.items()}
    last = swiglu_on(device, apart, dy[CHUNK:])
    for name in ("y", "dx"):
        assert torch.equal(whole[name][CHUNK:], last[name])


@pytest.mark.parametrize("norm", [0, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kept_rows_give_the_bits_that_computing_them_again_does(dtype: torch.dtype, norm: int, device: str) -> None:
    inputs, dy = swiglu_inputs(CHUNK + 70, 8, 12, norm, dtype), torch.randn(CHUNK + 70, 8).to(dtype)
    dy[20:90] = 0
    inputs["x"][50] = torch.inf
    assert_bitwise_equal(swiglu_on(device, inputs, dy, keep=True), swiglu_on(device, inputs, dy))


def test_the_same_bits_in_any_order_of_threads(device: str) -> None:
    inputs, dy = swiglu_inputs(300, 40, 24, 2, torch.float32), torch.randn(300, 40)
    assert_bitwise_equal(swiglu_on(device, inputs, dy, seed=5), swiglu_on(device, inputs, dy))


def test_strided_inputs(device: str) -> None:
    inputs, dy = swiglu_inputs(100, 24, 40, 2, torch.bfloat16), torch.randn(100, 24).bfloat16()
    strided = {n: torch.stack([x, x + 1], dim=-1).flatten(-2)[..., ::2] for n, x in inputs.items()}
    transposed = {n: x.mT.contiguous().mT if x.dim() == 2 else x for n, x in inputs.items()}
    references = swiglu_references(inputs, dy)
    for each in (strided, transposed):
        assert_all_as_accurate(swiglu_on(device, each, dy.T.contiguous().T), references)


def test_every_row_is_on_its_own(device: str) -> None:
    inputs, dy = swiglu_inputs(100, 24, 40, 2, torch.float32), torch.randn(100, 24)
    expected = swiglu_on(device, inputs, dy)
    inputs["x"][70] = torch.nan
    poisoned = swiglu_on(device, inputs, dy)
    others = torch.arange(100) != 70
    for name in ("y", "dx"):
        assert torch.equal(poisoned[name][others], expected[name][others])
        assert bool(poisoned[name][70].isnan().all())


def test_float64_is_refused(device: str) -> None:
    inputs = swiglu_inputs(3, 4, 5)
    expected = "swiglu_ffn_norm: x must be float32, bfloat16 or float16 on CUDA, got Double"
    with pytest.raises(ValueError, match=re.escape(expected)):
        call_on(device, "swiglu_ffn_norm", *inputs.values(), 1e-5)
