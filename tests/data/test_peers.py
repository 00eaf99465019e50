"""Files of stca.data in the libraries that others read Parquet and load data with; each test runs where one is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accuracy import assert_bitwise_equal
from batches import make_requests

from stca.data import RequestDataset, write_requests

pytestmark = pytest.mark.peers


def test_duckdb(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    batch = make_requests(50)
    write_requests(batch, tmp_path / "log.parquet", tokens=300)
    rows = duckdb.sql(f"select history_item, label_click, history_vector from '{tmp_path / 'log.parquet'}'").fetchall()
    assert [x for items, _, _ in rows for x in items] == batch.history["item"].tolist()
    assert [x for _, labels, _ in rows for x in labels] == batch.labels["click"].tolist()
    assert [list(x) for *_, vectors in rows for x in vectors] == batch.history["vector"].tolist()
    query = f"select count(*), sum(x) from (select unnest(target_item) x from '{tmp_path / 'log.parquet'}')"
    assert duckdb.sql(query).fetchall() == [(batch.T, int(batch.targets["item"].sum()))]


def test_polars(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    batch = make_requests(50)
    write_requests(batch, tmp_path / "log.parquet", tokens=300)
    frame = polars.scan_parquet(tmp_path / "log.parquet").collect()
    assert frame["history_item"].explode().drop_nulls().to_list() == batch.history["item"].tolist()
    assert frame["target_price"].explode().drop_nulls().to_list() == batch.targets["price"].tolist()
    vectors = [list(x) for row in frame["history_vector"].to_list() for x in row]
    assert vectors == batch.history["vector"].tolist()


def _loader(path: Path, rank: int, workers: int) -> Any:
    module = pytest.importorskip("torchdata.stateful_dataloader")
    dataset = RequestDataset(path, budget=100, rank=rank, world_size=2, seed=3)
    return module.StatefulDataLoader(dataset, batch_size=None, num_workers=workers)


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("stop", [1, 4, 9])
def test_torchdata_goes_on_in_the_midst_of_workers(tmp_path: Path, workers: int, stop: int) -> None:
    batch = make_requests(100)
    write_requests(batch, tmp_path / "log.parquet", tokens=150)
    seen = []
    for rank in range(2):
        undisturbed = list(_loader(tmp_path / "log.parquet", rank, workers))
        interrupted = _loader(tmp_path / "log.parquet", rank, workers)
        stream = iter(interrupted)
        done = [next(stream) for _ in range(stop)]
        state = interrupted.state_dict()  # by now the workers are ahead of it
        resumed = _loader(tmp_path / "log.parquet", rank, workers)
        resumed.load_state_dict(state)
        every = done + list(resumed)
        for actual, expected in zip(every, undisturbed, strict=True):
            assert_bitwise_equal(actual.tensors(), expected.tensors())
        seen += torch.cat([each.targets["item"] for each in every]).tolist()
    assert sorted(seen) == batch.targets["item"].tolist()
