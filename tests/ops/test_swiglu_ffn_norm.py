"""swiglu_ffn_norm: accuracy, gradients, what surrounds an op in torch, and messages."""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from accuracy import assert_all_as_accurate, assert_bitwise_equal
from cases import DTYPES, ISAS, SWIGLU_SHAPES, swiglu_inputs, swiglu_inputs_of_equal_columns
from hypothesis import given
from hypothesis import strategies as st
from plain import swiglu_references
from torch import Tensor

import stca


def _results(f: Callable[..., Tensor], inputs: dict[str, Any], dy: Tensor, **options: Any) -> dict[str, Tensor]:
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    y = f(**leaves, **options)
    grads = torch.autograd.grad(y, list(leaves.values()), dy.to(y.dtype))
    return {"y": y.detach()} | {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("norm", [0, 1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SWIGLU_SHAPES)
def test_accuracy(isa: str, shape: tuple[int, int, int], dtype: torch.dtype, norm: int) -> None:
    _judge(swiglu_inputs(*shape, norm, dtype))


@pytest.mark.parametrize("shape", [(300, 33, 40), (100, 9, 64), (60, 72, 20)])
def test_a_norm_of_equal_numbers(isa: str, shape: tuple[int, int, int]) -> None:
    _judge(swiglu_inputs_of_equal_columns(*shape))


def _judge(inputs: dict[str, Any]) -> None:
    dy = torch.randn(inputs["x"].shape).to(inputs["x"].dtype)
    references = swiglu_references(inputs, dy)
    for recompute in (True, False):
        assert_all_as_accurate(_results(stca.ops.swiglu_ffn_norm, inputs, dy, recompute=recompute), references)


@given(
    # Not narrower: of a few columns the norm leaves so little gradient that rounding is all of it.
    shape=st.tuples(st.integers(0, 300), st.integers(8, 80), st.integers(8, 80)),
    dtype=st.sampled_from(DTYPES),
    norm=st.integers(0, 2),
    isa=st.sampled_from(ISAS),
    seed=st.integers(0, 2**31),
)
def test_drawn_shapes(shape: tuple[int, int, int], dtype: torch.dtype, norm: int, isa: str, seed: int) -> None:
    before = stca.cpu_isa()
    torch.manual_seed(seed)
    stca.set_cpu_isa(isa)
    try:
        _judge(swiglu_inputs(*shape, norm, dtype))
    finally:
        stca.set_cpu_isa(before)


@pytest.mark.parametrize("f", [stca.ops.swiglu_ffn_norm, stca.reference.swiglu_ffn_norm])
def test_gradcheck(f: Callable[..., Tensor]) -> None:
    for norm in (0, 1, 2):
        inputs = [x.requires_grad_() for x in swiglu_inputs(5, 6, 7, norm).values()]
        for recompute in (True, False):
            assert torch.autograd.gradcheck(partial(f, recompute=recompute), inputs)


def test_the_oracle_is_torchs_own() -> None:
    i = swiglu_inputs(50, 16, 24)
    h = (i["x"] @ i["w_u"] * torch.nn.functional.silu(i["x"] @ i["w_v"])) @ i["w_o"]
    expected = torch.nn.functional.layer_norm(h, (16,), i["norm_weight"], i["norm_bias"])
    torch.testing.assert_close(stca.reference.swiglu_ffn_norm(**i), expected)


def test_opcheck() -> None:
    i = [x.requires_grad_() for x in swiglu_inputs(7, 8, 12, 2, torch.float32).values()]
    tests = ("test_schema", "test_faketensor")  # the backward operator's own backward pass raises
    for keep in (False, True):
        torch.library.opcheck(torch.ops.stca.swiglu_ffn_norm, (*i, 1e-5, keep))
        y, mean, rstd, *kept = (x.detach() for x in torch.ops.stca.swiglu_ffn_norm(*i, 1e-5, keep))
        arguments = y, *(x.detach() for x in i), mean, rstd, *((None, True, *kept) if keep else (y,))
        torch.library.opcheck(torch.ops.stca.swiglu_ffn_norm_backward, arguments, test_utils=tests)


def test_compiles_into_one_graph() -> None:
    inputs = swiglu_inputs(20, 8, 12, 2, torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(stca.ops.swiglu_ffn_norm, fullgraph=True)
    dy = torch.randn(20, 8)
    for recompute in (True, False, "auto"):
        ours = _results(stca.ops.swiglu_ffn_norm, inputs, dy, recompute=recompute)
        torch.testing.assert_close(_results(compiled, inputs, dy, recompute=recompute), ours)


def test_second_derivatives_are_refused() -> None:
    x, *rest = (each.requires_grad_() for each in swiglu_inputs(3, 4, 5).values())
    (grad,) = torch.autograd.grad(stca.ops.swiglu_ffn_norm(x, *rest).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="swiglu_ffn_norm: second derivatives are not supported"):
        grad.sum().backward()


@pytest.mark.parametrize("weight", [0.0, 1e-3])
def test_where_y_does_not_tell_what_the_norm_saw(isa: str, weight: float) -> None:
    inputs = swiglu_inputs(40, 24, 40, 2, torch.float32)
    inputs["norm_weight"][5] = weight
    _judge(inputs)


def test_y_is_not_to_be_written_to() -> None:
    inputs = [x.requires_grad_() for x in swiglu_inputs(3, 4, 5, 2, torch.float32).values()]
    y = stca.ops.swiglu_ffn_norm(*inputs)
    y.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.sum(), inputs)


def test_strides() -> None:
    inputs = swiglu_inputs(100, 24, 40)
    dy = torch.randn(100, 24, dtype=torch.float64)
    expected = _results(stca.ops.swiglu_ffn_norm, inputs, dy)
    transposed = {n: x.mT.contiguous().mT if x.dim() == 2 else x for n, x in inputs.items()}
    assert_bitwise_equal(_results(stca.ops.swiglu_ffn_norm, transposed, dy.T.contiguous().T), expected)
    sliced = {n: torch.stack([x, x + 1], dim=-1).flatten(-2)[..., ::2] for n, x in inputs.items()}
    assert_bitwise_equal(_results(stca.ops.swiglu_ffn_norm, sliced, dy), expected)


@pytest.mark.parametrize("count", [1, 2])
def test_two_runs_are_bitwise_equal(threads: Callable[[int], None], count: int) -> None:
    threads(count)
    inputs, dy = swiglu_inputs(1000, 64, 96, 2, torch.float32), torch.randn(1000, 64)
    assert_bitwise_equal(_results(stca.ops.swiglu_ffn_norm, inputs, dy), _results(stca.ops.swiglu_ffn_norm, inputs, dy))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_is_the_same_in_any_batch(
    threads: Callable[[int], None], uninitialized_is_nan: None, isa: str, dtype: torch.dtype
) -> None:
    """Many rows meet packed weights and few meet them where they lie; tiles follow rows and threads."""
    inputs = swiglu_inputs(1000, 33, 70, 2, dtype)
    threads(2)
    y = stca.ops.swiglu_ffn_norm(**inputs)
    assert y.isfinite().all()
    for count, rows in ((1, 1), (1, 97), (2, 2), (2, 33), (2, 193), (3, 7), (3, 300)):
        threads(count)
        part = stca.ops.swiglu_ffn_norm(**inputs | {"x": inputs["x"][:rows]})
        assert torch.equal(part, y[:rows]), (count, rows)


@pytest.mark.skipif(len(ISAS) < 2, reason="the CPU has one instruction set")
def test_another_thread_chooses_an_instruction_set_meanwhile() -> None:
    """A call stays with the set it began with: its kernels hand each other panels as wide as their vectors."""
    inputs, dy = swiglu_inputs(96, 33, 70, 2, torch.float32), torch.randn(96, 33)
    before, done = stca.cpu_isa(), threading.Event()
    expected = []
    for name in ISAS:
        stca.set_cpu_isa(name)
        expected.append(_results(stca.ops.swiglu_ffn_norm, inputs, dy))

    def choose() -> None:
        while not done.is_set():
            for name in ISAS:
                stca.set_cpu_isa(name)
                time.sleep(0)  # lets the other thread have the interpreter, for which it else waits 5 ms each time

    chooser = threading.Thread(target=choose)
    chooser.start()
    try:
        for _ in range(500):
            for name, x in _results(stca.ops.swiglu_ffn_norm, inputs, dy).items():
                closest = min(float((x - each[name]).abs().max()) for each in expected)
                assert closest <= 1e-3 * float(x.abs().max()), name
    finally:
        done.set()
        chooser.join()
        stca.set_cpu_isa(before)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_rows_do_not_touch_each_other(uninitialized_is_nan: None, poison: float) -> None:
    inputs = swiglu_inputs(100, 9, 13, 2, torch.float32)
    y = stca.ops.swiglu_ffn_norm(**inputs)
    inputs["x"][50] = poison
    poisoned = stca.ops.swiglu_ffn_norm(**inputs)
    others = torch.arange(100) != 50
    assert torch.equal(poisoned[others], y[others])
    assert poisoned[50].isnan().all()
    assert y.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward_reads_no_uninitialized_memory(uninitialized_is_nan: None, isa: str, dtype: torch.dtype) -> None:
    """And the poisoned gradient of a row stays in that row of dx."""
    inputs, others = swiglu_inputs(100, 9, 13, 2, dtype), torch.arange(100) != 50
    for recompute in (True, False):
        dy = torch.randn(100, 9)
        clean = _results(stca.ops.swiglu_ffn_norm, inputs, dy, recompute=recompute)
        assert all(x.isfinite().all() for x in clean.values())
        dy[50] = torch.nan
        dx = _results(stca.ops.swiglu_ffn_norm, inputs, dy, recompute=recompute)["dx"]
        assert torch.equal(dx[others], clean["dx"][others])
        assert dx[50].isnan().all()


def test_large_gates_do_not_overflow() -> None:
    inputs = swiglu_inputs(4, 8, 8, 0, torch.float32)
    inputs["x"] *= 1e4
    torch.testing.assert_close(
        stca.ops.swiglu_ffn_norm(**inputs), stca.reference.swiglu_ffn_norm(**inputs), rtol=1e-4, atol=1e3
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(3)}, r"x must be \[N, D\], got \[3\]"),
        ({"x": torch.zeros(3, 4, dtype=torch.int64)}, "x must be float64, float32, bfloat16 or float16, got Long"),
        ({"w_u": torch.zeros(5, 6)}, r"w_u must be \[D, F\] = \[4, 6\], got \[5, 6\]"),
        ({"w_v": torch.zeros(4, 5)}, r"w_v must be \[D, F\] = \[4, 6\], got \[4, 5\]"),
        ({"w_o": torch.zeros(4, 6)}, r"w_o must be \[F, D\] = \[6, 4\], got \[4, 6\]"),
        ({"w_o": torch.zeros(6, 4, dtype=torch.float64)}, "w_o must have the dtype of x, Float, got Double"),
        ({"norm_weight": torch.zeros(3)}, r"norm_weight must be \[D\] = \[4\], got \[3\]"),
        ({"norm_weight": None}, "norm_bias must be None where norm_weight is None"),
        ({"w_u": torch.zeros(4, 0)}, ".*must have D and F of at least 1"),
        ({"w_v": torch.zeros(4, 6, device="meta")}, "w_v must be on the device of x, cpu, got meta"),
    ],
)
def test_bad_calls(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = swiglu_inputs(3, 4, 6, 2, torch.float32)
    with pytest.raises(ValueError, match=f"swiglu_ffn_norm: {message}"):
        stca.ops.swiglu_ffn_norm(**{**good, **changes})


@pytest.mark.parametrize(("D", "F"), [(2**40, 2**22), (2**22, 2**40), (2**62, 1), (1, 2**62)])
def test_weights_that_no_memory_holds(D: int, F: int) -> None:
    """Expanded weights may claim any size: bytes of a packed copy were more than a number of 64 bits holds."""
    zero = torch.zeros(1, 1)
    w = zero.expand(D, F)
    with pytest.raises(torch.OutOfMemoryError, match=rf"^swiglu_ffn_norm: weights of D = {D} and F = {F} do not fit"):
        stca.ops.swiglu_ffn_norm(zero.expand(0, D), w, w, zero.expand(F, D))
