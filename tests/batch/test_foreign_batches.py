"""Structures of other libraries and of none: torchrec's, nested tensors, samples; taken right, or refused by name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import offsets

from stca.batch import RequestBatch, Sample, from_keyed, from_nested, from_pointwise, to_keyed


@pytest.mark.peers
def test_keyed_tensors_of_other_forms(keyed: Callable[..., Any]) -> None:
    ones, values = torch.tensor([1, 1, 1, 1]), torch.tensor([5, 20, 21, 22])
    good = keyed(["item"], torch.tensor([1, 2]), lengths=torch.tensor([1, 1]))
    for other, message in (
        (
            keyed(["user", "item"], values, lengths=ones, stride_per_key_per_rank=[[1], [3]]),
            "item must have the lengths",
        ),
        (keyed(["item"], values, lengths=ones, weights=torch.rand(4)), "must have no weights"),
        (keyed(["a", "a"], values, lengths=ones), "must have every key once"),
        (keyed(["a"], values, lengths=ones, inverse_indices=(["a"], torch.tensor([[0, 1]]))), "no inverse indices"),
        (keyed(["a", "b"], torch.arange(8), offsets=torch.arange(2, 7)), "must have 4 values by its lengths, got 8"),
        (keyed(["a"], torch.arange(3), lengths=ones), "must have 4 values by its lengths, got 3"),
    ):
        for kind, arguments in (("history", (other, good)), ("targets", (good, other))):
            with pytest.raises(ValueError, match=f"^from_keyed: {kind}.*{message}"):
                from_keyed(*arguments)
    strides = keyed(["user", "item"], values, lengths=ones, stride_per_key_per_rank=[[1, 1], [1, 1]])
    batch = from_keyed(strides, good).validate()
    assert {name: x.tolist() for name, x in batch.history.items()} == {"user": [5, 20], "item": [21, 22]}
    turned = keyed(["user", "item"], values, lengths=torch.tensor([0, 2, 0, 2])).permute([1, 0])
    assert from_keyed(turned, good).validate().history["item"].tolist() == [21, 22]
    wide = keyed(["a", "b"], torch.arange(8).view(4, 2), lengths=ones)
    assert from_keyed(wide, good).validate().history["b"].tolist() == [[4, 5], [6, 7]]


@pytest.mark.peers
def test_keyed_features_keep_their_gradients(keyed: Callable[..., Any]) -> None:
    both = torch.arange(4.0, requires_grad=True)
    first, second = torch.split(both * 1, 2)  # one behind the other
    batch = RequestBatch({"a": first, "b": second}, offsets([2]), {}, offsets([0]))
    (to_keyed(batch).values() * torch.arange(4.0)).sum().backward()
    assert both.grad is not None
    assert both.grad.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"to_keyed: history must have the features \['c'\], got \['a', 'b'\]"):
        to_keyed(batch, names=["c"])


def test_nested_tensors_of_other_forms() -> None:
    square = torch.nested.nested_tensor([torch.zeros(2, 5), torch.zeros(3, 5)], layout=torch.jagged)
    of_ends = torch.nested.nested_tensor_from_jagged
    for other, message in (
        (square.transpose(1, 2), r"must be \[R, j, ...\], got"),
        (of_ends(torch.arange(9), torch.tensor([2, 5, 7])), "0 to its 9 rows, got 2 to 7"),
        (of_ends(torch.arange(9), torch.tensor([0, 5, 7])), "0 to its 9 rows, got 0 to 7"),
        (torch.zeros(2, 5), "must be a jagged nested tensor"),
    ):
        with pytest.raises(ValueError, match=f"from_nested: history.x.*{message}"):
            from_nested({"x": other}, {"x": other})
    small = of_ends(torch.arange(5), torch.tensor([0, 2, 5], dtype=torch.int32))
    assert from_nested({"x": square, "y": small}, {"x": small}).validate().history_lengths == (2, 3)


def test_batches_of_two_devices_and_ranges_of_no_dtype() -> None:
    rows, ends = {"item": torch.arange(3)}, offsets([1, 2])
    with pytest.raises(ValueError, match=r"RequestBatch: all tensors must be on one device, got .*meta.*history.item"):
        RequestBatch({"item": rows["item"].to("meta")}, ends, rows, ends).validate()
    with pytest.raises(ValueError, match=r"RequestBatch: visible must be int32 or int64 .*, got torch.float32"):
        RequestBatch(rows, ends, rows, ends, visible=torch.zeros(3, 2)).validate()


def test_samples_of_nobody_and_of_no_time() -> None:
    item = {"item": torch.tensor(2**53 + 1)}
    good = Sample("ann", 1.0, {}, item)
    for other, message in (
        (Sample(None, 1.0, {}, item), r"samples\[1\].user must be somebody, got None"),
        (Sample(float("nan"), 1.0, {}, item), r"samples\[1\].user must be somebody, got nan"),
        (Sample("ann", float("nan"), {}, item), r"samples\[1\].time must be a number, got nan"),
        (
            Sample("ann", 1.0, {}, {"item": torch.tensor(1.0)}),
            r"samples\[1\].target.item must be torch.int64 \[\], got",
        ),
        (Sample("ann", 1.0, {}, {"item": torch.zeros(2).long()}), r"samples\[1\].target.item must be .*, got .* \[2\]"),
    ):
        with pytest.raises(ValueError, match=f"from_pointwise: {message}"):
            from_pointwise([good, other])
    with pytest.raises(ValueError, match="from_pointwise: window must be at least 0, got nan"):
        from_pointwise([good], window=float("nan"))
    assert from_pointwise([good]).targets["item"].tolist() == [2**53 + 1]
