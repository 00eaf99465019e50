"""Attention to a few rows of a large pool, as a server's cache is: the rest may hold anything, and costs nothing."""

import pytest
import torch

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
