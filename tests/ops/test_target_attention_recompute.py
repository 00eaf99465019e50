"""What target_attention keeps of its forward pass: the same gradients, one product less, where and how much."""

import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accuracy import assert_bitwise_equal
from cases import DTYPES, ISAS, TARGET_ATTENTION_SMALL, TargetAttentionCase, TargetAttentionInputs
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import stca

CASES = [
    *(case for case in TARGET_ATTENTION_SMALL if case.value_dim is None and case.visible == "all"),
    TargetAttentionCase("blocks-and-pieces", [(0, 3), (70, 700), (2, 0), (300, 40), (1, 9)], 8, 2, 12),
    TargetAttentionCase("behind-an-index", [(40, 300), (3, 20)], 4, 1, 16, pool=50),
]
ONE = TargetAttentionCase("one", [(9, 50), (20, 30)], 4, 1, 8)


def _results(inputs: TargetAttentionInputs, recompute: Any) -> dict[str, Tensor]:
    def attend(*args: Any, **options: Any) -> Any:
        return stca.ops.target_attention(*args, **options, recompute=recompute)

    return inputs.results(attend)


def _out(inputs: TargetAttentionInputs, recompute: Any, **options: Any) -> Tensor:
    tensors = inputs.q.requires_grad_(), inputs.k, inputs.v, inputs.target_offsets, inputs.history_offsets
    out: Tensor = stca.ops.target_attention(*tensors, **options, recompute=recompute)
    return out


def _kept_scores(out: Tensor) -> int:
    kept = out.grad_fn.saved_tensors[-1]  # type: ignore[union-attr]
    return 0 if kept is None else kept.numel() - 1  # the last says which instruction set wrote them


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", [1, 8, 40])
@pytest.mark.parametrize("backward_isa", ISAS)
def test_a_set_reads_no_scores_of_another(
    backward_isa: str, m: int, dtype: torch.dtype, isa: str, uninitialized_is_nan: None
) -> None:
    """Which scores are kept, and in what unit, is a matter of the instruction set, which may change before backward."""
    inputs = TargetAttentionCase("one", [(m, 300), (m, 20)], 4, 1, 64).build(dtype)
    dout, grads = torch.randn(inputs.q.shape, dtype=dtype), []
    for recompute in (True, False):
        stca.set_cpu_isa(isa)
        tensors = inputs.q.detach().requires_grad_(), inputs.k.detach().requires_grad_()
        out = stca.ops.target_attention(
            *tensors, None, inputs.target_offsets, inputs.history_offsets, recompute=recompute
        )
        stca.set_cpu_isa(backward_isa)
        grads.append(torch.autograd.grad(out, tensors, dout))
    for kept, expected in zip(*grads, strict=True):
        assert torch.equal(kept, expected)


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_same_bits(
    case: TargetAttentionCase, dtype: torch.dtype, count: int, threads: Callable[[int], None], isa: str
) -> None:
    """Of few query rows no scores are kept, and none are read, though there is room: here it holds NaN."""
    threads(count)
    inputs = case.build(dtype)
    expected = _results(inputs, True)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(9).isnan().all()
        assert_bitwise_equal(_results(inputs, False), expected)
    finally:
        torch.use_deterministic_algorithms(False)


def test_scores_are_taken_from_what_was_kept() -> None:
    *arguments, scale = ONE.build().arguments()
    out, lse, max_and_sum, scores = torch.ops.stca.target_attention(*arguments, scale, True, None, None, True)
    assert scores.numel() == 4 * (9 * 50 + 20 * 30) + 1

    def dq(kept: Tensor | None) -> Tensor:
        given = torch.ones_like(out), lse, *arguments, out, max_and_sum, scale, False, kept
        of_queries: Tensor = torch.ops.stca.target_attention_backward(*given)[0]
        return of_queries

    assert torch.equal(dq(scores), dq(None))
    changed = scores.clone()
    changed[: 4 * 9 * 50] -= 1  # of the first request alone
    assert not torch.equal(dq(changed)[:9], dq(None)[:9])
    assert torch.equal(dq(changed)[9:], dq(None)[9:])


def test_a_step_takes_six_products() -> None:
    inputs = ONE.build()
    for recompute, products in ((True, 7), (False, 6)):
        inputs.k.requires_grad_()
        with FlopCounterMode(display=False) as counter:
            _out(inputs, recompute).sum().backward()  # type: ignore[no-untyped-call]
        assert counter.get_total_flops() == 2 * products * 4 * 8 * (9 * 50 + 20 * 30)


def test_auto_keeps_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, size = ONE.build(), 4 * (9 * 50 + 20 * 30)
    for limit, expected in ((4 * size, size), (4 * size - 1, 0)):
        monkeypatch.setattr(sys.modules["stca.ops._common"], "KEPT_BYTES", limit)
        assert _kept_scores(_out(inputs, "auto")) == expected


def test_what_is_not_kept() -> None:
    inputs = ONE.build()
    assert _kept_scores(_out(inputs, True)) == 0
    visible = torch.tensor([[0, 30]] * 29)
    assert _kept_scores(_out(inputs, False, visible=visible)) == 0
    assert _kept_scores(_out(inputs.but(v=inputs.k.clone()), False)) == 0
    with torch.no_grad():
        assert _out(inputs, False).grad_fn is None
    compiled = torch.compile(lambda: _out(inputs, False), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(), _out(inputs, False))


@pytest.mark.parametrize("recompute", [None, "never", 1])
def test_another_choice_is_refused(recompute: Any) -> None:
    message = f"target_attention: recompute must be True, False or 'auto', got {recompute!r}"
    with pytest.raises(ValueError, match=message):
        _out(ONE.build(), recompute)


def test_bad_calls_of_the_operators() -> None:
    *arguments, scale = ONE.build().arguments()
    out, lse, max_and_sum, scores = torch.ops.stca.target_attention(*arguments, scale, True, None, None, True)
    for wrong in (scores[1:], scores.double(), scores.view(1, -1)):
        message = "target_attention: scores must be [4201] of Float on cpu, got "
        given = out, lse, *arguments, out, max_and_sum, scale, True, wrong
        with pytest.raises(ValueError, match=re.escape(message)):
            torch.ops.stca.target_attention_backward(*given)
    arguments[2] = arguments[1].clone()
    with pytest.raises(ValueError, match="target_attention: scores are kept where v and visible are None"):
        torch.ops.stca.target_attention(*arguments, scale, True, None, None, True)


def test_opcheck() -> None:
    *arguments, scale = ONE.build().arguments()
    out, lse, max_and_sum, scores = torch.ops.stca.target_attention(*arguments, scale, True, None, None, True)
    given = torch.ones_like(out), lse, *arguments, out, max_and_sum, scale, True, scores
    passed = torch.library.opcheck(torch.ops.stca.target_attention_backward, given)
    arguments[0].requires_grad_()
    passed |= torch.library.opcheck(torch.ops.stca.target_attention, (*arguments, scale, True, None, None, True))
    assert set(passed.values()) == {"SUCCESS"}
