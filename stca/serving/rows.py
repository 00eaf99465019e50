"""How one layer's encoded rows lie in memory: as they are, rounded to 16 bits, or as int8 with scales."""

import torch
from torch import Tensor

from stca.nn.layout import Kept

STORAGES = torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8


class Rows:
    """A pool [capacity, *shape] of rows that come and go as `dtype` and lie there as `storage`.

    A row is one vector [D], or a key and a value of each head, [2, H, D / H]. A vector lies beside that of the next
    row, so that what a head reads of many rows lies in one piece.

    int8 holds :math:`\\mathrm{round}(x / s)` with :math:`s = \\max_d |x_d| / 127` of each vector, which is off by at
    most s / 2. A vector with an infinity or NaN comes back as NaN.
    """

    def __init__(
        self, capacity: int, shape: tuple[int, ...], dtype: torch.dtype, storage: torch.dtype, device: torch.device
    ) -> None:
        self.dtype = dtype

        def pool(width: int, dtype: torch.dtype) -> Tensor:
            with torch.inference_mode(False):  # what is made there cannot be written to elsewhere
                return torch.zeros(*shape[:-1], capacity, width, dtype=dtype, device=device).movedim(-2, 0)

        self.pool = pool(shape[-1], storage)
        self.scale = pool(1, torch.float32) if storage == torch.int8 else None

    def read(self, slots: Tensor) -> Tensor:
        """Rows [n, *shape] of the slots, a copy."""
        rows = self.pool.index_select(0, slots).to(self.dtype)
        return rows if self.scale is None else rows.mul_(self.scale.index_select(0, slots))

    def take(self, slots: Tensor) -> list[Tensor]:
        """What lies in the slots, as it lies there."""
        return [part.index_select(0, slots).cpu() for part in self.parts]

    def put(self, slots: Tensor, parts: list[Tensor]) -> None:
        """What `stored` made of rows [n, *shape], or `take` gave of another pool, into slots [n]."""
        for part, values in zip(self.parts, parts, strict=True):
            part.index_copy_(0, slots, values.to(part.device))

    @property
    def kept(self) -> Kept:
        """The whole pool as attention takes it."""
        return self.pool if self.scale is None else (self.pool, self.scale)

    @property
    def parts(self) -> list[Tensor]:
        """The pool, and its scales where it has some."""
        return [self.pool] if self.scale is None else [self.pool, self.scale]

    def stored(self, rows: Tensor) -> list[Tensor]:
        """What lies in the pool for rows [n, *shape]."""
        rows = rows.detach()
        if self.scale is None:
            return [rows.to(self.pool.dtype)]
        wide = rows.float()
        scale = wide.abs().amax(dim=-1, keepdim=True) / 127
        return [(wide / scale.where(scale > 0, 1.0)).round().clamp(-127, 127).to(torch.int8), scale]
