"""What rounding may do to a result: an oracle of which every operation's result is moved by an ulp at most, at random.

Sums of terms that cancel keep the rounding of the terms, and norms and softmaxes magnify it; how much of it is left is
a property of the inputs, which no multiple of the result's own ulp bounds. To draw roundings at random and look at what
becomes of the result is discrete stochastic arithmetic (Vignes, 1993, https://doi.org/10.1016/0378-4754(93)90003-D).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only

_DRAWS = 16
_TERMS = 2**22  # of a product of matrices, beyond which its sums alone are moved


class Rounding(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Moves what operations in float64 make, forward and backward, by an ulp of `dtype` at most."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._limits, self._seed = torch.finfo(dtype), seed

    def moved(self, x: Tensor) -> Tensor:
        """By eps of a number, and by the distance of the smallest numbers; equal numbers, as by rounding, equally."""
        if x.dtype != torch.float64:
            return x
        bits = x.contiguous().view(torch.int64) if x.numel() else x.long()
        for multiplier in (0x9E3779B97F4A7C1, 0x3F58476D1CE4E5B9):
            bits = (bits + self._seed) * multiplier
            bits = bits ^ (bits >> 32)
        step = bits.double() / 2**63
        moved = x + step * (x.abs() * self._limits.eps + self._limits.smallest_normal * self._limits.eps)
        return moved.where(x.isfinite(), x)

    def widened(self, x: Tensor) -> Tensor:
        """An input, moved too, and once: a sum rounds each of its terms."""
        with _disable_current_modes():
            return self.moved(x.double())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = self._product(*args) if func is torch.ops.aten.mm.default else func(*args, **(kwargs or {}))
        if any(each.alias_info is not None for each in func._schema.returns):
            return made  # a view of what was moved before, or written in place
        return tree_map_only(Tensor, self.moved, made)

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        """A product of matrices whose terms are moved, each: where they cancel that is what is left."""
        if a.numel() * b.shape[1] > _TERMS:
            return a @ b
        return self.moved(a[:, :, None] * b).sum(dim=1)


def worst_of_draws(
    oracle: dict[str, Tensor], results: Callable[[Callable[[Tensor], Tensor]], dict[str, Tensor]], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Of each named result of `oracle` the draw that is farthest from it.

    Args:
        oracle: results in float64.
        results: gives the same again, from inputs that what it is given has been applied to.
        dtype: whose rounding is drawn.
    """
    drawn = []
    for seed in range(_DRAWS):
        with Rounding(dtype, seed) as rounding:
            drawn.append(results(rounding.widened))

    def farthest(name: str) -> Tensor:
        return max((each[name] for each in drawn), key=lambda x: _distance(x, oracle[name]))

    return {name: farthest(name) for name in oracle}


def _distance(x: Tensor, oracle: Tensor) -> float:
    return float((x - oracle).nan_to_num(0, 0, 0).abs().max()) if x.numel() else 0.0
