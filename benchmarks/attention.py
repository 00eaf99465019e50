"""The attention of targets to histories: the op in both forms, and the whole layer, with every peer."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from peers import Attend, attends, one_request, sdpa_loop
from problem import Implementation, Problem, peer_dtype, same
from ragged import Requests
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import stca


@cache
def _compiled(f: Callable[..., Tensor]) -> Any:
    return torch.compile(f, dynamic=True)


def reordered(requests: Requests, D: int, H: int, dtype: torch.dtype, slow: bool) -> Problem:
    """`target_attention` with one shared history head: u [T, H, D] against x [N, D], V = K = x."""
    m, R, scale = requests.m, requests.R, (D // H) ** -0.5
    u, x = torch.randn(requests.T, H, D).to(dtype), torch.randn(requests.N, D).to(dtype)

    def fused(u: Tensor, x: Tensor, recompute: bool = True) -> Tensor:
        offsets = requests.target_offsets, requests.history_offsets
        return stca.ops.target_attention(u, x[:, None], None, *offsets, scale=scale, recompute=recompute)

    def loop(one: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        def run(u: Tensor, x: Tensor) -> Tensor:
            rows = u.view(R, m * H, D).unbind()
            return torch.cat([one(a, b, scale) for a, b in zip(rows, requests.split(x), strict=True)])

        return run

    def padded(u: Tensor, x: Tensor) -> Tensor:
        scores = u @ x.transpose(1, 2) * scale
        if requests.ragged():
            scores = scores.masked_fill(~requests.mask[:, None], -torch.inf)
        return torch.softmax(scores, dim=2) @ x

    def sdpa_one(u: Tensor, x: Tensor, scale: float) -> Tensor:
        rows = x[None, None]
        return F.scaled_dot_product_attention(u[None, None], rows, rows, scale=scale)[0, 0]

    def per_head(y: Tensor) -> Tensor:
        return y.reshape(requests.T, H, D)

    ways = {
        "stca": Implementation(fused),
        "eager loop": Implementation(loop(one_request), flat=per_head),
        "eager padded": Implementation(padded, [lambda u: u.reshape(R, m * H, D), requests.pad], per_head),
        "sdpa loop, K = V": Implementation(loop(sdpa_one), flat=per_head),
    }
    if m * H >= 64:
        ways["stca, scores kept"] = Implementation(partial(fused, recompute=False), ours=True)
    if slow:
        ways["torch.compile of eager loop"] = Implementation(loop(_compiled(one_request)), flat=per_head)
        if not requests.ragged():
            compiled = [lambda u: u.reshape(R, m * H, D), requests.pad]
            ways["torch.compile of eager padded"] = Implementation(_compiled(padded), compiled, per_head)
    pairs, size = m * H * requests.N, u.element_size()
    return Problem(
        [u, x],
        ways,
        4 * D * pairs,
        (requests.N + 2 * requests.T * H) * D * size,
        cannot={
            "nn.MultiheadAttention": "projects keys and values, cannot take the reordered form",
            "sdpa nested": "takes no keys shared by heads of another count (enable_gqa) in nested form",
        },
    )


def paged(requests: Requests, D: int, H: int, dtype: torch.dtype, page_rows: int) -> Problem:
    """`reordered` behind a `history_index` of pages that lie in no order; peers get the rows in order, at no charge."""
    problem, scale = reordered(requests, D, H, dtype, slow=False), (D // H) ** -0.5
    pages = torch.randperm(-(-requests.N // page_rows))
    index = (pages[:, None] * page_rows + torch.arange(page_rows)).flatten()
    index = index[index < requests.N]

    def fused(u: Tensor, x: Tensor) -> Tensor:
        offsets = requests.target_offsets, requests.history_offsets
        return stca.ops.target_attention(u, x[:, None], None, *offsets, history_index=index, scale=scale)

    def in_order(way: Implementation) -> Implementation:
        first, rows = [*way.forms, same, same][:2]
        return replace(way, forms=[first, lambda x: rows(x[index])])

    peers = {name: in_order(way) for name, way in problem.ways.items() if not name.startswith("stca")}
    return replace(problem, ways={"stca": Implementation(fused), **peers})


def _projected_ways(requests: Requests, H: int, dh: int, slow: bool) -> dict[str, Implementation]:
    """Ways from q [T, H, dh], k and v [N, H, dh] to [T, H, dh]; keys lie head by head where that suits a peer."""
    R, m = requests.R, requests.m

    def stca_(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return stca.ops.target_attention(q, k, v, requests.target_offsets, requests.history_offsets)

    def heads_first(q: Tensor) -> Tensor:
        return q.view(R, m, H, dh).transpose(1, 2).contiguous()

    def padded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=requests.attention_mask())

    def pointwise(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = requests.attention_mask()
        mask = None if mask is None else mask.repeat_interleave(m, dim=0)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def nested(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).values()

    def nest_targets(q: Tensor) -> Tensor:
        return torch.nested.nested_tensor_from_jagged(q, requests.target_offsets).transpose(1, 2)

    def pad_heads(x: Tensor) -> Tensor:
        return requests.pad(x).transpose(1, 2).contiguous()

    def tokens_first(y: Tensor) -> Tensor:
        return y.transpose(1, 2).reshape(requests.T, H, dh)

    def nest_history(x: Tensor) -> Tensor:
        return requests.nest(x).transpose(1, 2)

    ways = {
        "stca": Implementation(stca_),
        "sdpa padded": Implementation(padded, [heads_first, pad_heads, pad_heads], tokens_first),
        "sdpa loop": Implementation(partial(sdpa_loop, requests), [heads_first], tokens_first),
        "sdpa nested": Implementation(nested, [nest_targets, nest_history, nest_history]),
    }
    if not requests.cannot_repeat(2 * H * dh, 4):
        copies = [lambda q: q[:, :, None], *2 * [lambda x: requests.repeat(x).transpose(1, 2).contiguous()]]
        ways["sdpa pointwise"] = Implementation(pointwise, copies, lambda y: y[:, :, 0])
    if slow:
        target_request = torch.arange(R).repeat_interleave(m)
        row_request = torch.arange(R).repeat_interleave(torch.tensor(requests.lengths))
        block = create_block_mask(
            lambda b, h, t, n: target_request[t] == row_request[n],
            None,
            None,
            requests.T,
            requests.N,
            device=target_request.device.type,
        )

        def flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            y: Tensor = _compiled(flex_attention)(q, k, v, block_mask=block)
            return y

        flat_heads = [lambda x: x.transpose(0, 1)[None].contiguous()] * 3
        no_backward = "FlexAttention has no backward pass on the CPU" if target_request.is_cpu else ""
        ways["FlexAttention"] = Implementation(flex, flat_heads, lambda y: y[0].transpose(0, 1), no_backward)
    return ways


def projected(requests: Requests, D: int, H: int, dtype: torch.dtype, slow: bool) -> Problem:
    """`target_attention` on given keys and values of every head: q [T, H, dh], k and v [N, H, dh]."""
    dh = D // H
    leaves = [torch.randn(n, H, dh).to(dtype) for n in (requests.T, requests.N, requests.N)]
    flops, size = 4.0 * D * requests.m * requests.N, leaves[0].element_size()
    ways = _projected_ways(requests, H, dh, slow)
    return Problem(leaves, ways, flops, 2 * requests.N * D * size, cannot=requests.cannot_repeat(2 * D, size))


def layer(requests: Requests, D: int, H: int, dtype: torch.dtype, slow: bool) -> Problem:
    """`nn.TargetAttention`: raw targets and history, four weights [D, D], in the order it chooses, and in both."""
    m, R = requests.m, requests.R
    targets, history = torch.randn(requests.T, D).to(dtype), torch.randn(requests.N, D).to(dtype)
    weights = [(torch.randn(D, D) * D**-0.5).to(dtype) for _ in range(4)]
    offsets = requests.target_offsets, requests.history_offsets

    def module(order: stca.nn.order.Order) -> Callable[..., Tensor]:
        attention = stca.nn.TargetAttention(D, H, order=order, dtype=dtype)
        names = ("w_q", "w_k", "w_v", "w_o")

        def run(x: Tensor, rows: Tensor, *w: Tensor) -> Tensor:
            y: Tensor = torch.func.functional_call(attention, dict(zip(names, w, strict=True)), (x, rows, *offsets))
            return y

        return run

    def project(attend: Attend) -> Callable[..., Tensor]:
        def run(x: Tensor, rows: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor) -> Tensor:
            return attend(x @ w_q, rows, w_k, w_v) @ w_o

        return run

    def multihead(x: Tensor, rows: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor) -> Tensor:
        y, _ = F.multi_head_attention_forward(
            x.transpose(0, 1), rows.transpose(0, 1), rows.transpose(0, 1), D, H,
            torch.cat([w_q.T, w_k.T, w_v.T]), None, None, None, False, 0.0, w_o.T, None,
            key_padding_mask=~requests.mask if requests.ragged() else None, need_weights=False,
        )  # fmt: skip
        return y.transpose(0, 1)

    size, N, T = history.element_size(), requests.N, requests.T
    cannot = requests.cannot_repeat(3 * D, size)
    plain = {name: each for name, each in attends(requests, D, H).items() if name not in cannot}
    ways = {
        "stca": Implementation(module("auto")),
        "stca reordered": Implementation(module("reordered"), ours=True),
        "stca projected": Implementation(module("projected"), ours=True),
        **{name: Implementation(project(attend), [same, form]) for name, (form, attend) in plain.items()},
        "nn.MultiheadAttention": Implementation(
            multihead, [lambda x: x.view(R, m, D), requests.pad], lambda y: y.reshape(-1, D)
        ),
    }
    if peer_dtype(history) == torch.bfloat16 and D >= 1024:
        del ways["nn.MultiheadAttention"]
        cannot = cannot | {"nn.MultiheadAttention": "takes 3 to 69 seconds a call here"}
    flops = min(4.0 * D * H * m * N + 4.0 * T * D * D, 4.0 * D * m * N + 4.0 * N * D * D) + 4.0 * T * D * D
    return Problem([targets, history, *weights], ways, flops, (N + 2 * T + 4 * D) * D * size, cannot=cannot)
