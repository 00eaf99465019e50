"""target_attention under torch.library, torch.compile, torch.export and function transforms."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import DTYPES, TARGET_ATTENTION_SMALL, TargetAttentionCase, TargetAttentionInputs
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import stca

CASES = [*TARGET_ATTENTION_SMALL, TargetAttentionCase("nothing", [(0, 0), (2, 0)], 2, 1, 4, 3)]
Results = tuple[Tensor, ...]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()


def _leaves(inputs: TargetAttentionInputs) -> list[Tensor]:
    return [x for x in (inputs.q, inputs.k, inputs.v) if x is not None]


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    target_offsets: Tensor,
    history_offsets: Tensor,
    visible: Tensor | None,
    history_index: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Some arithmetic around the operator, as a model has it."""
    tensors = q * 2, k, v, target_offsets, history_offsets
    out, lse = stca.ops.target_attention(*tensors, visible=visible, history_index=history_index, return_lse=True)
    return out + 1, lse.exp()


def _run(f: Callable[..., tuple[Tensor, Tensor]], inputs: TargetAttentionInputs) -> Results:
    """Outputs, and the gradients of q, k and v."""
    leaves = [x.detach().clone().requires_grad_() for x in _leaves(inputs)]
    q, k, v = leaves if len(leaves) == 3 else (*leaves, None)
    out, lse = f(*inputs.but(q=q, k=k, v=v).arguments()[:-1])
    return out, lse, *torch.autograd.grad((out, lse), leaves, (inputs.dout, inputs.dlse))


def _backward_arguments(inputs: TargetAttentionInputs) -> tuple[Any, ...]:
    *arguments, scale = inputs.arguments()
    out, lse, max_and_sum, _ = torch.ops.stca.target_attention(*arguments, scale)
    return inputs.dout, inputs.dlse.to(lse.dtype), *arguments, out, max_and_sum, scale


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_opcheck(case: TargetAttentionCase, dtype: torch.dtype) -> None:
    inputs = case.build(dtype)
    passed = torch.library.opcheck(torch.ops.stca.target_attention_backward, _backward_arguments(inputs))
    for x in _leaves(inputs):
        x.requires_grad_()
    passed |= torch.library.opcheck(torch.ops.stca.target_attention, inputs.arguments())
    assert set(passed.values()) == {"SUCCESS"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_fake_kernels_describe_the_real_ones(case: TargetAttentionCase, dtype: torch.dtype) -> None:
    """Same shapes, strides and dtypes, for inputs that are not contiguous as well."""
    inputs = case.build(dtype).map(lambda x: x.transpose(0, 1).contiguous().transpose(0, 1))
    for op, arguments in (
        (torch.ops.stca.target_attention, inputs.arguments()),
        (torch.ops.stca.target_attention_backward, _backward_arguments(inputs)),
    ):
        real = op(*arguments)
        fake = op(*(x.to("meta") if isinstance(x, Tensor) else x for x in arguments))
        for a, b in zip(real, fake, strict=True):
            assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


def test_meta_tensors() -> None:
    meta = CASES[1].build().map(lambda x: x.to("meta"))
    offsets = (meta.target_offsets.to("meta"), meta.history_offsets.to("meta"))
    out = stca.ops.target_attention(meta.q, meta.k, meta.v, *offsets)
    assert (out.device.type, out.shape) == ("meta", meta.dout.shape)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_compile(case: TargetAttentionCase) -> None:
    inputs = case.build()
    compiled = torch.compile(_call, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(_run(compiled, inputs), _run(_call, inputs), strict=True):
        assert torch.equal(actual, expected)


def test_compile_with_inductor() -> None:
    inputs = CASES[1].build()
    compiled = torch.compile(_call, fullgraph=True)
    for actual, expected in zip(_run(compiled, inputs), _run(_call, inputs), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("visible", ["all", "random"])
@pytest.mark.parametrize("value_dim", [None, 3])
def test_compile_once_for_all_sizes(value_dim: int | None, visible: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(_call, fullgraph=True, backend=counter)
    for seed, requests in enumerate(([(2, 9), (3, 4)], [(4, 70), (1, 3), (2, 0)], [(1, 600)] * 7)):
        inputs = TargetAttentionCase("", requests, 4, 2, 5, value_dim, visible).build(seed=seed)
        dynamic = [*_leaves(inputs), inputs.target_offsets, inputs.history_offsets]
        for x in dynamic if inputs.visible is None else [*dynamic, inputs.visible]:
            torch._dynamo.mark_dynamic(x, 0)
        *arguments, _ = inputs.arguments()
        for actual, expected in zip(compiled(*arguments), _call(*arguments), strict=True):
            assert torch.equal(actual, expected)
    assert counter.frame_count == 1


class _Model(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor, target_offsets: Tensor, history_offsets: Tensor) -> Tensor:
        return stca.ops.target_attention(q, k, None, target_offsets, history_offsets).sum(dim=1)


def test_export_with_dynamic_sizes() -> None:
    small, large = (
        TargetAttentionCase("", requests, 4, 1, 8).build() for requests in ([(2, 9), (3, 4)], [(4, 70), (1, 3), (2, 0)])
    )
    T, N, R1 = (torch.export.Dim(name, min=1) for name in ("T", "N", "R1"))
    sizes = ({0: T}, {0: N}, {0: R1}, {0: R1})
    exported = torch.export.export(
        _Model(), (small.q, small.k, small.target_offsets, small.history_offsets), dynamic_shapes=sizes
    )
    arguments = large.q, large.k, large.target_offsets, large.history_offsets
    assert torch.equal(exported.module()(*arguments), _Model()(*arguments))


def test_vmap_is_a_loop() -> None:
    inputs = CASES[0].build()
    qs = torch.stack([inputs.q, inputs.q * 2, -inputs.q])

    def f(q: Tensor) -> Tensor:
        return inputs.but(q=q).call(stca.ops.target_attention)[0]

    assert torch.equal(torch.vmap(f)(qs), torch.stack([f(q) for q in qs]))


def test_second_derivatives_are_refused() -> None:
    inputs = CASES[0].build(torch.float64)
    q = inputs.q.requires_grad_()
    out, _ = inputs.call(stca.ops.target_attention)
    (dq,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="target_attention: second derivatives are not supported"):
        torch.autograd.grad(dq.sum(), q)
