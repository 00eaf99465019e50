"""The oracle of target_attention, judged by torch's own attention and by finite differences."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, TARGET_ATTENTION, TARGET_ATTENTION_SMALL, TargetAttentionCase
from plain import plain_target_attention
from torch import Tensor

import stca

_NOT_TOO_MANY = [case for case in TARGET_ATTENTION if sum(m for m, _ in case.requests) < 100]


@pytest.mark.parametrize("case", _NOT_TOO_MANY, ids=str)
def test_agrees_with_scaled_dot_product_attention(case: TargetAttentionCase) -> None:
    torch.set_num_threads(1)  # many small operations
    x = case.build(torch.float64)
    leaves = {"q": x.q, "k": x.k} | ({} if x.v is None else {"v": x.v})
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    q, k = leaves["q"], leaves["k"]
    values = leaves.get("v", k)
    if x.history_index is not None:
        k, values = k[x.history_index], values[x.history_index]
    actual = x.results(stca.reference.target_attention)
    outs = [torch.zeros_like(x.dout[:0])]
    lses = [torch.zeros_like(x.dlse[:0])]
    spans = zip(pairwise(x.target_offsets.tolist()), pairwise(x.history_offsets.tolist()), strict=True)
    for (first, last), (row, last_row) in spans:
        for t in range(first, last):
            begin, end = (0, last_row - row) if x.visible is None else x.visible[t].tolist()
            rows = slice(row + begin, row + end)
            if begin == end:
                outs.append(torch.zeros_like(x.dout[:1]))
                lses.append(torch.full_like(x.dlse[:1], -torch.inf))
                continue
            query, key, value = (y.transpose(0, 1)[None] for y in (q[t : t + 1], k[rows], values[rows]))
            out = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)[0].transpose(0, 1)
            heads = torch.arange(case.heads) // (case.heads // case.kv_heads)
            scores = (q[t] * k[rows][:, heads]).sum(dim=2) * case.key_dim**-0.5
            outs.append(out)
            lses.append(torch.logsumexp(scores, dim=0)[None])
    out, lse = torch.cat(outs), torch.cat(lses)
    torch.testing.assert_close(actual["out"], out, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(actual["lse"], lse, rtol=1e-10, atol=1e-10)
    if out.requires_grad:
        grads = torch.autograd.grad((out, lse), list(leaves.values()), (x.dout, x.dlse))
        for name, grad in zip(leaves, grads, strict=True):
            torch.testing.assert_close(actual[f"d{name}"], grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", TARGET_ATTENTION_SMALL, ids=str)
def test_gradcheck(case: TargetAttentionCase) -> None:
    torch.set_num_threads(1)  # many small operations
    inputs = replace(case, requests=[(2, 5), (1, 0), (0, 3), (3, 4)]).build(torch.float64)
    leaves = [x.requires_grad_() for x in (inputs.q, inputs.k, inputs.v) if x is not None]

    def f(q: Tensor, k: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
        out, lse = inputs.but(q=q, k=k, v=v).call(stca.reference.target_attention)
        return out, lse.nan_to_num(neginf=0.0)

    assert torch.autograd.gradcheck(f, leaves)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", TARGET_ATTENTION_SMALL, ids=str)
def test_stands_in_for_the_operator(case: TargetAttentionCase, dtype: torch.dtype) -> None:
    inputs = case.build(dtype)
    actual, expected = inputs.results(stca.reference.target_attention), inputs.results()
    for name, x in expected.items():
        assert (actual[name].shape, actual[name].dtype) == (x.shape, x.dtype), name


@pytest.mark.parametrize("case", TARGET_ATTENTION, ids=str)
def test_the_fast_composition_is_the_oracle_in_float64(case: TargetAttentionCase) -> None:
    """Tests with too many targets for the oracle's loop use plain_target_attention in float64 instead."""
    torch.set_num_threads(1)  # many small operations
    inputs = case.build(torch.float64)
    actual, expected = inputs.results(plain_target_attention), inputs.results(stca.reference.target_attention)
    for name, x in expected.items():
        torch.testing.assert_close(actual[name], x, rtol=1e-10, atol=1e-10, msg=name)
