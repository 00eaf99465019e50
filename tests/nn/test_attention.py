"""stca.nn.TargetAttention and SwiGLUFFN: orders, biases, and trained weights of nn.MultiheadAttention."""

import pytest
import torch
from cases import offsets
from torch import Tensor, nn

from stca.nn import SwiGLUFFN, TargetAttention
from stca.nn.order import Order

TARGETS, ROWS = offsets([3, 0, 2, 4]), offsets([5, 4, 0, 40])


def _run(module: TargetAttention, x: Tensor, rows: Tensor) -> list[Tensor]:
    """Output, then gradients of inputs and parameters."""
    x, rows = x.clone().requires_grad_(), rows.clone().requires_grad_()
    y = module(x, rows, TARGETS, ROWS)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), [x, rows, *module.parameters()])]


@pytest.mark.parametrize("bias", [False, True])
def test_both_orders_agree(bias: bool) -> None:
    x, rows = torch.randn(9, 24, dtype=torch.float64), torch.randn(49, 24, dtype=torch.float64)
    results = []
    for order in ("reordered", "projected"):
        torch.manual_seed(1)
        module = TargetAttention(24, 3, bias=bias, order=order, dtype=torch.float64)
        for each in (module.b_q, module.b_v, module.b_o):
            if each is not None:
                nn.init.normal_(each)
        results.append(_run(module, x, rows))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("dim", "heads", "crossover"), [(1024, 16, 60), (256, 8, 34)])
def test_auto_takes_the_cheaper_order(dim: int, heads: int, crossover: int) -> None:
    attention = TargetAttention(dim, heads, device="meta")
    assert attention.chosen_order(crossover - 2, 100_000, 1) == "reordered"
    assert attention.chosen_order(crossover + 3, 100_000, 1) == "projected"
    assert attention.chosen_order(0, 0, 0) == "reordered"


def test_a_fixed_order_is_kept() -> None:
    orders: list[Order] = ["reordered", "projected"]
    for order in orders:
        assert TargetAttention(8, 2, order=order).chosen_order(10**6, 10, 1) == order


@pytest.mark.parametrize("bias", [False, True])
def test_from_multihead_attention(bias: bool) -> None:
    mha = nn.MultiheadAttention(32, 4, bias=bias, batch_first=True, dtype=torch.float64)
    if bias:
        nn.init.normal_(mha.in_proj_bias)
        nn.init.normal_(mha.out_proj.bias)
    x, rows = torch.randn(3, 5, 32, dtype=torch.float64), torch.randn(3, 12, 32, dtype=torch.float64)
    lengths = torch.tensor([12, 1, 7])
    padding = torch.arange(12) >= lengths[:, None]
    expected = mha(x, rows, rows, key_padding_mask=padding, need_weights=False)[0]
    for order in ("reordered", "projected"):
        module = TargetAttention.from_multihead_attention(mha, order=order)
        torch.testing.assert_close(module(x, rows, history_lengths=lengths), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kdim": 8}, r"mha\.kdim must be 16, got 8"),
        ({"vdim": 8}, r"mha\.vdim must be 16, got 8"),
        ({"add_bias_kv": True}, r"mha\.bias_k must be None, got"),
        ({"add_zero_attn": True}, r"mha\.add_zero_attn must be False, got True"),
        ({"dropout": 0.5}, r"mha\.dropout must be 0\.0, got 0\.5"),
    ],
)
def test_from_multihead_attention_refuses(options: dict[str, object], message: str) -> None:
    mha = nn.MultiheadAttention(16, 2, **options)
    with pytest.raises(ValueError, match=message):
        TargetAttention.from_multihead_attention(mha)


def test_a_target_without_history_gives_zero_despite_biases() -> None:
    module = TargetAttention(8, 2, bias=True)
    for bias in (module.b_q, module.b_v, module.b_o):
        assert bias is not None
        nn.init.ones_(bias)
    x = torch.randn(9, 8, requires_grad=True)
    y = module(x, torch.randn(49, 8), TARGETS, ROWS)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y[3:5], torch.zeros(2, 8))
    assert torch.equal(grad[3:5], torch.zeros(2, 8))
    assert (y[:3] != 0).all()


def test_history_index_is_the_expanded_history() -> None:
    module = TargetAttention(16, 2, dtype=torch.float64)
    rows = torch.randn(7, 16, dtype=torch.float64, requires_grad=True)
    index, x = torch.randint(0, 7, (49,)), torch.randn(9, 16, dtype=torch.float64)
    for order in ("reordered", "projected"):
        module.order = order
        y = module(x, rows, TARGETS, ROWS, history_index=index)
        expected = module(x, rows[index], TARGETS, ROWS)
        torch.testing.assert_close(y, expected)
        grads = [torch.autograd.grad(each.square().sum(), rows)[0] for each in (y, expected)]
        torch.testing.assert_close(*grads)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="TargetAttention: num_heads must divide dim = 10, got 4"):
        TargetAttention(10, 4)
    with pytest.raises(ValueError, match=r"TargetAttention: order must be .* got 'fast'"):
        TargetAttention(8, 4, order="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="SwiGLUFFN: dim and ffn_ratio"):
        SwiGLUFFN(4, 0)
    for x in (torch.randn(4, 6), torch.randn(2, 24), torch.randn(())):
        with pytest.raises(ValueError, match=r"SwiGLUFFN: x must be \[\.\.\., D\] with D = 12, got \["):
            SwiGLUFFN(12)(x)


def test_swiglu_ffn_takes_leading_dimensions_and_keeps_variance() -> None:
    ffn = SwiGLUFFN(128)
    x = torch.randn(50, 20, 128)
    y = ffn(x)
    assert y.shape == x.shape
    assert torch.equal(y[3], ffn(x[3]))
    assert 0.5 < y.var().item() < 2
    assert SwiGLUFFN(8, norm=True, dtype=torch.float64)(x[0, :, :8].double()).dtype == torch.float64
