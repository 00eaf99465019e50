"""What swiglu_ffn_norm keeps of its forward pass: memory, work, which calls keep it, and what the modules pass on."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from accuracy import assert_all_as_accurate, assert_bitwise_equal
from cases import DTYPES, swiglu_inputs
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import stca
from stca.nn import STCA, STCALayer, SwiGLUFFN, TargetAttention


def _gradients(inputs: dict[str, Any], dy: Tensor, recompute: Any) -> dict[str, Tensor]:
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    y = stca.ops.swiglu_ffn_norm(**leaves, recompute=recompute)
    return dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), dy), strict=True))


def _kept_numbers(y: Tensor) -> int:
    """Elements of what the graph of y holds beside the inputs, y and two numbers per row."""
    kept = y.grad_fn.saved_tensors[-2:]  # type: ignore[union-attr]
    return sum(x.numel() for x in kept if x is not None)


@pytest.mark.parametrize("norm", [0, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_without_a_gradient_are_left_out(isa: str, dtype: torch.dtype, norm: int) -> None:
    inputs, dy = swiglu_inputs(250, 9, 13, norm, dtype), torch.randn(250, 9).to(dtype)
    dead = torch.rand(250) < 0.4
    dy[dead] = 0
    inputs["x"][dead] = torch.nan
    alive = {**inputs, "x": inputs["x"][~dead]}
    actual, expected = _gradients(inputs, dy, False), _gradients(alive, dy[~dead], False)
    assert not actual["x"][dead].any()
    assert_bitwise_equal(actual | {"x": actual["x"][~dead]}, expected)


@pytest.mark.parametrize("norm", [0, 1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_are_the_same_bits(isa: str, dtype: torch.dtype, norm: int) -> None:
    inputs = swiglu_inputs(250, 9, 13, norm, dtype)
    expected = stca.ops.swiglu_ffn_norm(**inputs)
    inputs["x"].requires_grad_()
    for recompute in (True, False):
        assert torch.equal(stca.ops.swiglu_ffn_norm(**inputs, recompute=recompute), expected)


def test_where_the_norm_hides_its_input() -> None:
    """No digit of h is recovered from y, so that a weight of 0 or of 1e-30 loses none."""
    inputs, dy = swiglu_inputs(40, 24, 40, 2, torch.float32), torch.randn(40, 24)
    inputs["norm_weight"][:2] = torch.tensor([0.0, 1e-30])
    leaves = [{name: x.to(dtype).requires_grad_() for name, x in inputs.items()} for dtype in (torch.float64, dy.dtype)]
    exact, plain = (
        dict(
            zip(each, torch.autograd.grad(stca.reference.swiglu_ffn_norm(**each), [*each.values()], grad), strict=True)
        )
        for each, grad in zip(leaves, (dy.double(), dy), strict=True)
    )
    actual = _gradients(inputs, dy, False)
    assert_all_as_accurate(actual, {name: (exact[name], plain[name]) for name in exact})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_takes_nine_products(dtype: torch.dtype) -> None:
    inputs = {name: x.requires_grad_() for name, x in swiglu_inputs(50, 8, 12, 2, dtype).items()}
    with FlopCounterMode(display=False) as counter:
        y = stca.ops.swiglu_ffn_norm(**inputs, recompute=False)
        y.backward(torch.ones_like(y))  # type: ignore[no-untyped-call]
    assert counter.get_total_flops() == 2 * 9 * 50 * 8 * 12


def test_auto_keeps_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = {name: x.requires_grad_() for name, x in swiglu_inputs(10, 8, 12, 2, torch.float32).items()}
    size = 10 * (2 * 12 + 8)
    module = sys.modules["stca.ops._common"]
    for limit, expected in ((4 * size, size), (4 * size - 1, 0)):
        monkeypatch.setattr(module, "KEPT_BYTES", limit)
        assert _kept_numbers(stca.ops.swiglu_ffn_norm(**inputs, recompute="auto")) == expected


def test_nothing_is_kept_without_a_gradient() -> None:
    inputs = swiglu_inputs(10, 8, 12, 2, torch.float32)
    counted: list[int] = []
    op = torch.ops.stca.swiglu_ffn_norm

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = f(*args, **(kwargs or {}))
            if f is op.default:
                counted.append(result[3].numel())
            return result

    with Seen():  # type: ignore[no-untyped-call]
        stca.ops.swiglu_ffn_norm(**inputs, recompute=False)
        inputs["w_o"].requires_grad_()
        with torch.no_grad():
            stca.ops.swiglu_ffn_norm(**inputs, recompute=False)
        stca.ops.swiglu_ffn_norm(**inputs, recompute=False)
    assert counted == [0, 0, 10 * 24]


@pytest.mark.parametrize("recompute", [None, "never", 1])
def test_another_choice_is_refused(recompute: Any) -> None:
    message = f"swiglu_ffn_norm: recompute must be True, False or 'auto', got {recompute!r}"
    with pytest.raises(ValueError, match=message):
        stca.ops.swiglu_ffn_norm(**swiglu_inputs(3, 4, 6), recompute=recompute)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3, 12), None), "uv and h must be given together, got one of them"),
        (
            (torch.ones(3, 6), torch.ones(3, 4)),
            r"uv must be as the forward pass kept it, \[3, 12\] of Float on cpu, got \[3, 6\] of",
        ),
        (
            (torch.ones(3, 12), torch.ones(2, 4)),
            r"h must be as the forward pass kept it, \[3, 4\] of Float on cpu, got \[2, 4\] of",
        ),
        (
            (torch.ones(3, 12).double(), torch.ones(3, 4)),
            r"uv must be .* of Float on cpu, got \[3, 12\] of Double on cpu",
        ),
    ],
)
def test_what_was_kept_is_checked(arguments: tuple[Any, ...], message: str) -> None:
    inputs, one = swiglu_inputs(3, 4, 6, 2, torch.float32), torch.ones(3)
    with pytest.raises(ValueError, match=f"swiglu_ffn_norm: {message}"):
        torch.ops.stca.swiglu_ffn_norm_backward(inputs["x"], *inputs.values(), one, one, None, True, *arguments)


@pytest.mark.parametrize("recompute", [True, False, "auto"])
def test_modules_pass_it_on(recompute: Any) -> None:
    for module in (
        SwiGLUFFN(8, recompute=recompute),
        STCALayer(8, 2, recompute=recompute),
        STCA(8, recompute=recompute),
    ):
        parts = [each for each in module.modules() if isinstance(each, SwiGLUFFN | TargetAttention)]
        assert {type(each) for each in parts} == {type(module)} & {SwiGLUFFN} or {SwiGLUFFN, TargetAttention}
        assert all(each.recompute == recompute for each in parts)
    x = torch.randn(5, 8, requires_grad=True)
    assert (_kept_numbers(SwiGLUFFN(8, norm=True, recompute=recompute)(x)) == 0) == (recompute is True)


_PEAK = """
import sys, torch, stca
from pathlib import Path
torch.set_num_threads(2)
x = torch.randn(2**16, 256, requires_grad=True)
w_u, w_v, w_o = (torch.randn(s).mul(0.05).requires_grad_() for s in ((256, 512), (256, 512), (512, 256)))
weight, bias, dy = torch.ones(256, requires_grad=True), torch.zeros(256, requires_grad=True), torch.randn(2**16, 256)
F = torch.nn.functional
def status(field):
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(field))
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
if sys.argv[1] == "eager":
    y = F.layer_norm((x @ w_u * F.silu(x @ w_v)) @ w_o, (256,), weight, bias)
else:
    y = stca.ops.swiglu_ffn_norm(x, w_u, w_v, w_o, weight, bias, recompute=sys.argv[1] == "again")
y.backward(dy)
print(status("VmHWM") - before)
"""


def test_peak_memory_beside_eager() -> None:
    """A third of it, or two thirds where hidden rows are kept."""
    peaks = {}
    for who in ("again", "kept", "eager"):
        run = subprocess.run([sys.executable, "-c", _PEAK, who], capture_output=True, text=True, check=True)
        peaks[who] = int(run.stdout)
    assert peaks["again"] <= peaks["eager"] / 3, peaks
    assert peaks["kept"] <= peaks["eager"] * 2 / 3, peaks


@pytest.mark.parametrize("name", ["mean", "rstd"])
@pytest.mark.parametrize("wrong", [torch.empty(0), torch.ones(4, dtype=torch.float64), torch.ones(3), torch.ones(4, 1)])
def test_statistics_of_another_shape(name: str, wrong: Tensor) -> None:
    """The kernels would read beyond them."""
    x, w, w_o = torch.ones(4, 8), torch.ones(8, 5), torch.ones(5, 8)
    statistics = [wrong if each == name else torch.ones(4) for each in ("mean", "rstd")]
    with pytest.raises(ValueError, match=rf"swiglu_ffn_norm: {name} must be \[4\] of Float on cpu, got "):
        torch.ops.stca.swiglu_ffn_norm_backward(x, x, w, w, w_o, torch.ones(8), None, *statistics)


def test_auto_exports_with_any_number_of_rows() -> None:
    model, x = stca.nn.SwiGLUFFN(8, norm=True, recompute="auto"), torch.randn(6, 8)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
    y = torch.randn(11, 8)
    assert torch.equal(exported.module()(y), model(y))
