"""Losses over request-level batches."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stca.batch.request_batch import RequestBatch
from stca.ops import request_gather


def bce_loss(
    logits: Tensor, labels: Tensor, batch: RequestBatch, reduction: Literal["target", "request"] = "target"
) -> Tensor:
    r"""Binary cross entropy over a request-level batch.

    .. math::
        \text{target:}\; \frac{1}{T} \sum_t \ell_t \qquad
        \text{request:}\; \frac{1}{Q} \sum_{r} \frac{1}{m_r} \sum_{t \in r} \ell_t

    with :math:`m_r` targets of request r and Q the requests that have any. "target" is the loss of the same targets
    in point-wise batches; "request" is the paper's, and equal to it where every request has as many targets. Terms,
    counts and sums are float32 (float64 for float64): float16 has no number of 65,520 targets.

    Args:
        logits: [T].
        labels: [T], 0 to 1.
        batch: whose targets these are.
        reduction: "target" or "request".

    Returns:
        The loss [], float32 (float64 for float64 logits).

    Raises:
        ValueError: another reduction, or shapes other than [T].

    Source:
        arXiv 2511.06077, section 3.3.

    Example:
        >>> offsets = torch.tensor([0, 1, 3])
        >>> batch = stca.batch.RequestBatch({}, torch.tensor([0, 0, 0]), {}, offsets)
        >>> stca.batch.bce_loss(torch.zeros(3), torch.tensor([0.0, 1.0, 1.0]), batch, "request")
        tensor(0.6931)
    """
    if logits.shape != (batch.T,) or labels.shape != (batch.T,):
        raise ValueError(
            f"bce_loss: logits and labels must be [T = {batch.T}], got {list(logits.shape)} and {list(labels.shape)}"
        )
    if reduction not in ("target", "request"):
        raise ValueError(f"bce_loss: reduction must be 'target' or 'request', got {reduction!r}")
    wide = torch.promote_types(logits.dtype, torch.float32)
    each = F.binary_cross_entropy_with_logits(logits.to(wide), labels.to(wide), reduction="none")
    if reduction == "target":
        return each.sum() / max(1, batch.T)
    offsets = batch.target_offsets if batch.request_offsets is None else batch.request_offsets
    counts = offsets.diff()
    share = 1 / (counts.clamp(min=1) * (counts > 0).sum().clamp(min=1)).to(wide)
    return (each * request_gather(share, offsets, total=batch.T)).sum()
