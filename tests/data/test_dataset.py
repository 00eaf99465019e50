"""stca.data: what is written comes back once and only once, for any reader, in bounded memory, or with an error."""

import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accuracy import assert_bitwise_equal
from batches import make_requests
from cases import offsets

from stca.batch import RequestBatch
from stca.data import RequestDataset, write_requests


def _same(actual: RequestBatch, expected: RequestBatch) -> None:
    assert_bitwise_equal(actual.tensors(), expected.tensors())


def _by_history(batches: list[RequestBatch]) -> dict[int, RequestBatch]:
    """Single histories by their first target's item, which is unique."""
    singles = [batch.select(torch.tensor([r])) for batch in batches for r in range(batch.R)]
    by_item = {int(single.targets["item"][0]): single for single in singles}
    assert len(by_item) == len(singles), "a history came twice"
    return by_item


def test_select() -> None:
    batch = make_requests(7)
    _same(batch.select(torch.arange(7)), batch)
    chosen = batch.select(torch.tensor([5, 0, 5])).validate()
    assert chosen.history_lengths == tuple(batch.history_lengths[i] for i in (5, 0, 5))
    begin = batch.history_offsets[5]
    assert torch.equal(
        chosen.history["vector"][: chosen.history_lengths[0]],
        batch.history["vector"][begin:][: chosen.history_lengths[0]],
    )
    assert batch.select(torch.zeros(0, dtype=torch.int64)).validate().R == 0
    crossing = RequestBatch({}, offsets([0, 0]), {}, offsets([1, 1]), request_offsets=offsets([2]))
    with pytest.raises(ValueError, match="request_offsets must hold all of target_offsets"):
        crossing.requests()


def test_written_and_read_in_order(tmp_path: Path) -> None:
    batch = make_requests(50)
    assert write_requests(batch, tmp_path / "log.parquet", tokens=300) == 50
    assert pq.ParquetFile(tmp_path / "log.parquet").num_row_groups > 3
    read = list(RequestDataset(tmp_path / "log.parquet", budget=10**9, shuffle=False))
    expected, got = _by_history([batch]), _by_history(read)
    assert expected.keys() == got.keys()
    for item, single in expected.items():
        _same(got[item], single)
    assert not list(tmp_path.glob("*.part"))


def test_row_groups_are_filled_from_many_small_batches(tmp_path: Path) -> None:
    batch = make_requests(50)
    parts = [batch.select(torch.tensor([r])) for r in range(50)]
    assert write_requests(parts, tmp_path / "parts.parquet", tokens=300) == 50
    write_requests(batch, tmp_path / "whole.parquet", tokens=300)
    parts_file, whole_file = (pq.ParquetFile(tmp_path / f"{name}.parquet") for name in ("parts", "whole"))
    assert parts_file.read().equals(whole_file.read())
    sizes = [
        [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] for file in (parts_file, whole_file)
    ]
    assert sizes[0] == sizes[1]
    assert len(sizes[0]) > 3


def test_any_reader_of_parquet_understands_it(tmp_path: Path) -> None:
    batch = make_requests(5)
    write_requests([batch, make_requests(3, seed=1)], tmp_path / "log.parquet")
    table = pq.read_table(tmp_path / "log.parquet")
    assert table.num_rows == 8
    first = table.slice(0, 1).to_pylist()[0]
    assert first["history_item"] == batch.history["item"][: batch.history_lengths[0]].tolist()
    assert first["label_click"] == batch.labels["click"][: batch.target_lengths[0]].tolist()
    assert sum(first["request_targets"]) == batch.target_lengths[0]
    assert pq.ParquetFile(tmp_path / "log.parquet").metadata.row_group(0).column(0).compression == "ZSTD"


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (3, 0), (1, 2), (2, 2)])
def test_every_history_comes_once(tmp_path: Path, world_size: int, workers: int) -> None:
    parts = [make_requests(40, seed) for seed in range(2)]
    paths = [tmp_path / f"{i}.parquet" for i in range(2)]
    for part, path in zip(parts, paths, strict=True):
        write_requests(part, path, tokens=200)
    read = []
    for rank in range(world_size):
        dataset = RequestDataset(paths, budget=150, rank=rank, world_size=world_size, seed=5)
        read += list(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers))
    assert all(batch.R == 1 or batch.N <= 150 for batch in read)
    expected, got = _by_history(parts), _by_history(read)
    assert expected.keys() == got.keys()
    for item, single in expected.items():
        _same(got[item], single)


@pytest.mark.parametrize("stop", [0, 1, 7, 20])
def test_an_interrupted_epoch_goes_on(tmp_path: Path, stop: int) -> None:
    write_requests(make_requests(60), tmp_path / "log.parquet", tokens=250)
    undisturbed, interrupted, resumed = (RequestDataset(tmp_path / "log.parquet", budget=100) for _ in range(3))
    first, second = list(undisturbed), list(undisturbed)
    assert [b.targets["item"].tolist() for b in first] != [b.targets["item"].tolist() for b in second]
    stream = iter(interrupted)
    for expected in first[:stop]:
        _same(next(stream), expected)
    resumed.load_state_dict(interrupted.state_dict())
    rest = list(resumed) + list(resumed)
    assert len(rest) == len(first) - stop + len(second)
    for actual, expected in zip(rest, first[stop:] + second, strict=True):
        _same(actual, expected)


def _peak_and_size(path: Path, row_groups: int) -> tuple[int, int]:
    """Bytes held at most while a file of equal row groups is streamed: Arrow's, numpy's, those of live batches."""
    group = make_requests(60, longest=500)
    write_requests((group for _ in range(row_groups)), path, tokens=group.N)
    with pq.ParquetFile(path) as file:
        assert file.num_row_groups == row_groups
    alive: weakref.WeakValueDictionary[int, RequestBatch] = weakref.WeakValueDictionary()
    pool, rows, held = pa.default_memory_pool(), 0, 0
    own = pa.proxy_memory_pool(pool)  # its peak begins at 0
    pa.set_memory_pool(own)
    tracemalloc.start()
    try:
        for number, batch in enumerate(RequestDataset(path, budget=group.N // 3)):
            alive[number] = batch
            rows += batch.N
            held = max(held, sum(each.nbytes() for each in alive.values()))
        assert rows == row_groups * group.N
        return held + own.max_memory() + tracemalloc.get_traced_memory()[1], path.stat().st_size
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(pool)


def test_memory_is_bounded_by_a_row_group(tmp_path: Path, threads: Callable[[int], None]) -> None:
    threads(1)  # ten times as quick on a busy machine
    short_peak, short_size = _peak_and_size(tmp_path / "short.parquet", 4)
    long_peak, long_size = _peak_and_size(tmp_path / "long.parquet", 32)
    assert long_size > 7 * short_size
    assert long_peak < 1.2 * short_peak
    assert long_peak < long_size / 3
