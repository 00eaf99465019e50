"""States, iterators and row groups: no row is lost or seen twice, or the error tells what differs."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from batches import make_requests
from cases import offsets

from stca.batch import RequestBatch
from stca.data import RequestDataset, write_requests


def _requests(users: int, events: int, targets: int = 0) -> RequestBatch:
    """Users of as many events, each event a target, or of as many targets as given."""
    targets = targets or events
    items, numbers = torch.arange(users * events), torch.arange(users * targets)
    return RequestBatch(
        {"item": items}, offsets([events] * users), {"number": numbers}, offsets([targets] * users)
    ).validate()


def _numbers(batches: Any) -> list[int]:
    """The targets of batches, each by its number."""
    return [number for batch in batches for number in batch.targets["number"].tolist()]


@pytest.fixture
def sixty(tmp_path: Path) -> Path:
    """60 users of 6 events."""
    write_requests(_requests(60, 6), tmp_path / "log.parquet", tokens=30)
    return tmp_path / "log.parquet"


def _after(dataset: RequestDataset, batches: int) -> tuple[list[int], dict[str, Any]]:
    stream = iter(dataset)
    return _numbers(next(stream) for _ in range(batches)), dataset.state_dict()


def test_a_state_of_others_is_refused(sixty: Path) -> None:
    done, state = _after(RequestDataset(sixty, budget=12, seed=1), 9)
    same = RequestDataset(sixty, budget=12, seed=1)
    same.load_state_dict(state)
    assert sorted(done + _numbers(same)) == list(range(360))
    for options, message in (
        ({"world_size": 2}, "world_size = 2, got one of world_size = 1"),
        ({"world_size": 2, "rank": 1}, "world_size = 2, got one of world_size = 1"),
        ({"seed": 2}, "seed = 2, got one of seed = 1"),
        ({"budget": 13}, "budget = 13, got one of budget = 12"),
        ({"target_budget": 6}, "target_budget = 6, got one of target_budget = 12"),
        ({"shuffle": False}, "shuffle = False, got one of shuffle = True"),
    ):
        other = RequestDataset(sixty, **{"budget": 12, "seed": 1, **options})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"RequestDataset: the state must be of {message}"):
            other.load_state_dict(state)
        assert len(_numbers(other)) in (180, 360)  # it stands at its start, as before
    _, of_rank_1 = _after(RequestDataset(sixty, budget=12, rank=1, world_size=2), 3)
    with pytest.raises(ValueError, match="the state must be of rank = 0, got one of rank = 1"):
        RequestDataset(sixty, budget=12, rank=0, world_size=2).load_state_dict(of_rank_1)
    with pytest.raises(ValueError, match="the state must tell its files, got"):
        same.load_state_dict({"epoch": 0, "row_groups": 3, "batches": 1})
    del state["batches"]
    with pytest.raises(ValueError, match="the state must tell its batches, got"):
        same.load_state_dict(state)


def test_a_state_of_other_files_is_refused(sixty: Path, tmp_path: Path) -> None:
    _, state = _after(RequestDataset(sixty, budget=12), 9)
    again, moved = tmp_path / "more" / "log.parquet", tmp_path / "moved" / "log.parquet"
    for path in (again, moved):
        path.parent.mkdir()
    other = _requests(60, 6)
    other.history["item"][100] += 1
    write_requests(other, again, tokens=30)
    moved.write_bytes(sixty.read_bytes())
    RequestDataset(moved, budget=12).load_state_dict(state)
    for paths in (again, [sixty, again]):
        with pytest.raises(ValueError, match=r"must be of files = \[\['log.parquet', \d+, .*, got one of files = \[\["):
            RequestDataset(paths, budget=12).load_state_dict(state)


def test_ranks_may_change_between_epochs(sixty: Path) -> None:
    before = RequestDataset(sixty, budget=12, seed=1)
    first = _numbers(before)
    ranks = [RequestDataset(sixty, budget=12, seed=1, rank=rank, world_size=3) for rank in range(3)]
    for dataset in ranks:
        dataset.load_state_dict(before.state_dict())
        assert dataset.epoch == 1
    second = [number for dataset in ranks for number in _numbers(dataset)]
    assert sorted(first) == sorted(second) == list(range(360))


def test_other_workers_are_refused(sixty: Path) -> None:
    done, state = _after(RequestDataset(sixty, budget=12), 9)
    resumed = RequestDataset(sixty, budget=12)
    resumed.load_state_dict(state)
    with pytest.raises(ValueError, match="the state must be of workers = 2, got one of workers = 1"):
        list(torch.utils.data.DataLoader(resumed, batch_size=None, num_workers=2))
    loaded = torch.utils.data.DataLoader(resumed, batch_size=None)
    assert sorted(done + _numbers(loaded)) == list(range(360))


def test_an_iterator_takes_nothing_from_the_next(sixty: Path) -> None:
    dataset = RequestDataset(sixty, budget=12)
    peeked = _numbers([next(iter(dataset))])
    first = _numbers(dataset)
    assert sorted(first) == list(range(360))
    assert first[: len(peeked)] == peeked
    second = _numbers(dataset)
    assert sorted(second) == list(range(360))
    assert second != first
    validation = [_numbers(batch for _, batch in zip(range(5), dataset, strict=False)) for _ in range(3)]
    assert validation[0] == validation[1] == validation[2]
    one, two = iter(dataset), iter(dataset)
    pairs = [(_numbers([a]), _numbers([b])) for a, b in zip(one, two, strict=True)]
    assert all(a == b for a, b in pairs)
    assert sorted(number for a, _ in pairs for number in a) == list(range(360))


def test_the_state_is_that_of_the_iterator_made_last(sixty: Path) -> None:
    dataset, resumed = RequestDataset(sixty, budget=12), RequestDataset(sixty, budget=12)
    start = dataset.state_dict()
    done, state = _after(dataset, 7)
    stream = iter(dataset)
    assert dataset.state_dict() == start
    assert _numbers(next(stream) for _ in range(7)) == done
    assert dataset.state_dict() == state
    resumed.load_state_dict(pickle.loads(pickle.dumps(state)))
    assert resumed.state_dict() == state
    for _ in range(2):  # a look at the first batch, then all of them
        next(iter(resumed))
        assert sorted(done + _numbers(resumed)) == list(range(360))
        resumed.load_state_dict(state)


def test_many_candidates_and_users_of_one_event(tmp_path: Path) -> None:
    candidates, single = tmp_path / "candidates.parquet", tmp_path / "single.parquet"
    write_requests(_requests(60, 1, targets=500), candidates)
    for options, most in (({}, 6000), ({"target_budget": 1000}, 1000)):
        batches = list(RequestDataset(candidates, budget=6000, **options))  # type: ignore[arg-type]
        assert max(batch.T for batch in batches) <= most
        assert sorted(_numbers(batches)) == list(range(30_000))
    write_requests(_requests(6000, 1), single, tokens=2000)
    assert pq.read_metadata(single).num_row_groups == 3
    assert max(batch.T for batch in RequestDataset(single, budget=900)) <= 900


@pytest.mark.parametrize(("tokens", "nbytes"), [(10**9, 4000), (10**9, 1), (50, 10**9), (1, 1)])
def test_row_groups_are_bounded_and_whole(tmp_path: Path, tokens: int, nbytes: int) -> None:
    batch = make_requests(60)
    parts = [batch.select(torch.arange(begin, min(begin + 7, 60))) for begin in range(0, 60, 7)]
    for name, batches in (("whole", [batch]), ("parts", parts)):
        assert write_requests(batches, tmp_path / name, tokens=tokens, nbytes=nbytes) == 60
    whole, one_by_one = (pq.ParquetFile(tmp_path / name) for name in ("whole", "parts"))
    assert whole.read().equals(one_by_one.read())
    assert whole.num_row_groups == one_by_one.num_row_groups > 10
    for number in range(whole.num_row_groups):
        table = whole.read_row_group(number)
        for name in ("history_item", "target_item"):
            assert len(table) == 1 or sum(map(len, table[name].to_pylist())) <= tokens
        assert len(table) == 1 or table.nbytes <= nbytes


def test_fewer_row_groups_than_readers(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    write_requests(_requests(60, 6), path)
    for rank in range(4):
        with pytest.warns(UserWarning, match=r"RequestDataset: 1 row groups for 4 readers \(4 ranks of 1 workers\)"):
            RequestDataset(path, budget=12, rank=rank, world_size=4)
    write_requests(_requests(60, 6), path, nbytes=2000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ranks = [_numbers(RequestDataset(path, budget=12, rank=rank, world_size=4)) for rank in range(4)]
    assert all(ranks)
    with pytest.raises(ValueError, match="RequestDataset: paths must hold at least one file, got none"):
        RequestDataset([], budget=12)


def test_a_footer_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_requests(_requests(100, 1), tmp_path / "log.parquet", tokens=1)
    parsed: list[Path] = []

    def read_metadata(path: Path) -> Any:
        parsed.append(path)
        return pq.ParquetFile(path).metadata

    monkeypatch.setattr(pq, "read_metadata", read_metadata)
    assert sorted(_numbers(RequestDataset(tmp_path / "log.parquet", budget=10))) == list(range(100))
    assert len(parsed) == 1


def test_a_file_that_changes_while_it_is_read(sixty: Path) -> None:
    dataset = RequestDataset(sixty, budget=12)
    stream = iter(dataset)
    next(stream)
    sixty.touch()
    next(stream)
    other = _requests(60, 6)
    other.history["item"][100] += 1
    write_requests(other, sixty, tokens=30)
    with pytest.raises(ValueError, match=r"log.parquet: must stay as it is while it is read, got one that has changed"):
        list(stream)
