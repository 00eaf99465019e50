"""Attention to a few rows of a large pool, as a server's cache is: the rest may hold anything, and costs nothing."""

from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

import stca.nn.product
from stca.nn import TargetAttention
from stca.nn.order import Order


@pytest.mark.parametrize("order", ["auto", "reordered", "projected"])
def test_rows_of_a_pool_that_nobody_sees(order: Order) -> None:
    attention = TargetAttention(16, 4, order=order)
    index = torch.randperm(500)[:40]
    pool = torch.full((500, 16), torch.nan)
    pool[index] = torch.randn(40, 16)
    targets, offsets = torch.randn(7, 16), (torch.tensor([0, 3, 7]), torch.tensor([0, 25, 40]))
    found, expected = list[torch.Tensor](), list[torch.Tensor]()
    for results, rows, where in ((found, pool, index), (expected, pool[index], None)):
        rows = rows.clone().requires_grad_()
        out = attention(targets, rows, *offsets, history_index=where)
        gradients = torch.autograd.grad(out.square().sum(), [rows, *attention.parameters()])
        results += [out, gradients[0] if where is None else gradients[0][where], *gradients[1:]]
        if where is not None:
            assert (gradients[0].abs().sum(dim=1) > 0).sum() == 40
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_the_order_is_chosen_by_rows_that_are_asked_for() -> None:
    attention = TargetAttention(256, 8)
    assert attention.chosen_order(300, 10_000, 1, 10**7) == attention.chosen_order(300, 10_000, 1) == "projected"


@pytest.mark.parametrize("with_scale", [False, True])
def test_an_index_that_cannot_be_read(with_scale: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: those rows alone are projected, and the operator still tells of an index that is wrong."""
    attention = TargetAttention(16, 4, order="projected")
    index = torch.randperm(500)[:40]
    pool: Tensor | tuple[Tensor, Tensor] = torch.randn(500, 16)
    if with_scale:
        pool = torch.randint(-127, 128, (500, 16), dtype=torch.int8), torch.rand(500, 1)
    call = torch.randn(7, 16), pool, torch.tensor([0, 3, 7]), torch.tensor([0, 25, 40])
    with torch.no_grad():
        expected = attention(*call, history_index=index)
    project = Mock(wraps=attention._project)
    monkeypatch.setattr(attention, "_project", project)
    monkeypatch.setattr(stca.nn.product, "may_read", lambda x: False)
    with torch.no_grad():
        torch.testing.assert_close(attention(*call, history_index=index), expected)
        assert [len(call.args[0]) for call in project.call_args_list] == [40]
        for wrong in (-1, 500):
            index[8] = wrong
            with pytest.raises(ValueError, match=rf"history_index\[8\] must be .*got {wrong}$"):
                attention(*call, history_index=index)
        monkeypatch.undo()
        message = rf"TargetAttention: history_index\[8\] must be a row of history in \[0, 500\), got {wrong}$"
        with pytest.raises(ValueError, match=message):
            attention(*call, history_index=index)
        for other in (index.double(), index[None], index.to("meta")):
            with pytest.raises(ValueError, match="target_attention: history_index must be "):
                attention(*call, history_index=other)


def test_rows_that_are_trained_stay_in_their_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the index cannot be read, as on a GPU, whose torch adds gradients of selected rows in any order."""
    monkeypatch.setattr(stca.nn.product, "may_read", lambda x: False)
    rows, index = torch.randn(9, 4, requires_grad=True), torch.tensor([8, 1])
    assert stca.nn.product.rows_asked_for(rows, None, index)[0] is rows
    with torch.no_grad():
        assert torch.equal(stca.nn.product.rows_asked_for(rows, None, index)[0], rows[index])
