"""Gradients that nobody asks for, as of a frozen history, are not made, and what is asked for does not change."""

from typing import Any

import pytest
import torch
from cuda_devices import DEVICES, call_on
from torch import Tensor

import stca

OFFSETS = torch.tensor([0, 5, 5, 40]), torch.tensor([0, 30, 60, 700])  # targets and history rows of three requests


def _attention(
    dtype: torch.dtype, targets: int, heads: int, kv_heads: int, shared: bool, part: str
) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor], dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, targets, targets, 3 * targets])
    q, k, v = (
        torch.randn(n, h, 32, dtype=torch.float64, generator=generator).to(dtype)
        for n, h in ((3 * targets, heads), (700, kv_heads), (700, kv_heads))
    )
    options: dict[str, Any] = {}
    if part == "visible":
        options["visible"] = torch.tensor([[2, 25]]).repeat(3 * targets, 1)
    elif part == "index":
        options["history_index"] = torch.randint(0, 700, (700,), generator=generator)
    return q.requires_grad_(), k, None if shared else v, [offsets, OFFSETS[1]], options


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("part", ["whole", "visible", "index"])
@pytest.mark.parametrize(
    ("targets", "heads", "kv_heads", "shared"), [(1, 2, 1, True), (40, 2, 1, True), (1, 2, 2, False), (40, 2, 2, False)]
)
def test_attention_to_a_frozen_history(
    dtype: torch.dtype, part: str, targets: int, heads: int, kv_heads: int, shared: bool
) -> None:
    q, k, v, offsets, options = _attention(dtype, targets, heads, kv_heads, shared, part)
    frozen = stca.ops.target_attention(q, k, v, *offsets, **options)
    (dq,) = torch.autograd.grad(frozen.float().square().sum(), q)
    k.requires_grad_()
    trained = stca.ops.target_attention(q, k, v, *offsets, **options)
    expected, dk = torch.autograd.grad(trained.float().square().sum(), (q, k))
    assert torch.equal(dq, expected)
    assert bool(dk.any())


def _call(device: str, op: str, *arguments: Any) -> Any:
    return getattr(torch.ops.stca, op)(*arguments) if device == "cpu" else call_on(device, op, *arguments)


@pytest.mark.parametrize("device", ["cpu", *DEVICES])
@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_history_gradients_are_empty_where_not_wanted(shared: bool, indexed: bool, device: str) -> None:
    part = "index" if indexed else "whole"
    q, k, v, offsets, options = _attention(torch.float32, 5, 2, 1 if shared else 2, shared, part)
    arguments = q.detach(), k, v, *offsets, None, options.get("history_index")
    out, _, max_and_sum, _ = _call(device, "target_attention", *arguments, None)
    arguments = torch.ones_like(out), None, *arguments, out, max_and_sum, None
    backward = "target_attention_backward"
    expected, dk, dv = _call(device, backward, *arguments, True)
    assert dk.shape == k.shape
    assert dv.shape == ((0,) if v is None else v.shape)
    dq, dk, dv = _call(device, backward, *arguments, False)
    assert torch.equal(dq, expected)
    assert dk.shape == dv.shape == (0,)
    if device == "cpu":
        torch.library.opcheck(
            torch.ops.stca.target_attention_backward, (*arguments, False), test_utils="test_faketensor"
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", [False, True])
def test_network_on_frozen_rows(dtype: torch.dtype, norm: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(300, 24), (24, 40), (24, 40), (40, 24), *([(24,), (24,)] if norm else [])]
    x, *weights = tuple(torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype) for shape in shapes)
    network: Any = stca.ops.swiglu_ffn_norm
    for weight in weights:
        weight.requires_grad_()
    frozen = torch.autograd.grad(network(x, *weights).float().square().sum(), weights)
    x.requires_grad_()
    dx, *trained = torch.autograd.grad(network(x, *weights).float().square().sum(), [x, *weights])
    assert all(map(torch.equal, frozen, trained))
    assert bool(dx.any())


@pytest.mark.parametrize("device", ["cpu", *DEVICES])
def test_gradient_of_rows_is_empty_where_not_wanted(device: str) -> None:
    x, w_u, w_v, w_o = torch.randn(7, 8), torch.randn(8, 16), torch.randn(8, 16), torch.randn(16, 8)
    none = torch.empty(0)
    arguments = torch.ones(7, 8), x, w_u, w_v, w_o, None, None, none, none, None
    dx, *expected = _call(device, "swiglu_ffn_norm_backward", *arguments, True)
    assert dx.shape == x.shape
    dx, *weights = _call(device, "swiglu_ffn_norm_backward", *arguments, False)
    assert dx.shape == (0,)
    assert all(map(torch.equal, weights, expected))
    if device == "cpu":
        torch.library.opcheck(
            torch.ops.stca.swiglu_ffn_norm_backward, (*arguments, False), test_utils="test_faketensor"
        )


def test_a_compiled_model_with_a_frozen_history() -> None:
    torch.manual_seed(0)
    model = stca.nn.STCA(16, num_layers=2, num_heads=2)
    targets, history = torch.randn(40, 16), torch.randn(700, 16)

    def step(forward: Any) -> list[Tensor]:
        return list(torch.autograd.grad(forward(targets, history, *OFFSETS).square().sum(), list(model.parameters())))

    compiled = step(torch.compile(model, fullgraph=True, backend="aot_eager"))
    torch.testing.assert_close(compiled, step(model))
