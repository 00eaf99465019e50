"""The layouts in memory that a tensor of three dimensions may have."""

from collections.abc import Callable

import torch
from torch import Tensor


def _in_storage(order: tuple[int, ...], step: int, offset: int) -> Callable[[Tensor], Tensor]:
    """Copies a tensor into memory whose dimensions lie in another order, `step` apart, from `offset` on."""

    def copy(x: Tensor) -> Tensor:
        memory = x.new_full([x.shape[i] * step + offset for i in order], torch.nan)
        window = memory[tuple(slice(offset, offset + x.shape[i] * step, step) for i in order)]
        view = window.permute([order.index(i) for i in range(x.dim())])
        return view.copy_(x)

    return copy


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "heads-first": _in_storage((1, 0, 2), 1, 0),
    "width-first": _in_storage((2, 1, 0), 1, 0),
    "rows-last": _in_storage((1, 2, 0), 1, 0),
    "offset": _in_storage((0, 1, 2), 1, 3),
    "every-second": _in_storage((0, 1, 2), 2, 1),
    "offset-heads-first": _in_storage((1, 0, 2), 1, 1),
}
