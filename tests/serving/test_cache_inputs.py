"""What a HistoryCache is given and cannot take: it says so by its name, and is what it was."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stca.serving import HistoryCache
from stca.serving.rows import Rows


def _rows(count: int) -> list[Tensor]:
    return [torch.zeros(count, 4)] * 2


@pytest.fixture
def cache() -> HistoryCache:
    """Of four users who fill it."""
    full = HistoryCache(2, 4, 16, page_rows=4)
    for user in ("a", "b", 1, 2):
        full.append(user, _rows(4), [1, 2, 3, 4])
    return full


def _encode(history: Tensor) -> list[Tensor]:
    return [history, history]


_OTHERS = [np.zeros((16, 4)), torch.zeros(16, 4, device="meta"), torch.zeros(16, 4, dtype=torch.complex64)]
_OTHERS += [torch.zeros(16, 4, dtype=torch.float64), torch.zeros(16, 4).to_sparse(), torch.zeros(())]


@pytest.mark.parametrize("second", _OTHERS, ids=lambda rows: str(getattr(rows, "layout", "numpy")))
@pytest.mark.parametrize("first", [True, False])
def test_rows_of_another_kind_evict_nobody(cache: HistoryCache, second: Any, first: bool) -> None:
    before = cache.statistics()
    with pytest.raises((TypeError, ValueError), match=r"HistoryCache\.append: rows must be .*got"):
        cache.append("new", [second, torch.zeros(16, 4)] if first else [torch.zeros(16, 4), second])
    assert cache.statistics() == before


def test_a_failed_write_takes_no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = HistoryCache(2, 4, 16, page_rows=4)
    cache.append("a", _rows(2))
    before, put, calls = cache.statistics(), Rows.put, []

    def fails(self: Rows, slots: Tensor, parts: list[Tensor]) -> None:
        calls.append(slots)
        if len(calls) == 2:
            raise RuntimeError("no memory")
        put(self, slots, parts)

    monkeypatch.setattr(Rows, "put", fails)
    with pytest.raises(RuntimeError, match="no memory"):
        cache.append("a", _rows(6))
    assert cache.statistics() == before


_WRONG_USERS: list[Any] = [True, 1.0, None, ["x"], b"a", torch.tensor(1)]
_BY_USER: list[Callable[[HistoryCache, Any], object]] = [
    lambda cache, user: cache.append(user, _rows(1)),
    lambda cache, user: cache.extend_from(_encode, ["c", user], torch.zeros(2, 4), torch.tensor([0, 1, 2])),
    lambda cache, user: cache.select(["a", user]),
    lambda cache, user: cache.keep(user, 1),
    lambda cache, user: cache.evict(["a", "b", user]),
    lambda cache, user: cache.length(user),
    lambda cache, user: cache.last_time(user),
    lambda cache, user: user in cache,
]


@pytest.mark.parametrize("call", range(len(_BY_USER)))
@pytest.mark.parametrize("user", _WRONG_USERS, ids=repr)
def test_what_is_no_user_is_no_user_everywhere(cache: HistoryCache, call: int, user: Any) -> None:
    before = cache.statistics()
    with pytest.raises(TypeError, match="a user must be an int or a str, got " + type(user).__name__):
        _BY_USER[call](cache, user)
    assert cache.statistics() == before
    with pytest.raises(ValueError, match="a user must be an int of 64 bits, got one of 65"):
        _BY_USER[call](cache, 2**64)
    assert cache.statistics() == before


def test_numpy_s_integers_are_users(cache: HistoryCache) -> None:
    cache.append(np.uint64(2**64 - 1), _rows(1))  # type: ignore[arg-type]
    cache.append(np.int32(2), _rows(1), [5])  # type: ignore[arg-type]
    assert [cache.length(2), cache.length(2**64 - 1)] == [5, 1]
    assert cache.select(np.array([2, 2])).history_offsets.tolist() == [0, 5, 10]  # type: ignore[arg-type]


def test_a_text_is_not_several_users(cache: HistoryCache) -> None:
    for call in (
        lambda: cache.select("ab"),
        lambda: cache.evict("ab"),
        lambda: cache.extend_from(_encode, "ab", torch.zeros(2, 4), torch.tensor([0, 1, 2])),
    ):
        with pytest.raises(TypeError, match="users must be several, got the text 'ab'"):
            call()
    assert cache.length("a") == 4


_NUMBERS: dict[str, Callable[[HistoryCache, Any], object]] = {
    "times": lambda cache, value: cache.append("a", _rows(1), [value]),
    "offsets": lambda cache, value: cache.extend_from(_encode, [], torch.zeros(1, 4), [value]),  # type: ignore[arg-type]
    "until": lambda cache, value: cache.select(["a"], until=value),
    "last": lambda cache, value: cache.select(["a"], last=value),
    "last ": lambda cache, value: cache.keep("a", value),
    "before": lambda cache, value: cache.evict(before=value),
    "free_rows": lambda cache, value: cache.evict(free_rows=value),
    "capacity_rows": lambda _, value: HistoryCache(1, 1, value),
}


@pytest.mark.parametrize("name", _NUMBERS)
@pytest.mark.parametrize(
    "value",
    [
        *(2**63, np.uint64(2**64 - 1), 2**64, -(2**63) - 1, 1.5, float("nan"), float("inf"), True, "1"),
        *(torch.tensor(1.0, requires_grad=True), torch.tensor(1, dtype=torch.bfloat16)),
    ],
    ids=repr,
)
def test_numbers_are_whole_and_of_64_bits(cache: HistoryCache, name: str, value: Any) -> None:
    before = cache.statistics()
    with pytest.raises(ValueError, match=rf"HistoryCache.*: {name.strip()} must be "):
        _NUMBERS[name](cache, value)
    assert cache.statistics() == before


@pytest.mark.parametrize("name", ["last ", "before", "free_rows", "capacity_rows"])
def test_one_number_is_one_number(cache: HistoryCache, name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{name.strip()} must be one whole number, got [2] of them")):
        _NUMBERS[name](cache, [1, 2])
    assert cache.length("a") == 4


def test_offsets_may_be_a_list(cache: HistoryCache) -> None:
    cache.extend_from(_encode, ["a", "b"], torch.zeros(3, 4), [0, 1, 3], [5, 6, 7])  # type: ignore[arg-type]
    assert [cache.length("a"), cache.length("b")] == [5, 6]


def test_a_selection_that_fails_holds_nothing(cache: HistoryCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Tensor:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "from_numpy", fails)
        with pytest.raises(MemoryError, match="no room"):
            cache.select(["a", "b"])
    assert cache.evict(["a", "b"]) == 2
    assert cache.statistics().free_rows == 8


def test_the_default_device_does_not_matter(cache: HistoryCache, tmp_path: Path) -> None:
    with torch.device("meta"):
        cache.snapshot(tmp_path / "users")
        with cache.select(["a"]) as selection:
            assert selection.history_offsets.tolist() == [0, 4]
    HistoryCache(2, 4, 16, page_rows=4).load(tmp_path / "users")


def test_a_cache_made_in_inference_mode_works_outside() -> None:
    with torch.inference_mode():
        cache = HistoryCache(2, 4, 16, storage=torch.int8)
        rows = _rows(1)
    cache.append("a", rows)
    with torch.inference_mode():
        cache.append("a", _rows(1))
    assert cache.length("a") == 2


def test_load_evicts_nobody(cache: HistoryCache, tmp_path: Path) -> None:
    other = HistoryCache(2, 4, 16, page_rows=4)
    for user, count in (("w", 4), ("x", 1), ("y", 0), ("z", 8)):
        other.append(user, _rows(count))
    other.snapshot(tmp_path / "users")
    cache.evict(["b"])
    cache.load(tmp_path / "users")
    assert [user in cache for user in ("a", 1, 2, "x", "y")] == [True] * 5
    assert [user in cache for user in ("b", "w", "z")] == [False] * 3
    assert cache.statistics().evicted_users == 1
    cache.append("new", _rows(4))  # who was used longest ago, of those with rows, goes first: who came by the file
    assert [user in cache for user in ("a", 1, 2, "x")] == [True, True, True, False]


def test_sizes_of_numpy_are_the_same_cache(tmp_path: Path) -> None:
    sizes = map(np.int64, (2, 4, 16))
    HistoryCache(*sizes, page_rows=np.int64(4)).snapshot(tmp_path / "users")  # type: ignore[arg-type]
    HistoryCache(2, 4, 16).load(tmp_path / "users")
