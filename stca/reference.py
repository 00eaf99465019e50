"""Plain PyTorch oracles, straight from the equations: `stca.reference.f` has the signature of `stca.ops.f`.

They loop over requests and targets and store every score. Run them in float64 to judge anything else.
"""

import torch
from torch import Tensor


def target_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    target_offsets: Tensor,
    history_offsets: Tensor,
    *,
    visible: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Oracle of `stca.ops.target_attention`: one softmax per target, over the rows that it sees."""
    T, H, Dk = q.shape
    group = H // k.shape[1]
    scale = Dk**-0.5 if scale is None else scale
    accumulation = torch.float64 if q.dtype == torch.float64 else torch.float32
    keys = k.to(accumulation).repeat_interleave(group, dim=1)  # [N, H, Dk]
    values = keys if v is None else v.to(accumulation).repeat_interleave(group, dim=1)  # [N, H, Dv]
    outs, lses = [], []
    for request in range(len(target_offsets) - 1):
        first, last = int(history_offsets[request]), int(history_offsets[request + 1])
        for t in range(int(target_offsets[request]), int(target_offsets[request + 1])):
            begin, end = (0, last - first) if visible is None else visible[t].tolist()
            rows = slice(first + begin, first + end)
            scores = scale * torch.einsum("hd,nhd->hn", q[t].to(accumulation), keys[rows])
            if begin == end:
                outs.append(q.new_zeros(H, values.shape[2]))
                lses.append(scores.new_full((H,), -torch.inf))
                continue
            lse = scores.logsumexp(dim=1)
            alpha = torch.exp(scores - lse[:, None])
            outs.append(torch.einsum("hn,nhd->hd", alpha, values[rows]).to(q.dtype))
            lses.append(lse)
    out = torch.stack(outs) if outs else q.new_zeros(0, H, values.shape[2])
    lse = torch.stack(lses) if lses else q.new_zeros(0, H, dtype=accumulation)
    return (out, lse) if return_lse else out
