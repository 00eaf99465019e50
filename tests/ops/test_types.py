"""What is no tensor, or no number, is refused by name, and by a TypeError."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import offsets

import stca

ops: Any = stca.ops  # which takes what is wrong, for a type checker too
ONE = offsets([1])
x = torch.ones(1, 2)
qk = torch.ones(1, 1, 2)
w = torch.ones(2, 2)

WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: ops.target_attention(3, qk, None, ONE, ONE), "target_attention: q must be a Tensor, got int 3"),
    (
        lambda: ops.target_attention(qk, qk, [1], ONE, ONE),
        "target_attention: v must be a Tensor or None, got list [1]",
    ),
    (
        lambda: ops.target_attention(qk, qk, None, [0, 1], ONE),
        "target_attention: target_offsets must be a Tensor, got list",
    ),
    (
        lambda: ops.target_attention(qk, qk, None, ONE, ONE, scale="x"),
        "target_attention: scale must be a number or None, got",
    ),
    (lambda: ops.swiglu_ffn_norm(None, w, w, w), "swiglu_ffn_norm: x must be a Tensor, got NoneType None"),
    (lambda: ops.swiglu_ffn_norm(x, w, w, 0.5), "swiglu_ffn_norm: w_o must be a Tensor, got float 0.5"),
    (
        lambda: ops.swiglu_ffn_norm(x, w, w, w, eps=None),
        "swiglu_ffn_norm: eps must be a number, got NoneType None",
    ),
    (lambda: ops.request_gather(3, ONE), "request_gather: x must be a Tensor or a sequence of them, got int 3"),
    (lambda: ops.request_gather([x, 3], ONE), "request_gather: x[1] must be a Tensor, got int 3"),
    (
        lambda: ops.request_gather(x, ONE, total=0.5),
        "request_gather: total must be an integer or None, got float 0.5",
    ),
    (lambda: ops.request_reduce(x, None), "request_reduce: target_offsets must be a Tensor, got NoneType None"),
    (lambda: ops.jagged_select(x, ONE, [0]), "jagged_select: index must be a Tensor, got list [0]"),
]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["plain", "autocast"])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(("call", "message"), WRONG)
def test_no_tensor(call: Callable[[], Any], message: str, grad: bool, dtype: torch.dtype | None) -> None:
    x.requires_grad_(grad)
    w.requires_grad_(grad)
    qk.requires_grad_(grad)
    with (
        torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None),
        pytest.raises(TypeError, match=f"^{re.escape(message)}"),
    ):
        call()


def test_hidden_rows_of_no_tensor() -> None:
    for recompute in (True, False, "auto"):
        with pytest.raises(TypeError, match=r"^swiglu_ffn_norm: w_u must be a Tensor, got int 3"):
            ops.swiglu_ffn_norm(torch.ones(1, 2, requires_grad=True), 3, w, w, recompute=recompute)


@pytest.mark.parametrize("total", [2**63, -(2**63) - 1])
def test_integers_of_more_than_64_bits(total: int) -> None:
    with pytest.raises(ValueError, match=rf"^request_gather: total must be an integer of 64 bits, got {total}$"):
        ops.request_gather(x, ONE, total=total)
    with pytest.raises(ValueError, match=rf"^jagged_select: total must be an integer of 64 bits, got {total}$"):
        ops.jagged_select(x, ONE, ONE[:1], None, total)


def test_nothing_beside_tensors_without_values() -> None:
    with pytest.raises(TypeError, match=r"^request_reduce: x must be a Tensor, got NoneType None$"):
        ops.request_reduce(None, ONE.to("meta"))


def test_totals_of_tensors_without_values() -> None:
    """A number of rows that depends on values cannot be found without them."""
    rows, at = x.detach().to("meta"), ONE.to("meta")
    for op, arguments in (("request_gather", (rows, at)), ("jagged_select", (rows, at, at))):
        with pytest.raises(ValueError, match=f"^{op}: total must be given for tensors on the device meta, got None$"):
            getattr(ops, op)(*arguments)
