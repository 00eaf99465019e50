"""Hopper's products of swiglu_ffn_norm agree with the oracle: their PTX in the machine of tests/ptx, and on a GPU."""

from itertools import product

import pytest
import torch
from accuracy import assert_all_as_accurate, assert_bitwise_equal
from cases import swiglu_inputs
from cuda_devices import HOPPERS, call_on, hopper_kernels, needs_gpu, swiglu_on
from emulated import launched_kernels
from plain import swiglu_references
from torch import Tensor

CHUNK = 66 * 128  # rows
DTYPES = (torch.bfloat16, torch.float16)
# A block makes 128 rows by 256 columns, of which u and v of a gate have 128 each, from 64 of depth at a time; clusters
# have 256 rows, and two of them run at a time.
SHAPES = [
    (1, 8, 8),
    (127, 64, 128),  # one tile of each product, not quite
    (130, 72, 136),  # a few more than tiles have
    (256, 128, 256),  # whole tiles
    (300, 264, 40),
    (520, 40, 264),  # more tiles than blocks
]


def _drawn(N: int, D: int, F: int, dtype: torch.dtype, norm: int = 2) -> tuple[dict[str, Tensor], Tensor]:
    return swiglu_inputs(N, D, F, norm, dtype), torch.randn(N, D).to(dtype)


def _products() -> int:
    """Hopper's that the device ran in the last call."""
    return sum("ffn_product_sm90" in name for name in launched_kernels())


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", [0, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_accuracy(shape: tuple[int, int, int], norm: int, dtype: torch.dtype) -> None:
    """The backward pass makes the gate, h for the norm, two gradients of weights, the gate's derivative, and dx."""
    inputs, dy = _drawn(*shape, dtype, norm)
    actual = swiglu_on("hopper", inputs, dy)
    assert _products() == (6 if norm else 5)
    assert_all_as_accurate(actual, swiglu_references(inputs, dy))


# So many rows that half of a GPU's multiprocessors have tiles, which is where these products are taken.
MANY = [(CHUNK + 552, 72, 136), (CHUNK, 128, 256), (4_001, 128, 512)]


@needs_gpu
@pytest.mark.parametrize("device", ["hopper-gpu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("norm", "keep"), [(2, False), (0, True)])
@pytest.mark.parametrize("shape", MANY, ids=str)
def test_many_rows(shape: tuple[int, int, int], norm: int, keep: bool, dtype: torch.dtype, device: str) -> None:
    inputs, dy = _drawn(*shape, dtype, norm)
    actual = swiglu_on(device, inputs, dy, keep)
    assert_all_as_accurate(actual, swiglu_references(inputs, dy))
    assert_bitwise_equal(swiglu_on(device, inputs, dy, keep), actual)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("device", "shape"), [("hopper", SHAPES[2]), *product(HOPPERS[1:], MANY)], ids=str)
def test_hoppers_kernels_run(device: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Two kinds of products forward, and all five where the gate is made again for the gradients."""
    inputs, dy = _drawn(*shape, dtype)
    forward = hopper_kernels(device, lambda: call_on(device, "swiglu_ffn_norm", *inputs.values(), 1e-5))
    assert len(set(forward)) == 2
    assert len(set(hopper_kernels(device, lambda: swiglu_on(device, inputs, dy)))) == 5


@pytest.mark.parametrize("norm", [0, 2])
def test_of_kept_rows_the_backward_pass_makes_four_products(norm: int) -> None:
    inputs, dy = _drawn(300, 72, 136, torch.bfloat16, norm)
    actual = swiglu_on("hopper", inputs, dy, keep=True)
    assert _products() == 4
    assert_all_as_accurate(actual, swiglu_references(inputs, dy))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_less_accurate_than_the_common_kernels(dtype: torch.dtype) -> None:
    """Between them lie torch's products, whose sums are rounded to 16 bits, here also those of g and dg."""
    inputs, dy = _drawn(260, 72, 136, dtype)
    references = swiglu_references(inputs, dy)
    own, common = swiglu_on("hopper", inputs, dy), swiglu_on("emulator", inputs, dy)
    for name, (exact, _) in references.items():
        error, bound = ((x[name].double() - exact).square().mean().sqrt() for x in (own, common))
        assert error <= 1.05 * bound, name


def test_the_same_bits_on_every_run() -> None:
    """Warps take turns, and copies and products land, in another order each time."""
    inputs, dy = _drawn(270, 72, 136, torch.bfloat16)
    expected = swiglu_on("hopper", inputs, dy)
    for seed in (2, 3):
        assert_bitwise_equal(swiglu_on("hopper", inputs, dy, seed=seed), expected)


def test_u_and_v_of_the_forward_pass_are_not_written() -> None:
    inputs, _ = _drawn(130, 64, 64, torch.bfloat16)
    call_on("hopper", "swiglu_ffn_norm", *inputs.values(), 1e-5)
    assert [name.split("<")[0] for name in launched_kernels()] == [
        *["ffn_product_sm90_kernel"] * 2,
        "layer_norm_fwd_kernel",
    ]


@pytest.mark.parametrize("shape", [(5, 12, 16), (5, 16, 12), (0, 8, 8)])
def test_widths_that_they_do_not_take(shape: tuple[int, int, int]) -> None:
    inputs, dy = _drawn(*shape, torch.bfloat16)
    actual = swiglu_on("hopper", inputs, dy)
    assert _products() == 0
    assert_all_as_accurate(actual, swiglu_references(inputs, dy))


@pytest.mark.parametrize("name", ["x", "w_o", "dy"])
def test_rows_at_odd_places(name: str) -> None:
    """Copies of tiles need rows at multiples of 16 bytes: else torch's products are taken where the tensor is read."""
    inputs, dy = _drawn(40, 16, 24, torch.bfloat16)
    tensors = inputs | {"dy": dy}
    tensors[name] = torch.cat([torch.zeros(1).bfloat16(), tensors[name].flatten()])[1:].view(tensors[name].shape)
    references = swiglu_references(inputs, dy)
    moved = {each: x for each, x in tensors.items() if each != "dy"}
    assert_all_as_accurate(swiglu_on("hopper", moved, tensors["dy"]), references)


@pytest.mark.parametrize("name", ["x", "dy"])
def test_one_row_for_all(name: str) -> None:
    """Rows that all lie in one place have no tensor map, whose strides may not be 0."""
    inputs, dy = _drawn(140, 24, 40, torch.bfloat16)
    tensors = inputs | {"dy": dy}
    tensors[name] = tensors[name][:1].expand(140, 24)
    inputs = {each: x for each, x in tensors.items() if each != "dy"}
    actual = swiglu_on("hopper", inputs, tensors["dy"])
    assert_all_as_accurate(actual, swiglu_references(inputs, tensors["dy"]))


def test_strided_inputs() -> None:
    inputs, dy = _drawn(100, 24, 40, torch.bfloat16)
    wide = {"x": torch.cat([inputs["x"], inputs["x"] + 1], dim=1)[:, :24]}
    transposed = {name: x.mT.contiguous().mT if x.dim() == 2 else x for name, x in inputs.items()}
    references = swiglu_references(inputs, dy)
    for each in (inputs | wide, transposed):
        assert_all_as_accurate(swiglu_on("hopper", each, dy.T.contiguous().T), references)


def test_every_row_is_on_its_own() -> None:
    inputs, dy = _drawn(140, 24, 40, torch.bfloat16)
    expected = swiglu_on("hopper", inputs, dy)
    inputs["x"][70] = torch.nan
    poisoned = swiglu_on("hopper", inputs, dy)
    others = torch.arange(140) != 70
    for name in ("y", "dx"):
        assert torch.equal(poisoned[name][others], expected[name][others])
        assert bool(poisoned[name][70].isnan().all())
    dy[70] = 0  # then what the row holds reaches no gradient
    unused = swiglu_on("hopper", inputs, dy)
    assert all(bool(grad.isfinite().all()) for name, grad in unused.items() if name != "y")


@pytest.mark.slow
def test_rows_of_several_chunks() -> None:
    """Gradients of weights go on from the chunk before, in float32."""
    inputs, dy = _drawn(CHUNK + 70, 8, 16, torch.bfloat16)
    actual = swiglu_on("hopper", inputs, dy)
    references = swiglu_references(inputs, dy)
    assert_all_as_accurate(actual, references)
    apart = {name: x[CHUNK:] if name == "x" else x for name, x in inputs.items()}
    last = swiglu_on("hopper", apart, dy[CHUNK:])
    for name in ("y", "dx"):
        assert torch.equal(actual[name][CHUNK:], last[name])


def test_large_gates() -> None:
    """e^-v overflows in float32, and v * sigmoid(v) is 0 then; where it vanishes, the derivative is 1."""
    inputs, dy = _drawn(64, 16, 16, torch.bfloat16, norm=0)
    inputs["w_v"] *= torch.tensor([1.0, 10.0, 100.0, 120.0]).repeat(4).bfloat16()
    actual = swiglu_on("hopper", inputs, dy)
    for name, (exact, _) in swiglu_references(inputs, dy).items():
        torch.testing.assert_close(actual[name].double(), exact, rtol=0.02, atol=0.01 * float(exact.abs().max()))


def test_where_the_hardware_rounds_freely() -> None:
    inputs, dy = _drawn(130, 72, 136, torch.bfloat16)
    assert_all_as_accurate(swiglu_on("hopper", inputs, dy, rough=True), swiglu_references(inputs, dy))
