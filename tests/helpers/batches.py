"""Request-level batches for tests of what writes, reads and cuts them."""

import torch
from cases import offsets

from stca.batch import RequestBatch


def make_requests(histories: int, seed: int = 0, longest: int = 60) -> RequestBatch:
    """Histories of up to `longest` rows, some empty, each with up to 4 targets of 1 to 4 requests."""
    generator = torch.Generator().manual_seed(seed)

    def integers(high: int, count: int) -> torch.Tensor:
        return torch.randint(high, (count,), generator=generator)

    lengths, targets = integers(longest, histories), integers(4, histories) + 1
    N, T = int(lengths.sum()), int(targets.sum())
    own = torch.repeat_interleave(lengths, targets)
    requests = [part for count in targets.tolist() for part in ([count] if count % 2 else [1, count - 1])]
    return RequestBatch(
        history={"item": integers(1000, N), "vector": torch.rand(N, 3, generator=generator), "new": integers(2, N) > 0},
        history_offsets=offsets(lengths.tolist()),
        targets={"item": seed * 100_000 + torch.arange(T), "price": torch.rand(T, generator=generator).double()},
        target_offsets=offsets(targets.tolist()),
        labels={"click": integers(2, T).float()},
        visible=torch.stack([own // 3, own], dim=1),
        request_offsets=offsets(requests),
    ).validate()
