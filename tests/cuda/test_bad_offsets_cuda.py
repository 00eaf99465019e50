"""Whatever the integers on a GPU are, kernels touch no memory but the tensors' (the machine would see it), write every
row of their results, and the next call says what was wrong."""

from typing import Any

import pytest
import torch
from cases import TargetAttentionCase, TargetAttentionInputs
from emulated import emulated_device
from torch import Tensor

CASE = TargetAttentionCase("", [(3, 40), (2, 25), (4, 70)], 4, 2, 24, 16)
BAD = {
    "beyond the end": ([0, 4, 7, 900], [0, 40, 65, 10**12]),
    "short of the end": ([0, 2, 3, 4], [0, 10, 20, 30]),
    "late": ([2, 3, 6, 9], [30, 40, 65, 135]),
    "negative": ([-5, 3, 5, 9], [-1000, -7, 65, 135]),
    "decreasing": ([0, 9, 2, 9], [0, 135, 3, 135]),
}
EARLIER = ", which an earlier call on a GPU was not given"


def the_next_call_reports(ops: Any, *arguments: str) -> None:
    """It raises for one argument after the other, and then no more."""
    one, offsets = torch.ones(1, 4), torch.tensor([0, 1])
    for argument in arguments:
        with pytest.raises(ValueError, match=f"stca: {argument} must .*{EARLIER}"):
            ops.request_reduce(one, offsets, False)
    assert torch.equal(ops.request_reduce(one, offsets, False), one)


def inputs_of(**others: Tensor) -> TargetAttentionInputs:
    """Made inside of emulated_device: there they are on the device."""
    return CASE.build().but(**others)


def forward(ops: Any, inputs: TargetAttentionInputs, **options: Any) -> tuple[Tensor, ...]:
    arguments = (inputs.target_offsets, inputs.history_offsets, inputs.visible, inputs.history_index, None)
    results: tuple[Tensor, ...] = ops.target_attention(inputs.q, inputs.k, inputs.v, *arguments, **options)
    return results


@pytest.mark.parametrize("offsets", BAD)
@pytest.mark.parametrize("shared", [False, True])
def test_target_attention(offsets: str, shared: bool) -> None:
    with emulated_device() as ops:
        targets, history = (torch.tensor(each) for each in BAD[offsets])
        inputs = inputs_of(target_offsets=targets, history_offsets=history)
        inputs = inputs.but(v=None, dout=torch.randn(9, 4, 24)) if shared else inputs
        out, _, sums, *_ = forward(ops, inputs, backward=True)
        the_next_call_reports(ops, "target_offsets", "history_offsets")
        arguments = (inputs.q, inputs.k, inputs.v, targets, history, None, None, out, sums, None)
        if offsets == "decreasing":  # two requests claim the same rows, and both write their gradients
            error = "^target_attention: CUDA: target_attention_bwd.*touches too, with no order between the two"
            with pytest.raises(RuntimeError, match=error):
                ops.target_attention_backward(inputs.dout, None, *arguments)
            return
        for result in (out, sums, *ops.target_attention_backward(inputs.dout, None, *arguments)):
            assert not result.isnan().any()
        the_next_call_reports(ops, "target_offsets", "history_offsets")


@pytest.mark.parametrize("visible", [(-1, 5), (0, 41), (7, 3), (10**12, -(10**12))])
def test_visible(visible: tuple[int, int]) -> None:
    with emulated_device() as ops:
        ranges = torch.zeros(9, 2, dtype=torch.int64)
        ranges[1] = torch.tensor(visible)
        assert not forward(ops, inputs_of(visible=ranges))[0].isnan().any()
        the_next_call_reports(ops, "visible")


@pytest.mark.parametrize("row", [-1, 135, 10**15, -(2**63)])
def test_history_index(row: int) -> None:
    with emulated_device() as ops:
        index = torch.arange(135)
        index[50] = row
        inputs = inputs_of(history_index=index)
        out, _, sums, *_ = forward(ops, inputs, backward=True)
        assert not out.isnan().any()
        the_next_call_reports(ops, "history_index")
        offsets = (inputs.target_offsets, inputs.history_offsets)
        arguments = (inputs.q, inputs.k, inputs.v, *offsets, None, index, out, sums)
        for gradient in ops.target_attention_backward(inputs.dout, None, *arguments, None):
            assert not gradient.isnan().any()


def test_no_requests_and_no_rows() -> None:
    with emulated_device() as ops:
        inputs, none = inputs_of(), torch.zeros(1, dtype=torch.int64)
        with pytest.raises(ValueError, match=r"target_offsets must end at the number of rows of q, 9, got no requests"):
            forward(ops, inputs.but(target_offsets=none, history_offsets=none))
        with pytest.raises(ValueError, match=r"history_index must be empty where k has no rows, got \[135\]"):
            forward(ops, inputs.but(k=inputs.k[:0], v=None, history_index=torch.arange(135)))


@pytest.mark.parametrize("offsets", BAD)
@pytest.mark.parametrize("rows", [9, 1000])
def test_request_reduce(offsets: str, rows: int) -> None:
    at: Any = [2 * each if abs(each) > 100 else each for each in BAD[offsets][1]]
    with emulated_device() as ops:
        sums: Tensor = ops.request_reduce(torch.ones(rows, 5), torch.tensor(at), False)
        begins, ends = (torch.tensor(each).clamp(0, rows) for each in (at[:-1], at[1:]))
        assert torch.equal(sums[:, 0], (ends - begins).clamp(min=0).float())
        the_next_call_reports(ops, "target_offsets")


@pytest.mark.parametrize("offsets", BAD)
def test_request_gather(offsets: str) -> None:
    with emulated_device() as ops:
        rows: Tensor = ops.request_gather([torch.ones(3, 5)], torch.tensor(BAD[offsets][0]), 9)[0]
        assert torch.equal(rows, torch.ones(9, 5))
        the_next_call_reports(ops, "target_offsets")


def test_request_gather_of_nothing() -> None:
    with emulated_device() as ops:
        assert ops.request_gather([torch.ones(3, 5)], torch.tensor(BAD["beyond the end"][0]), 0)[0].shape == (0, 5)
        the_next_call_reports(ops, "target_offsets")


LISTS = {
    "offsets": ([0, 100], [0], None, 100),
    "index": ([0, 5], [3], None, 5),
    "keep": ([0, 5], [0], [-3], 0),
    "total": ([0, 5], [0], [2], 5),
}


@pytest.mark.parametrize("wrong", LISTS)
def test_jagged_select(wrong: str) -> None:
    offsets, index, keep, total = LISTS[wrong]
    expected = ["offsets", "total"] if wrong == "offsets" else [wrong]
    with emulated_device() as ops:
        lists = [None if each is None else torch.tensor(each) for each in (offsets, index, keep)]
        values, ends = ops.jagged_select(torch.ones(5, 4), *lists, total)
        assert torch.equal(values, torch.ones(total, 4))
        assert 0 <= ends[-1] <= 5
        the_next_call_reports(ops, *expected)
        grad = ops.jagged_select_backward(torch.ones(total, 4), *lists, 5)
        assert not grad.isnan().any()
        the_next_call_reports(ops, *expected)
