"""stca.batch as nested jagged tensors and as torchrec's KeyedJaggedTensor, there and back, in the same memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import offsets
from torch import Tensor

from stca.batch import RequestBatch, from_keyed, from_nested, to_keyed, to_nested


def _batch() -> RequestBatch:
    return RequestBatch(
        history={"item": torch.arange(6), "shop": torch.arange(6) + 10},
        history_offsets=offsets([4, 0, 2]),
        targets={"item": torch.arange(5)},
        target_offsets=offsets([2, 1, 2]),
        labels={"click": torch.rand(5)},
        visible=torch.tensor([[0, 4], [1, 2], [0, 0], [0, 2], [2, 2]]),
        request_offsets=offsets([1, 1, 1, 0, 2]),
    ).validate()


def _of(batch: RequestBatch) -> dict[str, Any]:
    return {"visible": batch.visible, "request_offsets": batch.request_offsets}


def _same_memory(actual: RequestBatch, expected: RequestBatch, names: set[str]) -> None:
    assert actual.validate().tensors().keys() == expected.tensors().keys()
    for name, x in expected.tensors().items():
        assert torch.equal(actual.tensors()[name], x)
        if name in names:
            assert actual.tensors()[name].data_ptr() == x.data_ptr(), name


def test_nested_tensors() -> None:
    batch = _batch()
    history, targets, labels = (to_nested(batch, kind) for kind in ("history", "targets", "labels"))
    assert [x.tolist() for x in history["shop"].unbind()] == [[10, 11, 12, 13], [], [14, 15]]
    assert [len(x) for x in labels["click"].unbind()] == [2, 1, 2]
    _same_memory(from_nested(history, targets, labels, **_of(batch)), batch, set(batch.tensors()))


def _nested(*lengths: int) -> Tensor:
    return torch.nested.nested_tensor([torch.zeros(n) for n in lengths], layout=torch.jagged)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"x": torch.zeros(2, 3)}, {}), "history.x must be a jagged nested tensor without holes, got torch.strided"),
        (({}, {"x": _nested(1)}), "history must have a feature, got none"),
        (({"x": _nested(1, 2), "y": _nested(2, 1)}, {}), r"history.y must have the lengths .*, got \[2, 1\]"),
        (({"x": _nested(1)}, {"x": _nested(1)}, {"y": _nested(2)}), r"targets.y must have the lengths of the first"),
    ],
)
def test_bad_nested_tensors(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"from_nested: {message}"):
        from_nested(*arguments)


@pytest.mark.peers
def test_keyed_jagged_tensors(keyed: Callable[..., Any]) -> None:
    batch = _batch()
    history, targets = to_keyed(batch), to_keyed(batch, "targets")
    assert type(history) is keyed
    assert history.keys() == ["item", "shop"]
    assert history["shop"].to_dense()[2].tolist() == [14, 15]
    assert targets.values().data_ptr() == batch.targets["item"].data_ptr()  # one feature: no copy
    back = from_keyed(history, targets, batch.labels, **_of(batch))
    _same_memory(back, batch, {"targets.item", "labels.click", "visible", "request_offsets"})
    pieces = [history.values()[:6], history.values()[6:]]
    for x, piece in zip(back.history.values(), pieces, strict=True):
        assert x.data_ptr() == piece.data_ptr()
    again = to_keyed(back)  # several features, but one behind the other: no copy
    assert again.values().data_ptr() == history.values().data_ptr()
    assert torch.equal(again.values(), history.values())
    assert torch.equal(again.lengths(), history.lengths())
    turned = to_keyed(back, names=["shop", "item"])
    assert turned.values().tolist() == [*range(10, 16), *range(6)]


@pytest.mark.peers
def test_a_pipeline_of_torchrec_feeds_a_batch(keyed: Callable[..., Any]) -> None:
    lengths = torch.tensor([4, 0, 2, 4, 0, 2], dtype=torch.int32)
    history = keyed(keys=["item", "shop"], values=torch.arange(12), lengths=lengths)
    targets = keyed(keys=["item"], values=torch.arange(5), offsets=torch.tensor([0, 2, 3, 5]))
    batch = from_keyed(history, targets).validate()
    assert (batch.history_lengths, batch.target_lengths) == ((4, 0, 2), (2, 1, 2))
    assert batch.history["shop"].tolist() == list(range(6, 12))
    nothing = keyed(keys=["item", "shop"], values=torch.arange(0), lengths=torch.arange(0))
    assert from_keyed(nothing, nothing).validate().R == 0
    uneven = keyed(keys=["item", "shop"], values=torch.arange(6), lengths=torch.tensor([1, 2, 2, 1]))
    with pytest.raises(ValueError, match=r"from_keyed: history.shop must have the lengths of the first, got \[2, 1\]"):
        from_keyed(uneven, targets)


@pytest.mark.peers
def test_bad_keyed_jagged_tensors(keyed: Callable[..., Any]) -> None:
    wide = RequestBatch({"x": torch.zeros(2, 3)}, offsets([2]), {}, offsets([0]))
    with pytest.raises(
        ValueError, match=r"to_keyed: history.x must be torch.float32 \[rows\], got torch.float32 \[2, 3\]"
    ):
        to_keyed(wide)
    with pytest.raises(ValueError, match="to_keyed: targets must have a feature, got none"):
        to_keyed(wide, "targets")
