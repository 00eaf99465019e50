"""The request-level batch: every history once, every target with its own features and labels."""

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from stca.ops import request_gather


def rows_of(begin: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Rows begin[s] to begin[s] + lengths[s] of each s, one after the other, and the offsets [S + 1] of the pieces.

    Example:
        >>> stca.batch.request_batch.rows_of(torch.tensor([5, 0]), torch.tensor([2, 3]))
        (tensor([5, 6, 0, 1, 2]), tensor([0, 2, 5]))
    """
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])  # int64: copies may be more than int32 counts
    rows = torch.repeat_interleave(begin - offsets[:-1], lengths)
    fits = len(rows) <= torch.iinfo(lengths.dtype).max
    return rows + torch.arange(len(rows), device=rows.device), offsets.to(lengths.dtype) if fits else offsets


@dataclass(frozen=True)
class RequestBatch:
    """R histories, each stored once, and the T targets that look at them.

    A history usually belongs to one request. Several requests of one user may share one, each target seeing its own
    part (`visible`); `request_offsets` then tells the requests apart.

    Args:
        history: features of history rows, name to [N, ...].
        history_offsets: [R + 1], int32 or int64: history r is rows `history_offsets[r]:history_offsets[r + 1]`.
        targets: features of targets, name to [T, ...].
        target_offsets: [R + 1]: targets of history r.
        labels: name to [T].
        visible: [T, 2], rows [begin, end) of its own history that a target sees. None: all.
        request_offsets: [Q + 1], targets of each of Q requests. None: every history is one request's, Q = R.

    The lengths of histories are on the host too (`history_lengths`, `target_lengths`), so that nothing has to wait for
    a device. A batch made of tensors on a device waits for it once.

    Example:
        >>> batch = stca.batch.RequestBatch(
        ...     history={"item": torch.tensor([3, 4, 5])},
        ...     history_offsets=torch.tensor([0, 2, 3]),
        ...     targets={"item": torch.tensor([7, 8, 9])},
        ...     target_offsets=torch.tensor([0, 1, 3]),
        ...     labels={"click": torch.tensor([0.0, 1.0, 0.0])},
        ... ).validate()
        >>> batch.R, batch.T, batch.N, batch.history_lengths
        (2, 3, 3, (2, 1))
    """

    history: Mapping[str, Tensor]
    history_offsets: Tensor
    targets: Mapping[str, Tensor]
    target_offsets: Tensor
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    visible: Tensor | None = None
    request_offsets: Tensor | None = None
    history_lengths: tuple[int, ...] = field(init=False, repr=False)
    target_lengths: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "history_lengths", tuple(self.history_offsets.diff().tolist()))
        object.__setattr__(self, "target_lengths", tuple(self.target_offsets.diff().tolist()))

    @property
    def R(self) -> int:  # noqa: N802
        """Histories."""
        return len(self.history_lengths)

    @property
    def T(self) -> int:  # noqa: N802
        """Targets of all histories."""
        return sum(self.target_lengths)

    @property
    def N(self) -> int:  # noqa: N802
        """History rows."""
        return sum(self.history_lengths)

    def map(self, f: Callable[[Tensor], Tensor]) -> "RequestBatch":
        """A batch with f of every tensor, which must keep its rows; the lengths are taken over, no device is asked."""
        mapped = copy(self)
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Tensor):
                object.__setattr__(mapped, each.name, f(value))
            elif isinstance(value, Mapping):
                object.__setattr__(mapped, each.name, {name: f(x) for name, x in value.items()})
        return mapped

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "RequestBatch":
        """The batch on a device."""
        return self.map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "RequestBatch":
        """The batch in page-locked memory, as a DataLoader with `pin_memory=True` wants it."""
        return self.map(lambda x: x.pin_memory())

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its name: "history.item", "visible", ..."""
        named: dict[str, Tensor] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Tensor):
                named[each.name] = value
            elif isinstance(value, Mapping):
                named |= {f"{each.name}.{name}": x for name, x in value.items()}
        return named

    def nbytes(self) -> int:
        """Bytes of all tensors together: what travels to a device."""
        return sum(x.nbytes for x in self.tensors().values())

    def validate(self) -> "RequestBatch":
        """The batch itself, once shapes, offsets and ranges are checked; reads values, so it waits for a device.

        Raises:
            ValueError: what does not fit, by name, expectation and value.
        """
        devices = {x.device: name for name, x in self.tensors().items()}
        if len(devices) > 1:
            raise ValueError(f"RequestBatch: all tensors must be on one device, got {devices}")
        self._check_offsets("history_offsets")
        self._check_offsets("target_offsets")
        N, T = self.N, self.T
        self._check_offsets("request_offsets", end=T)
        if self.history_offsets.numel() != self.target_offsets.numel():
            raise ValueError(
                "RequestBatch: history_offsets and target_offsets must have one length, got "
                f"{self.history_offsets.numel()} and {self.target_offsets.numel()}"
            )
        rows = {"history": N, "targets": T, "labels": T}
        for name, x in self.tensors().items():
            wanted = rows.get(name.split(".")[0])
            if wanted is not None and (x.dim() < 1 or x.shape[0] != wanted):
                raise ValueError(f"RequestBatch: {name} must have {wanted} rows, got shape {list(x.shape)}")
        if self.visible is not None:
            if self.visible.shape != (T, 2):
                raise ValueError(f"RequestBatch: visible must be [T = {T}, 2], got {list(self.visible.shape)}")
            if self.visible.dtype not in (torch.int32, torch.int64):
                raise ValueError(f"RequestBatch: visible must be int32 or int64, got {self.visible.dtype}")
            own = torch.repeat_interleave(self.history_offsets.diff(), self.target_offsets.diff())
            begin, end = self.visible.unbind(dim=1)
            wrong = ((begin < 0) | (begin > end) | (end > own)).nonzero().flatten()
            if len(wrong):
                t = int(wrong[0])
                raise ValueError(
                    f"RequestBatch: visible[{t}] must be a range in a history of {int(own[t])} rows, got "
                    f"{self.visible[t].tolist()}"
                )
        return self

    def _check_offsets(self, name: str, end: int | None = None) -> None:
        offsets = getattr(self, name)
        if offsets is None:
            return
        if offsets.dim() != 1 or offsets.numel() < 1 or offsets.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"RequestBatch: {name} must be int32 or int64 [R + 1], got {offsets.dtype} {list(offsets.shape)}"
            )
        if offsets[0] != 0 or (offsets.diff() < 0).any() or (end is not None and offsets[-1] != end):
            wanted = "" if end is None else f" and end at T = {end}"
            raise ValueError(f"RequestBatch: {name} must start at 0, never decrease{wanted}, got {offsets.tolist()}")

    def ranges(self) -> Tensor:
        """`visible`, or the whole history of every target where it is None: [T, 2]."""
        if self.visible is not None:
            return self.visible
        end = request_gather(self.history_offsets.diff(), self.target_offsets, total=self.T)
        return torch.stack([torch.zeros_like(end), end], dim=1)

    def requests(self) -> tuple[Tensor, Tensor]:
        """Targets of each request that has any, and which of these requests are each history's, as offsets [R + 1]."""
        offsets = self.target_offsets if self.request_offsets is None else self.request_offsets
        if not torch.isin(self.target_offsets, offsets).all():
            raise ValueError(
                "RequestBatch: request_offsets must hold all of target_offsets, for every request has one history, got "
                f"{offsets.tolist()} and {self.target_offsets.tolist()}"
            )
        sizes = offsets.diff()
        first, sizes = offsets[:-1][sizes > 0], sizes[sizes > 0]
        return sizes, torch.searchsorted(first.contiguous(), self.target_offsets.to(first.dtype))

    def select(self, index: Tensor) -> "RequestBatch":
        """The histories `index` [S], in that order, with their targets. Requests without targets are left out."""
        rows, history_offsets = rows_of(self.history_offsets[:-1][index], self.history_offsets.diff()[index])
        targets, target_offsets = rows_of(self.target_offsets[:-1][index], self.target_offsets.diff()[index])
        sizes, of_history = self.requests()
        requests, _ = rows_of(of_history[:-1][index], of_history.diff()[index])
        return RequestBatch(
            history={name: x[rows] for name, x in self.history.items()},
            history_offsets=history_offsets,
            targets={name: x[targets] for name, x in self.targets.items()},
            target_offsets=target_offsets,
            labels={name: x[targets] for name, x in self.labels.items()},
            visible=None if self.visible is None else self.visible[targets],
            request_offsets=torch.cat([sizes.new_zeros(1), sizes[requests].cumsum(0)]),
        )
