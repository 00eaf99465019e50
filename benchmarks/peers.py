"""The attentions of plain torch from targets and raw history rows, each with the form of history that suits it best."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from problem import Form, same
from ragged import Requests
from torch import Tensor

# Queries [T, D] after w_q, history rows in the form, w_k, w_v -> [T, D] before w_o.
Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def one_request(u: Tensor, x: Tensor, scale: float) -> Tensor:
    """The reordered attention of query rows [m * H, D] to one history [L, D]."""
    return torch.softmax(u @ x.T * scale, dim=1) @ x


def sdpa_loop(requests: Requests, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [R, H, m, dh], k and v [N, H, dh] -> [R, H, m, dh], request by request."""
    each = zip(q.unbind(), requests.split(k), requests.split(v), strict=True)
    outs = [
        F.scaled_dot_product_attention(a[None], b.transpose(0, 1)[None], c.transpose(0, 1)[None]) for a, b, c in each
    ]
    return torch.cat(outs)


def attends(requests: Requests, D: int, H: int) -> dict[str, tuple[Form, Attend]]:
    """Name -> form of the history, attention."""
    m, R, dh = requests.m, requests.R, D // H

    def by_head(q: Tensor) -> Tensor:
        return q.view(R, m, H, dh).transpose(1, 2)

    def rows_of(y: Tensor) -> Tensor:
        return y.transpose(1, 2).reshape(R * m, D)

    def loop(q: Tensor, rows: Tensor, w_k: Tensor, w_v: Tensor) -> Tensor:
        return rows_of(sdpa_loop(requests, by_head(q), (rows @ w_k).view(-1, H, dh), (rows @ w_v).view(-1, H, dh)))

    def padded(q: Tensor, rows: Tensor, w_k: Tensor, w_v: Tensor) -> Tensor:
        k, v = ((rows @ w).view(R, -1, H, dh).transpose(1, 2) for w in (w_k, w_v))
        return rows_of(F.scaled_dot_product_attention(by_head(q), k, v, attn_mask=requests.attention_mask()))

    def pointwise(q: Tensor, rows: Tensor, w_k: Tensor, w_v: Tensor) -> Tensor:
        k, v = ((rows @ w).view(R * m, -1, H, dh).transpose(1, 2) for w in (w_k, w_v))
        mask = requests.attention_mask()
        mask = None if mask is None else mask.repeat_interleave(m, dim=0)
        y = F.scaled_dot_product_attention(q.view(R * m, H, 1, dh), k, v, attn_mask=mask)
        return y.reshape(R * m, D)

    def nested(q: Tensor, rows: Tensor, w_k: Tensor, w_v: Tensor) -> Tensor:
        q = torch.nested.nested_tensor_from_jagged(q, requests.target_offsets)
        q, k, v = (x.unflatten(-1, [H, dh]).transpose(1, 2) for x in (q, rows @ w_k, rows @ w_v))  # type: ignore[no-untyped-call]
        y: Tensor = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).values()
        return y.reshape(R * m, D)

    def reordered(q: Tensor, rows: Tensor, w_k: Tensor, w_v: Tensor) -> Tensor:
        u = torch.einsum("thd,khd->thk", q.view(-1, H, dh), w_k.view(D, H, dh)).reshape(R, m * H, D)
        each = zip(u.unbind(), requests.split(rows), strict=True)
        out = torch.cat([one_request(a, b, dh**-0.5) for a, b in each]).view(-1, H, D)
        return torch.einsum("thk,khd->thd", out, w_v.view(D, H, dh)).reshape(-1, D)

    return {
        "eager reordered loop": (same, reordered),
        "sdpa loop": (same, loop),
        "sdpa padded": (requests.pad, padded),
        "sdpa nested": (requests.nest, nested),
        "sdpa pointwise": (requests.repeat, pointwise),
    }
