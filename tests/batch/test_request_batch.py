"""stca.batch: what is shared is exactly what was there, nobody sees the future, and losses are the point-wise ones."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import offsets
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import stca
from stca.batch import RequestBatch, Sample, bce_loss, from_pointwise, to_pointwise


def _batch(**changes: Any) -> RequestBatch:
    arguments: dict[str, Any] = {
        "history": {"item": torch.arange(6), "action": torch.rand(6, 3)},
        "history_offsets": offsets([4, 0, 2]),
        "targets": {"item": torch.arange(5)},
        "target_offsets": offsets([2, 1, 2]),
        "labels": {"click": torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])},
        "visible": torch.tensor([[0, 4], [1, 2], [0, 0], [0, 2], [2, 2]]),
        "request_offsets": offsets([1, 1, 1, 0, 2]),
    }
    return RequestBatch(**(arguments | changes))


def test_sizes_and_bytes() -> None:
    batch = _batch().validate()
    assert (batch.R, batch.T, batch.N) == (3, 5, 6)
    assert (batch.history_lengths, batch.target_lengths) == ((4, 0, 2), (2, 1, 2))
    assert batch.nbytes() == 8 * (6 + 4 + 5 + 4 + 10 + 6) + 4 * (18 + 5)
    assert batch.to("cpu").history_lengths == batch.history_lengths
    assert batch.map(torch.clone).validate().nbytes() == batch.nbytes()
    assert batch.to("meta").T == 5  # lengths are on the host
    assert replace(batch, history_offsets=offsets([1, 1, 1])).history_lengths == (1, 1, 1)
    assert torch.equal(_batch(visible=None).ranges(), torch.tensor([[0, 4], [0, 4], [0, 0], [0, 2], [0, 2]]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"history": {"item": torch.arange(5)}}, r"history.item must have 6 rows, got shape \[5\]"),
        ({"targets": {"item": torch.tensor(1)}}, r"targets.item must have 5 rows, got shape \[\]"),
        ({"labels": {"click": torch.zeros(6)}}, r"labels.click must have 5 rows, got shape \[6\]"),
        ({"history_offsets": torch.tensor([0, 5, 4, 6])}, r"history_offsets must start at 0, never decrease, got"),
        ({"target_offsets": torch.tensor([1, 2, 3, 5])}, r"target_offsets must start at 0"),
        ({"target_offsets": torch.tensor([0.0, 2, 3, 5])}, r"target_offsets must be int32 or int64 \[R \+ 1\]"),
        ({"request_offsets": offsets([3])}, r"request_offsets must start at 0, never decrease and end at T = 5, got"),
        ({"history_offsets": offsets([4, 2])}, "must have one length, got 3 and 4"),
        ({"visible": torch.zeros(5, 3)}, r"visible must be int32 or int64 \[5, 2\], got torch.float32 \[5, 3\]"),
        ({"visible": torch.tensor([[0, 4], [1, 5], [0, 0], [0, 2], [2, 2]])}, r"visible\[1\] .* 4 rows, got \[1, 5\]"),
    ],
)
def test_bad_batches(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"RequestBatch: .*{message}"):
        _batch(**changes).validate()


def test_point_wise_copies() -> None:
    batch = _batch().validate()
    copies = to_pointwise(batch).validate()
    assert copies.history_lengths == (4, 1, 0, 2, 0)
    assert copies.history["item"].tolist() == [0, 1, 2, 3, 1, 4, 5]
    assert torch.equal(copies.history["action"], batch.history["action"][copies.history["item"]])
    assert copies.target_lengths == (1,) * 5


class _Ranker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.item, self.action = nn.Embedding(9, 8), nn.Linear(3, 8)
        self.stca, self.mixer, self.logit = stca.nn.STCA(8, 2, 2), stca.nn.RankMixer(2, 8), nn.Linear(8, 1)

    def forward(self, batch: RequestBatch) -> Tensor:
        x = self.item(batch.targets["item"])
        rows = self.item(batch.history["item"]) + self.action(batch.history["action"].to(x.dtype))
        z = self.stca(x, rows, batch.target_offsets, batch.history_offsets, visible=batch.visible)
        logits: Tensor = self.logit(self.mixer(torch.stack([z, x], dim=1))).squeeze(1)
        return logits


def test_gradients_are_the_point_wise_ones() -> None:
    torch.manual_seed(0)
    model, batch = _Ranker().double(), _batch()
    results = []
    for each in (batch, to_pointwise(batch)):
        loss = bce_loss(model(each), each.labels["click"], each)
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for shared, copied in zip(*results, strict=True):
        torch.testing.assert_close(shared, copied, rtol=1e-9, atol=1e-12)


def test_both_reductions() -> None:
    batch, logits = _batch(), torch.randn(5, dtype=torch.float64, requires_grad=True)
    labels = batch.labels["click"]
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.double(), reduction="none")
    torch.testing.assert_close(bce_loss(logits, labels, batch), each.mean())
    requests = [each[0:1], each[1:2], each[2:3], each[3:5]]  # one request has no target
    expected = torch.stack([request.mean() for request in requests]).mean()
    torch.testing.assert_close(bce_loss(logits, labels, batch, "request"), expected)
    by_history = torch.stack([each[0:2].mean(), each[2:3].mean(), each[3:5].mean()]).mean()
    torch.testing.assert_close(bce_loss(logits, labels, _batch(request_offsets=None), "request"), by_history)
    nothing = RequestBatch({}, offsets([0]), {}, offsets([0]))
    assert bce_loss(torch.zeros(0), torch.zeros(0), nothing, "request").item() == 0
    with pytest.raises(ValueError, match="bce_loss: reduction must be 'target' or 'request', got 'sum'"):
        bce_loss(logits, labels, batch, "sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"bce_loss: logits and labels must be \[T = 5\], got \[4\] and \[5\]"):
        bce_loss(logits[:4], labels, batch)


@st.composite
def _logs(draw: st.DrawFn) -> tuple[list[Sample], float]:
    """Point-wise samples of a few users whose events and requests share few moments, histories cut at any length."""
    samples: list[Sample] = []
    for user in range(draw(st.integers(0, 3))):
        moments = sorted(draw(st.lists(st.integers(0, 12), max_size=25)))
        items = [draw(st.integers(0, 2)) for _ in moments]  # few items: rows repeat
        for request, time in enumerate(draw(st.lists(st.integers(0, 13), max_size=6))):
            before = sum(moment < time for moment in moments)
            begin = draw(st.integers(0, before))
            history = {
                "time": torch.tensor(moments[begin:before], dtype=torch.int64),
                "item": torch.tensor(items[begin:before], dtype=torch.int64),
            }
            for _ in range(draw(st.integers(1, 2))):
                target = {"number": torch.tensor(len(samples))}
                samples.append(Sample(user, float(time), history, target, {"click": float(request % 2)}, request))
    return draw(st.permutations(samples)), draw(st.sampled_from([0.0, 1.0, 5.0, 100.0]))


@given(log=_logs())
def test_every_target_sees_its_own_history_and_nothing_else(log: tuple[list[Sample], float]) -> None:
    samples, window = log
    batch = from_pointwise(samples, window=window, event_time="time").validate()
    assert len(samples) == batch.T
    if not samples:
        return
    by_number = {int(sample.target["number"]): sample for sample in samples}
    copies = to_pointwise(batch)
    numbers = batch.targets["number"].tolist()
    assert sorted(numbers) == list(range(len(samples)))
    for t, number in enumerate(numbers):
        sample, seen = by_number[number], slice(int(copies.history_offsets[t]), int(copies.history_offsets[t + 1]))
        for name, feature in sample.history.items():
            assert copies.history[name][seen].tolist() == feature.tolist()
        assert not (copies.history["time"][seen] >= sample.time).any()
        assert batch.labels["click"][t] == sample.labels["click"]
    # Shared histories belong to one user and one window, and no user has more rows than were copied.
    assert batch.N <= copies.N
    assert batch.request_offsets is not None
    requests = {(sample.user, sample.time, sample.request) for sample in samples}
    assert batch.request_offsets.numel() - 1 == len(requests)


def test_nested_histories_are_stored_once() -> None:
    stream = torch.arange(50)
    samples = [
        Sample("ann", float(end), {"item": stream[max(0, end - 30) : end]}, {"item": torch.tensor(end)})
        for end in (20, 35, 35, 50)
    ]
    batch = from_pointwise(samples, window=100)
    assert batch.history["item"].tolist() == stream.tolist()
    assert batch.visible is not None
    assert batch.visible.tolist() == [[0, 20], [5, 35], [5, 35], [20, 50]]
    assert from_pointwise(samples, window=20).history_lengths == (35, 30)


def test_bad_samples() -> None:
    rows, target = {"time": torch.tensor([1, 5])}, {"item": torch.tensor(0)}
    with pytest.raises(ValueError, match=r"events of samples\[1\] must be before its request at 5.0, got one at 5"):
        from_pointwise([Sample(0, 6.0, rows, target), Sample(0, 5.0, rows, target)], event_time="time")
    with pytest.raises(ValueError, match=r"samples\[1\].target must have the features \['item'\] of samples\[0\], got"):
        from_pointwise([Sample(0, 6.0, rows, target), Sample(0, 6.0, rows, {})])
    with pytest.raises(ValueError, match=r"samples of a request must have one history, samples\[1\] differs"):
        from_pointwise([Sample(0, 6.0, rows, target), Sample(0, 6.0, {"time": torch.tensor([1])}, target)])
    with pytest.raises(
        ValueError, match=r"samples\[1\].history.time must be torch.int64 \[L, \*\[\]\], got torch.float32"
    ):
        from_pointwise([Sample(0, 6.0, rows, target), Sample(1, 6.0, {"time": torch.tensor([])}, target)])
    with pytest.raises(ValueError, match=r"samples\[0\].history must have one length, got"):
        from_pointwise([Sample(0, 6.0, rows | {"item": torch.arange(3)}, target)])


class _Requests(torch.utils.data.Dataset[RequestBatch]):
    def __getitem__(self, i: int) -> RequestBatch:
        return _batch(targets={"item": torch.full((5,), i)})

    def __len__(self) -> int:
        return 4


def test_in_a_data_loader_with_workers() -> None:
    loader = torch.utils.data.DataLoader(_Requests(), batch_size=None, num_workers=2)
    assert [int(batch.validate().targets["item"][0]) for batch in loader] == [0, 1, 2, 3]


class _Calls(TorchFunctionMode):
    """Notes `pin_memory` and `to` of tensors; the first gives a copy, for to pin memory takes a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned: list[Tensor] = []
        self.moved: list[tuple[Tensor, dict[str, Any]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.pin_memory:
            self.pinned.append(args[0].clone())
            return self.pinned[-1]
        if func is Tensor.to:
            self.moved.append((args[0], kwargs))
        return func(*args, **(kwargs or {}))


def test_a_data_loader_pins_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator: Any = torch.accelerator  # without one, a DataLoader never asks
    monkeypatch.setattr(accelerator, "is_available", lambda: True)
    monkeypatch.setattr(accelerator, "current_accelerator", lambda: torch.device("cuda"))
    batch = _batch()
    requests: Any = [batch]
    loader: Any = torch.utils.data.DataLoader(requests, batch_size=None, pin_memory=True)
    with _Calls() as calls:
        [pinned] = loader
    assert isinstance(pinned, RequestBatch)
    names = batch.tensors()
    assert pinned.tensors().keys() == names.keys()
    assert {id(x) for x in pinned.tensors().values()} == {id(x) for x in calls.pinned}
    assert len(calls.pinned) == len(names)
    for name, x in pinned.tensors().items():
        assert torch.equal(x, names[name])
        assert batch.tensors()[name] is names[name]  # the batch itself stays as it was
    assert pinned.history_lengths is batch.history_lengths
    assert pinned.target_lengths is batch.target_lengths
    without = _batch(visible=None, request_offsets=None).pin_memory
    with _Calls():
        assert without().visible is None


@pytest.mark.parametrize("non_blocking", [False, True])
def test_every_tensor_moves_as_asked(non_blocking: bool) -> None:
    batch = _batch()
    with _Calls() as calls:
        moved = batch.to("meta", non_blocking)
    assert [id(x) for x, _ in calls.moved] == [id(x) for x in batch.tensors().values()]
    assert all(options == {"non_blocking": non_blocking} for _, options in calls.moved)
    assert {x.device.type for x in moved.tensors().values()} == {"meta"}
    assert moved.history_lengths is batch.history_lengths  # no device is asked
