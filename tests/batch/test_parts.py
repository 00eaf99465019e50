"""Parts of a request-level batch: chosen histories and targets, recent rows, rows that are stored once."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import offsets
from hypothesis import given
from hypothesis import strategies as st

import stca
from stca.batch import RequestBatch, to_nested, to_pointwise
from stca.data import RequestDataset, write_requests
from stca.lengths import recent_suffix

History = list[list[tuple[int, list[int]]]]  # requests of targets, each a number and the rows that it sees


@st.composite
def _batches(draw: st.DrawFn) -> RequestBatch:
    """Up to 4 histories of up to 5 rows, some stored once for several, and requests of up to 3 targets, any number."""
    counts = st.integers(0, 5)
    lengths = draw(st.lists(counts, max_size=4))
    requests = [draw(st.lists(st.integers(0, 3), max_size=3)) for _ in lengths]
    sizes = [sum(of) for of in requests]
    N, T = sum(lengths), sum(sizes)
    index, visible, request_offsets = None, None, None
    P = N
    if draw(st.booleans()):
        P = draw(st.integers(1, 3))
        index = torch.tensor([draw(st.integers(0, P - 1)) for _ in range(N)], dtype=torch.int32)
    if draw(st.booleans()):
        own = [length for length, size in zip(lengths, sizes, strict=True) for _ in range(size)]
        ranges = [sorted(draw(st.lists(st.integers(0, length), min_size=2, max_size=2))) for length in own]
        visible = torch.tensor(ranges, dtype=torch.int32).reshape(-1, 2)
    if draw(st.booleans()):
        request_offsets = offsets([size for of in requests for size in of])
    return RequestBatch(
        history={"row": 10 * torch.arange(P), "half": torch.arange(P).half().unsqueeze(1)},
        history_offsets=offsets(lengths).to(draw(st.sampled_from([torch.int32, torch.int64]))),
        targets={"number": torch.arange(T)},
        target_offsets=offsets(sizes),
        labels={"label": torch.arange(T) + 0.5},
        visible=visible,
        request_offsets=request_offsets,
        history_index=index,
    ).validate()


def _plain(batch: RequestBatch, keep: list[int] | None = None) -> list[History]:
    """The same in lists, with the last keep[r] rows of history r alone; all that a batch holds goes along with them."""
    batch.validate()
    rows, numbers = batch.expand().history, batch.targets["number"]
    assert torch.equal(rows["half"].flatten().long() * 10, rows["row"])
    assert torch.equal(batch.labels["label"], numbers + 0.5)
    ranges, begins = batch.ranges().tolist(), batch.history_offsets.tolist()
    ends = (batch.target_offsets if batch.request_offsets is None else batch.request_offsets).tolist()
    histories: list[History] = []
    for r, length in enumerate(batch.history_lengths):
        own = rows["row"][begins[r] : begins[r + 1]].tolist()
        oldest = max(0, length - keep[r]) if keep is not None else 0
        seen = [own[max(oldest, begin) : max(oldest, end)] for begin, end in ranges]
        first, last = batch.target_offsets[r : r + 2].tolist()
        bounds = sorted({end for end in ends if first <= end <= last} | {first, last})
        histories.append([[(int(numbers[t]), seen[t]) for t in range(*request)] for request in pairwise(bounds)])
    return histories


@given(batch=_batches(), data=st.data())
def test_chosen_histories_with_ranges_of_their_targets(batch: RequestBatch, data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, batch.R - 1), max_size=4)) if batch.R else []
    plain = _plain(batch)
    assert _plain(batch.select(torch.tensor(index, dtype=torch.int64))) == [plain[r] for r in index]
    bounds = st.lists(st.integers(0, 9), min_size=2, max_size=2)
    ranges = [sorted(min(batch.target_lengths[r], end) for end in data.draw(bounds)) for r in index]
    part = batch.select(torch.tensor(index, dtype=torch.int64), torch.tensor(ranges).long().reshape(-1, 2))
    expected = []
    for r, (begin, end) in zip(index, ranges, strict=True):
        places = iter(range(batch.T))
        kept = [[target for target in request if begin <= next(places) < end] for request in plain[r]]
        expected.append([request for request in kept if request])
    assert _plain(part) == expected


@given(batch=_batches(), data=st.data())
def test_chosen_targets(batch: RequestBatch, data: st.DataObject) -> None:
    keep = data.draw(st.lists(st.booleans(), min_size=batch.T, max_size=batch.T))
    expected = [[[t for t in request if keep[t[0]]] for request in history] for history in _plain(batch)]
    part = batch.filter(torch.tensor(keep, dtype=torch.bool))
    assert _plain(part) == [[request for request in history if request] for history in expected if any(history)]


@given(batch=_batches(), data=st.data())
def test_recent_rows(batch: RequestBatch, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 6), min_size=batch.R, max_size=batch.R))
    for keep, each in ((torch.tensor(lengths, dtype=torch.int64), lengths), (2, [2] * batch.R)):
        trimmed = batch.trim(keep)
        assert _plain(trimmed) == _plain(batch, each)
        assert trimmed.history_lengths == tuple(map(min, batch.history_lengths, each))
        assert trimmed.history_offsets.dtype == batch.history_offsets.dtype


@given(batch=_batches(), keep=st.integers(0, 4))
def test_rows_that_no_target_sees_are_left_out(batch: RequestBatch, keep: int) -> None:
    recent = replace(batch, visible=recent_suffix(batch.ranges(), keep))
    trimmed = recent.trim()
    assert _plain(trimmed) == _plain(recent)
    ranges, begins = trimmed.ranges(), trimmed.target_offsets.tolist()
    for r, length in enumerate(trimmed.history_lengths):
        own = [(begin, end) for begin, end in ranges[begins[r] : begins[r + 1]].tolist() if begin < end]
        assert length == max((end for _, end in own), default=0)
        assert min((begin for begin, _ in own), default=0) == 0


@given(batch=_batches())
def test_stored_rows_are_those_that_are_pointed_to(batch: RequestBatch) -> None:
    every = batch.expand()
    assert every.history_index is None
    assert len(every.history["row"]) == batch.N
    assert to_pointwise(batch).history["row"].tolist() == to_pointwise(every).history["row"].tolist()
    if batch.history_index is None:
        return
    for part in (
        batch.trim(2),
        batch.select(torch.arange(batch.R)),
        batch.filter(torch.ones(batch.T, dtype=torch.bool)),
    ):
        assert part.history_index is not None
        assert part.history_index.dtype == torch.int32
        assert sorted(set(part.history_index.tolist())) == list(range(len(part.history["row"])))


def _indexed() -> RequestBatch:
    return RequestBatch(
        history={"item_id": torch.tensor([7, 8, 9])},
        history_offsets=offsets([3, 2]),
        targets={"item_id": torch.arange(2)},
        target_offsets=offsets([1, 1]),
        history_index=torch.tensor([2, 0, 2, 1, 1]),
    )


def test_indexed_rows_elsewhere(tmp_path: Path) -> None:
    batch = _indexed().validate()
    assert "history_index" in batch.tensors()
    assert batch.nbytes() == 8 * (3 + 3 + 2 + 3 + 5)
    assert batch.to("meta").history_index.device.type == "meta"  # type: ignore[union-attr]
    rows = [[9, 7, 9], [8, 8]]
    assert [x.tolist() for x in to_nested(batch)["item_id"].unbind()] == rows
    write_requests(batch, tmp_path / "log.parquet")
    [read] = RequestDataset(tmp_path / "log.parquet", budget=9, shuffle=False)
    assert [x.tolist() for x in to_nested(read)["item_id"].unbind()] == rows
    table, model = torch.nn.Embedding(10, 8), stca.nn.STCA(8, 1, 1)
    x = table(batch.targets["item_id"])
    z = [
        model(x, table(b.history["item_id"]), b.target_offsets, b.history_offsets, history_index=b.history_index)
        for b in (batch, batch.expand())
    ]
    torch.testing.assert_close(*z)


@pytest.mark.peers
def test_indexed_rows_as_torchrec_has_them(keyed: Any) -> None:
    history = stca.batch.to_keyed(_indexed())
    assert type(history) is keyed
    assert history.values().tolist() == [9, 7, 9, 8, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"history_index": torch.tensor([0, 1])},
            r"history_index must be int32 or int64 \[N = 5\], got torch.int64 \[2\]",
        ),
        ({"history_index": torch.zeros(5)}, r"history_index must be int32 or int64 \[N = 5\], got torch.float32"),
        ({"history_index": torch.tensor([0, 1, 3, 0, 0])}, r"history_index\[2\] must be a row of 3 stored, got 3"),
        ({"history_index": torch.tensor([0, -1, 3, 0, 0])}, r"history_index\[1\] must be a row of 3 stored, got -1"),
        ({"history": {"item_id": torch.arange(3), "x": torch.arange(4)}}, "history.x must have 3 rows"),
        ({"history_index": None}, r"history.item_id must have 5 rows, got shape \[3\]"),
    ],
)
def test_a_wrong_index_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"RequestBatch: {message}"):
        replace(_indexed(), **change).validate()


def test_wrong_parts_are_refused() -> None:
    batch = _indexed()
    for keep in (-1, torch.tensor([1, -1]), torch.tensor([1, 1, 1])):
        with pytest.raises(ValueError, match=r"RequestBatch.trim: keep must be \[R = 2\] of at least 0, got"):
            batch.trim(keep)
    with pytest.raises(
        ValueError, match=r"select: targets\[0\] must be a range in a history of 1 targets, got \[0, 2\]"
    ):
        batch.select(torch.tensor([1]), torch.tensor([[0, 2]]))


def test_gradients_of_what_is_kept() -> None:
    rows = torch.arange(5.0, requires_grad=True)
    batch = RequestBatch({"x": rows}, offsets([3, 2]), {}, offsets([0, 0]))
    [gradient] = torch.autograd.grad(batch.trim(1).history["x"].sum(), rows)
    assert gradient.tolist() == [0, 0, 1, 0, 1]
