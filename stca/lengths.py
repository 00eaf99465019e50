"""History lengths for training short and serving long, and batches of about equal numbers of tokens."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stca.token_budget import TokenBudgetSampler as TokenBudgetSampler


@dataclass(frozen=True)
class BetaLengths:
    r"""Random history lengths with a given average, U-shaped for small alpha: many short, a few in full.

    .. math::
        L = L_{min} + s \, (L_{max} - L_{min}), \qquad s \sim \mathrm{Beta}(\alpha, \beta), \qquad
        \beta = \alpha \, \frac{L_{max} - L_{avg}}{L_{avg} - L_{min}}

    rounded to the nearest multiple, within [minimum, maximum].

    Args:
        minimum: history rows at least.
        maximum: history rows at most; all lengths are this where minimum equals maximum.
        average: expected history rows.
        alpha: of the Beta distribution; below 1 for the U shape.
        multiple: to which lengths are rounded.

    Raises:
        ValueError: an average not strictly between minimum and maximum, or alpha or multiple that is not positive.

    Source:
        arXiv 2511.06077, section 3.4 (training sparsely, inferring densely).

    Example:
        >>> lengths = stca.lengths.BetaLengths(minimum=64, maximum=10_000, average=2_000)
        >>> abs(lengths.sample(100_000, seed=0).double().mean().item() - 2_000) < 50
        True
    """

    minimum: int
    maximum: int
    average: float
    alpha: float = 0.3
    multiple: int = 8

    def __post_init__(self) -> None:
        if not (0 <= self.minimum < self.average < self.maximum or self.minimum == self.average == self.maximum >= 0):
            raise ValueError(
                "BetaLengths: average must lie between minimum and maximum, or all three be equal, got "
                f"average {self.average}, minimum {self.minimum}, maximum {self.maximum}"
            )
        if not (self.alpha > 0 and self.multiple > 0):
            raise ValueError(f"BetaLengths: alpha and multiple must be positive, got {self.alpha} and {self.multiple}")

    @property
    def beta(self) -> float:
        """The second parameter of the Beta distribution, by which the average comes out."""
        return self.alpha * (self.maximum - self.average) / (self.average - self.minimum)

    def sample(self, count: int, seed: int | tuple[int, ...]) -> Tensor:
        """Lengths, int64 [count]: a function of the arguments alone. A tuple is a seed too: (seed, epoch, rank)."""
        if self.minimum == self.maximum:
            return torch.full((count,), self.maximum)
        share = np.random.default_rng(seed).beta(self.alpha, self.beta, count)
        lengths = self.minimum + share * (self.maximum - self.minimum)
        rounded = np.round(lengths / self.multiple) * self.multiple
        return torch.from_numpy(np.clip(rounded, self.minimum, self.maximum).astype(np.int64))


def recent_suffix(visible: Tensor, keep: Tensor | int) -> Tensor:
    """The last `keep` rows of each target's visible range: what to train on.

    Args:
        visible: [T, 2], rows [begin, end) that each target sees.
        keep: rows to keep, one number or [T]; a shorter range stays as it is.

    Returns:
        [T, 2], for `visible` of `stca.nn.STCA`: nothing is copied.

    Example:
        >>> stca.lengths.recent_suffix(torch.tensor([[0, 9], [4, 6]]), 3).tolist()
        [[6, 9], [4, 6]]
    """
    end = visible[:, 1]
    return torch.stack([end - _kept(visible, keep), end], dim=1)


def oldest_prefix(visible: Tensor, keep: Tensor | int) -> Tensor:
    """The first `keep` rows of each target's visible range, to compare with `recent_suffix`; same arguments."""
    begin = visible[:, 0]
    return torch.stack([begin, begin + _kept(visible, keep)], dim=1)


def random_window(visible: Tensor, keep: Tensor | int, generator: torch.Generator | None = None) -> Tensor:
    """`keep` neighbouring rows anywhere in each target's visible range, to compare with `recent_suffix`."""
    begin, end = visible.unbind(dim=1)
    kept = _kept(visible, keep)
    spare = end - begin - kept
    share = torch.rand(spare.shape, generator=generator, dtype=torch.float64, device=visible.device)
    start = begin + torch.minimum((share * (spare + 1)).to(begin.dtype), spare)
    return torch.stack([start, start + kept], dim=1)


def _kept(visible: Tensor, keep: Tensor | int) -> Tensor:
    """Rows of each range that are kept, [T]; `keep` may be the largest number that there is."""
    length = visible[:, 1] - visible[:, 0]
    if isinstance(keep, Tensor):
        kept = torch.minimum(length.long(), keep.to(length.device, torch.int64))
    else:  # no tensor is made of a number: a copy from the host would wait for the device
        kept = length.long().clamp(max=keep)
    return kept.clamp(min=0).to(torch.result_type(length, keep))
