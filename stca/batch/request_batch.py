"""The request-level batch: every history once, every target with its own features and labels."""

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from stca.batch.checks import check_batch, check_ranges, check_tensors
from stca.batch.ranges import hull_of_ranges, lengths_to_offsets, ranges_to_index
from stca.ops import jagged_select, request_gather


@dataclass(frozen=True)
class RequestBatch:
    """R histories, each stored once, and the T targets that look at them.

    A history usually belongs to one request. Several requests of one user may share one, each target seeing its own
    part (`visible`); `request_offsets` then tells the requests apart.

    Args:
        history: features of history rows, name to [N, ...], or [P, ...] with `history_index`.
        history_offsets: [R + 1], int32 or int64: history r is rows `history_offsets[r]:history_offsets[r + 1]`.
        targets: features of targets, name to [T, ...].
        target_offsets: [R + 1]: targets of history r.
        labels: name to [T].
        visible: [T, 2], rows [begin, end) of its own history that a target sees. None: all.
        request_offsets: [Q + 1], targets of each of Q requests. None: every history is one request's, Q = R.
        history_index: [N], int32 or int64: which of P stored rows each history row is: one that occurs often is then
            stored, sent and encoded once. None: P = N.

    Lengths are on the host too (`history_lengths`, `target_lengths`): to make a batch on a device waits for it once.

    Example:
        >>> batch = stca.batch.RequestBatch(
        ...     history={"item_id": torch.tensor([3, 4, 5])},
        ...     history_offsets=torch.tensor([0, 2, 3]),
        ...     targets={"item_id": torch.tensor([7, 8, 9])},
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
    history_index: Tensor | None = None
    history_lengths: tuple[int, ...] = field(init=False, repr=False)
    target_lengths: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_tensors(history_offsets=self.history_offsets, target_offsets=self.target_offsets)
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
        """Every tensor by its name: "history.item_id", "visible", ..."""
        named: dict[str, Tensor] = {}
        for each, value in ((each, getattr(self, each.name)) for each in fields(self)):
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
        check_batch(self)
        return self

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

    def expand(self) -> "RequestBatch":
        """The batch with all N history rows instead of the P stored ones and `history_index`."""
        index, stored = self.history_index, self.history
        rows = stored if index is None else {name: x[index] for name, x in stored.items()}
        return replace(self, history=rows, history_index=None)

    def select(self, index: Tensor, targets: Tensor | None = None) -> "RequestBatch":
        """The histories `index` [S], in that order and as often, with their targets or a range of them each.

        Args:
            index: int [S], histories.
            targets: int [S, 2], the targets [begin, end) of each history's own that come with it. None: all.

        Returns:
            A batch of S histories. Requests without targets are left out, rows that no target sees are not: see `trim`.

        Raises:
            ValueError: targets that are no ranges of a history's own.

        Example:
            >>> rows, offsets = {"item_id": torch.tensor([3, 4, 5])}, torch.tensor([0, 2, 3])
            >>> batch = stca.batch.RequestBatch(rows, offsets, rows, offsets)
            >>> part = batch.select(torch.tensor([1, 0]), torch.tensor([[0, 1], [1, 2]]))
            >>> part.history["item_id"].tolist(), part.targets["item_id"].tolist()
            ([5, 3, 4], [5, 4])
        """
        first, counts = self.target_offsets[:-1][index], self.target_offsets.diff()[index]
        if targets is not None:
            check_ranges("select: targets", targets, counts, "targets")
            first, counts = first + targets[:, 0], targets[:, 1] - targets[:, 0]
        return self._taken(index, ranges_to_index(first, counts)[0], counts)

    def filter(self, keep: Tensor) -> "RequestBatch":
        """The targets where `keep`, bool [T], holds, with their histories; histories without any are left out.

        Example:
            >>> rows, offsets = {"item_id": torch.tensor([3, 4, 5])}, torch.tensor([0, 2, 3])
            >>> batch = stca.batch.RequestBatch(rows, offsets, rows, offsets)
            >>> part = batch.filter(batch.targets["item_id"] < 5)
            >>> part.history["item_id"].tolist(), part.targets["item_id"].tolist()
            ([3, 4], [3, 4])
        """
        kept = lengths_to_offsets(keep.long())[self.target_offsets.long()].diff()
        index = kept.nonzero().flatten()
        return self._taken(index, keep.nonzero().flatten(), kept[index].to(self.target_offsets.dtype))

    def trim(self, keep: Tensor | int | None = None) -> "RequestBatch":
        """The batch with the most recent rows of each history alone; `visible` ranges shift along.

        A target that saw older rows only then sees none. Where requests share a history, each has recent rows of its
        own: `replace(batch, visible=stca.lengths.recent_suffix(batch.ranges(), keep)).trim()` keeps these.

        Args:
            keep: int [R], or one number for all, at least 0: rows of each history. None: those from the first that
                one of its targets sees to the last.

        Raises:
            ValueError: a `keep` of another shape, or one that is negative.

        Source:
            Length-extrapolative training on recent suffixes, arXiv 2511.06077, section 3.4.

        Example:
            >>> rows, visible = {"item_id": torch.tensor([3, 4, 5])}, torch.tensor([[0, 1], [0, 2]])
            >>> batch = stca.batch.RequestBatch(rows, torch.tensor([0, 3]), {}, torch.tensor([0, 2]), visible=visible)
            >>> batch.trim(2).history["item_id"].tolist(), batch.trim(2).visible.tolist()
            ([4, 5], [[0, 0], [0, 1]])
        """
        lengths = self.history_offsets.diff()
        if keep is None:
            begin, end = hull_of_ranges(self.ranges(), self.target_offsets)
        else:
            kept = torch.as_tensor(keep, device=lengths.device)
            if kept.shape not in ((), lengths.shape) or (kept < 0).any():
                raise ValueError(f"RequestBatch.trim: keep must be [R = {self.R}] of at least 0, got {kept.tolist()}")
            begin, end = lengths - torch.minimum(lengths.long(), kept), lengths
        # Of three pieces of each history, what is older, what stays and what is later, the second stays.
        first, last = self.history_offsets[:-1], self.history_offsets[-1:]
        pieces = torch.cat([torch.stack([first, first + begin, first + end], 1).flatten(), last])
        visible = self.visible
        if visible is not None:
            shift, most = request_gather(torch.stack([begin, end - begin], 1), self.target_offsets, total=self.T).T
            visible = torch.minimum((visible - shift[:, None]).clamp(min=0), most[:, None]).to(visible.dtype)
        own = 3 * torch.arange(self.R, device=lengths.device) + 1
        return replace(self, **self._pieces(pieces, own), visible=visible)

    def _pieces(self, offsets: Tensor, index: Tensor) -> dict[str, Any]:
        """The history of another batch, by field: the pieces `index` of the N rows that `offsets` divide."""
        stored, place = self.history, self.history_index
        own = stored if place is None else {"": place}
        chosen = {name: jagged_select(x, offsets.long(), index)[0] for name, x in own.items()}
        if place is not None:  # what nobody points to any more is left out
            rows, index_of_rows = torch.unique(chosen[""], return_inverse=True)
            chosen, place = {name: x[rows] for name, x in stored.items()}, index_of_rows.to(place.dtype)
        lengths = offsets.diff()[index].to(self.history_offsets.dtype)
        return {"history": chosen, "history_index": place, "history_offsets": lengths_to_offsets(lengths)}

    def _taken(self, index: Tensor, targets: Tensor, counts: Tensor) -> "RequestBatch":
        """The histories `index` [S], each with as many of the chosen targets as `counts` [S] says."""
        sizes, _ = self.requests()
        request, history = (torch.repeat_interleave(torch.arange(len(x), device=x.device), x) for x in (sizes, counts))
        request = request[targets] + len(sizes) * history  # a history may come twice
        return replace(
            self,
            **self._pieces(self.history_offsets, index),
            targets={name: x[targets] for name, x in self.targets.items()},
            target_offsets=lengths_to_offsets(counts),
            labels={name: x[targets] for name, x in self.labels.items()},
            visible=None if self.visible is None else self.visible[targets],
            request_offsets=lengths_to_offsets(torch.unique_consecutive(request, return_counts=True)[1]),
        )
