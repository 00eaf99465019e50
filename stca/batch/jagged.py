"""Request-level batches as other libraries hold them: nested jagged tensors, torchrec's KeyedJaggedTensor."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from stca.batch.request_batch import RequestBatch

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

Kind = Literal["history", "targets", "labels"]


def to_nested(batch: RequestBatch, kind: Kind = "history") -> dict[str, Tensor]:
    """Features, or labels, as jagged nested tensors [R, j, ...] that share the batch's memory.

    Of a batch with `history_index` the history is a copy of all N rows.

    Example:
        >>> rows, offsets = {"item_id": torch.tensor([3, 4, 5])}, torch.tensor([0, 2, 3])
        >>> batch = stca.batch.RequestBatch(rows, offsets, rows, offsets)
        >>> [x.tolist() for x in stca.batch.to_nested(batch)["item_id"].unbind()]
        [[3, 4], [5]]
    """
    offsets = _offsets(batch, kind)
    features = _features(batch, kind)
    return {name: torch.nested.nested_tensor_from_jagged(x, offsets) for name, x in features.items()}


def from_nested(
    history: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    labels: Mapping[str, Tensor] | None = None,
    *,
    visible: Tensor | None = None,
    request_offsets: Tensor | None = None,
) -> RequestBatch:
    """The batch of jagged nested tensors, of which it shares the memory; the inverse of `to_nested`.

    Args:
        history: name to [R, j, ...], at least one, all of the same lengths.
        targets: name to [R, k, ...], at least one, of the same lengths as the labels.
        labels: name to [R, k].
        visible: as in `RequestBatch`.
        request_offsets: as in `RequestBatch`.

    Raises:
        ValueError: tensors that are no jagged nested tensors [R, j, ...], or of other lengths; none at all.

    Example:
        >>> rows = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(1)], layout=torch.jagged)
        >>> stca.batch.from_nested({"x": rows}, {"x": rows}).history_lengths
        (2, 1)
    """
    offsets: dict[str, Tensor] = {}
    nested: Any  # a Tensor, of whose methods its stub does not know
    for kind, features in (("history", history), ("targets", {**targets, **(labels or {})})):
        for name, nested in features.items():
            if nested.layout != torch.jagged or nested.lengths() is not None:
                raise ValueError(
                    f"from_nested: {kind}.{name} must be a jagged nested tensor without holes, got {nested.layout}"
                )
            if isinstance(nested.shape[1], int):  # of a ragged dimension it is a symbol
                raise ValueError(f"from_nested: {kind}.{name} must be [R, j, ...], got {list(nested.shape)}")
            begin, end = nested.offsets()[[0, -1]].tolist()
            if (begin, end) != (0, len(nested.values())):
                raise ValueError(
                    f"from_nested: {kind}.{name} must have offsets from 0 to its {len(nested.values())} rows, got "
                    f"{begin} to {end}"
                )
            first = offsets.setdefault(kind, nested.offsets())
            _same_lengths("from_nested", kind, name, first.diff(), nested.offsets().diff())
        if kind not in offsets:
            raise ValueError(f"from_nested: {kind} must have a feature, got none")
    return RequestBatch(
        history={name: x.values() for name, x in history.items()},
        history_offsets=offsets["history"],
        targets={name: x.values() for name, x in targets.items()},
        target_offsets=offsets["targets"],
        labels={name: x.values() for name, x in (labels or {}).items()},
        visible=visible,
        request_offsets=request_offsets,
    )


def to_keyed(batch: RequestBatch, kind: Kind = "history", names: Sequence[str] | None = None) -> "KeyedJaggedTensor":
    """Features of one number a row as torchrec's KeyedJaggedTensor, for its embedding collections.

    One feature, or features that lie one behind the other as `from_keyed` leaves them, share the batch's memory; others
    are laid together, one copy. Of a batch with `history_index` the history is a copy of all N rows.

    Args:
        batch: the batch.
        kind: history, targets or labels.
        names: of the features; None: all.

    Raises:
        ValueError: a feature of other shape or dtype than the first, or none.

    Example:
        >>> rows, offsets = {"item_id": torch.tensor([3, 4, 5])}, torch.tensor([0, 2, 3])
        >>> batch = stca.batch.RequestBatch(rows, offsets, rows, offsets)
        >>> keyed = stca.batch.to_keyed(batch, names=["item_id"])  # for torchrec.EmbeddingCollection(...)(keyed)
        >>> keyed.keys(), keyed.values().tolist(), keyed.lengths().tolist()
        (['item_id'], [3, 4, 5], [2, 1])
    """
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    features = _features(batch, kind)
    names = list(features) if names is None else list(names)
    if not names:
        raise ValueError(f"to_keyed: {kind} must have a feature, got none")
    if not features.keys() >= set(names):
        raise ValueError(f"to_keyed: {kind} must have the features {names}, got {list(features)}")
    first = features[names[0]]
    for name in names:
        x = features[name]
        if x.dim() != 1 or x.dtype != first.dtype:
            raise ValueError(f"to_keyed: {kind}.{name} must be {first.dtype} [rows], got {x.dtype} {list(x.shape)}")
    lengths = _offsets(batch, kind).diff()
    return KeyedJaggedTensor(names, _joined([features[name] for name in names]), lengths=lengths.repeat(len(names)))


def from_keyed(
    history: "KeyedJaggedTensor",
    targets: "KeyedJaggedTensor",
    labels: Mapping[str, Tensor] | None = None,
    *,
    visible: Tensor | None = None,
    request_offsets: Tensor | None = None,
) -> RequestBatch:
    """The batch of KeyedJaggedTensors, of which it shares the memory; the inverse of `to_keyed`.

    Args:
        history: keys that all have the same lengths, R of them, and no weights.
        targets: the same.
        labels: name to [T].
        visible: as in `RequestBatch`.
        request_offsets: as in `RequestBatch`.

    Raises:
        ValueError: keys of other lengths, or another number of lists, than the first; one key twice; none; values that
            the lengths do not tell of; weights or inverse indices, which a batch has no place for.

    Example:
        >>> from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
        >>> values, lengths = torch.tensor([3, 4, 5, 30, 40, 50]), torch.tensor([2, 1, 2, 1])
        >>> history = KeyedJaggedTensor(["item_id", "shop_id"], values, lengths=lengths)
        >>> targets = KeyedJaggedTensor(["item_id"], torch.tensor([7, 8]), lengths=torch.tensor([1, 1]))
        >>> batch = stca.batch.from_keyed(history, targets)
        >>> batch.history["shop_id"].tolist(), batch.history_lengths
        ([30, 40, 50], (2, 1))
    """
    parts = {kind: _values(kind, keyed) for kind, keyed in (("history", history), ("targets", targets))}
    return RequestBatch(*parts["history"], *parts["targets"], labels or {}, visible, request_offsets)


def _values(kind: str, keyed: "KeyedJaggedTensor") -> tuple[dict[str, Tensor], Tensor]:
    """Values of each key, and the offsets [R + 1] that all of them have."""
    keys, values = list(keyed.keys()), keyed.values()
    if not keys:
        raise ValueError(f"from_keyed: {kind} must have a key, got none")
    if len(set(keys)) < len(keys):
        raise ValueError(f"from_keyed: {kind} must have every key once, got {keys}")
    if keyed.weights_or_none() is not None:
        raise ValueError(f"from_keyed: {kind} must have no weights (they may be a key of their own), got some")
    if keyed.inverse_indices_or_none() is not None:
        raise ValueError(f"from_keyed: {kind} must have no inverse indices, for every list is a request's, got some")
    lengths = keyed.lengths().long().split(keyed.stride_per_key())
    for name, of_key in zip(keys, lengths, strict=True):
        _same_lengths("from_keyed", kind, name, lengths[0], of_key)
    offsets = torch.cat([lengths[0].new_zeros(1), lengths[0].cumsum(0)])  # torchrec's of int32 lengths may overflow
    rows = int(offsets[-1])
    if len(keys) * rows != len(values):
        raise ValueError(f"from_keyed: {kind} must have {len(keys) * rows} values by its lengths, got {len(values)}")
    return dict(zip(keys, values.view(len(keys), rows, *values.shape[1:]), strict=True)), offsets


def _features(batch: RequestBatch, kind: Kind) -> Mapping[str, Tensor]:
    """Features of all rows of a kind."""
    features: Mapping[str, Tensor] = getattr(batch.expand() if kind == "history" else batch, kind)
    return features


def _offsets(batch: RequestBatch, kind: Kind) -> Tensor:
    return batch.history_offsets if kind == "history" else batch.target_offsets


def _same_lengths(op: str, kind: str, name: str, first: Tensor, lengths: Tensor) -> None:
    if not torch.equal(first, lengths):
        raise ValueError(f"{op}: {kind}.{name} must have the lengths of the first, got {lengths.tolist()}")


def _joined(xs: Sequence[Tensor]) -> Tensor:
    """All of xs [rows] in a row: in place where they lie so already, and none has a gradient, which would miss it."""
    end = xs[0].data_ptr()
    storage = xs[0].untyped_storage().data_ptr()
    for x in xs:
        if x.requires_grad or x.data_ptr() != end or x.untyped_storage().data_ptr() != storage or not x.is_contiguous():
            return torch.cat(list(xs))
        end += x.nbytes
    return xs[0].as_strided((sum(len(x) for x in xs),), (1,))
