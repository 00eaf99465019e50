"""HistoryCache against a dictionary of lists, and STCA on its rows against STCA on the whole history."""

import math
from functools import partial
from itertools import pairwise
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from caches import poisoned
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

import stca
from stca.nn import Keep
from stca.serving import HistoryCache, MissingUsersError

DIM, HEADS, LAYERS = 4, 2, 2
SHAPES: dict[Keep, tuple[int, ...]] = {"rows": (DIM,), "keys_values": (2, HEADS, DIM // HEADS)}
USERS = st.sampled_from([0, 1, "1", "ann", ""])


def _encoded(numbers: Tensor, keep: Keep = "rows") -> list[Tensor]:
    """Rows of numbers [n], whose elements differ from all others, in both layers."""
    shape = SHAPES[keep]
    within = torch.arange(math.prod(shape)).view(shape) / 64
    return [numbers.float().view(-1, *(1 for _ in shape)) + layer / 4 + within for layer in range(LAYERS)]


def _rows(begin: int, end: int, keep: Keep = "rows") -> list[Tensor]:
    return _encoded(torch.arange(begin, end), keep)


def _found(cache: HistoryCache, **how: Any) -> list[list[float]]:
    """First elements of what is selected, by user, each of which says what the rest of its row is in both layers."""
    with cache.select(**how) as selection:
        assert selection.history_index is not None
        first, second = (pool[selection.history_index] for pool in selection.encoded)
        numbers = first.flatten(1)[:, 0]
        expected = _encoded(numbers, "rows" if first.dim() == 2 else "keys_values")
        assert torch.equal(first, expected[0])
        assert torch.equal(second, expected[1])
        ends = selection.history_offsets.tolist()
    return [numbers[a:b].tolist() for a, b in pairwise(ends)]


class Histories(RuleBasedStateMachine):
    """Rows are numbered as they come, and a row's time is half its number."""

    @initialize(page_rows=st.integers(1, 5), pages=st.integers(1, 8), keep=st.sampled_from(list(SHAPES)))
    def start(self, page_rows: int, pages: int, keep: Keep) -> None:
        self.page_rows, self.pages, self.keeps = page_rows, pages, keep
        self.cache = self._new_cache()
        self.expected: dict[int | str, list[int]] = {}
        self.next, self.held = 0, []  # type: ignore[var-annotated]

    def _new_cache(self) -> HistoryCache:
        rows, page_rows = self.page_rows * self.pages, self.page_rows
        return poisoned(HistoryCache(LAYERS, DIM, rows, keep=self.keeps, num_heads=HEADS, page_rows=page_rows))

    def _drop_evicted(self) -> None:
        self.expected = {user: rows for user, rows in self.expected.items() if user in self.cache}

    @rule(user=USERS, count=st.integers(0, 9))
    def append(self, user: int | str, count: int) -> None:
        new = range(self.next, self.next + count)
        self.next += count
        before = self.cache.statistics().evicted_users
        try:
            self.cache.append(user, _rows(new.start, new.stop, self.keeps), [n // 2 for n in new])
        except MemoryError:
            own = len(self.expected.get(user, [])) + count
            assert self.held or own > self.page_rows * (self.pages - 1)
            assert self.cache.statistics().evicted_users == before or self.held
        else:
            self.expected.setdefault(user, []).extend(new)
        self._drop_evicted()

    @rule(users=st.lists(USERS, unique=True), counts=st.lists(st.integers(0, 4), min_size=5, max_size=5))
    def extend(self, users: list[int | str], counts: list[int]) -> None:
        ends = np.cumsum([0, *counts[: len(users)]])
        history = torch.arange(self.next, self.next + int(ends[-1]), dtype=torch.float32)[:, None]
        first, self.next = self.next, self.next + int(ends[-1])
        times = [(first + n) // 2 for n in range(int(ends[-1]))]

        try:
            self.cache.extend_from(partial(_encoded, keep=self.keeps), users, history, torch.from_numpy(ends), times)
        except MemoryError:
            pass
        else:
            for user, a, b in zip(users, ends[:-1], ends[1:], strict=True):
                self.expected.setdefault(user, []).extend(range(first + int(a), first + int(b)))
        self._drop_evicted()

    @precondition(lambda self: not self.held)
    @rule()
    def snapshot_and_load(self) -> None:
        with TemporaryDirectory() as folder:
            self.cache.snapshot(f"{folder}/cache")
            self.cache = self._new_cache()
            self.cache.load(f"{folder}/cache")
        assert set(self.expected) == {user for user in self.expected if user in self.cache}

    @rule(user=USERS, last=st.integers(0, 6))
    def keep(self, user: int | str, last: int) -> None:
        if user in self.expected:
            self.cache.keep(user, last)
            rows = self.expected[user]
            self.expected[user] = rows[max(0, len(rows) - last) :]
        else:
            with pytest.raises(MissingUsersError):
                self.cache.keep(user, last)

    @rule(users=st.lists(USERS, max_size=2), free=st.integers(0, 12))
    def evict(self, users: list[int | str], free: int) -> None:
        count = self.cache.evict(users, free_rows=free)
        left = {user for user in self.expected if user in self.cache}
        assert count == len(self.expected) - len(left)
        assert not left & set(users)
        statistics = self.cache.statistics()
        assert statistics.free_rows >= min(free, self.page_rows * self.pages) or self.held or not left
        self._drop_evicted()

    @rule(time=st.integers(0, 60))
    def evict_by_time(self, time: int) -> None:
        self.cache.evict(before=time)
        for user, rows in self.expected.items():
            if rows:
                assert (user in self.cache) == (rows[-1] // 2 >= time)
        self._drop_evicted()

    @rule(users=st.lists(USERS, max_size=4), last=st.none() | st.integers(0, 8), until=st.none() | st.integers(0, 60))
    def select(self, users: list[int | str], last: int | None, until: int | None) -> None:
        missing = {user for user in users if user not in self.expected}
        if missing:
            with pytest.raises(MissingUsersError, match="users must be in the cache, missing") as error:
                self.cache.select(users, last, until)
            assert set(error.value.users) == missing
            return
        expected = [[n for n in self.expected[user] if until is None or n // 2 < until] for user in users]
        if last is not None:
            expected = [rows[max(0, len(rows) - last) :] for rows in expected]
        assert _found(self.cache, users=users, last=last, until=until) == expected

    @precondition(lambda self: len(self.held) < 2)
    @rule(user=USERS)
    def hold(self, user: int | str) -> None:
        if user in self.expected:
            self.held.append((self.cache.select([user]), list(self.expected[user])))

    @precondition(lambda self: self.held)
    @rule()
    def let_go(self) -> None:
        self.held.pop(0)[0].release()

    @invariant()
    def what_is_held_stays(self) -> None:
        for selection, rows in getattr(self, "held", []):
            assert selection.encoded[0][selection.history_index].flatten(1)[:, 0].tolist() == rows

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "cache"):
            statistics = self.cache.statistics()
            assert statistics.users == len(self.expected)
            assert statistics.rows == sum(map(len, self.expected.values()))
            assert [self.cache.length(user) for user in self.expected] == [*map(len, self.expected.values())]


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize(("m", "page_rows"), [(1, 64), (5, 64), (40, 16), (5, 7)])
@pytest.mark.parametrize("order", ["auto", "reordered", "projected"])
def test_the_bits_of_the_whole_history(m: int, page_rows: int, order: Any) -> None:
    model = stca.nn.STCA(24, 3, 4, use_lse=True, order=order).requires_grad_(False)
    lengths = {"a": 700, "b": 0, "c": 333}
    histories = {user: torch.randn(n, 24) for user, n in lengths.items()}
    cache = poisoned(HistoryCache(3, 24, 4096, page_rows=page_rows))
    for part in range(4):  # users grow by turns, so that their pages lie apart
        new = [histories[user].tensor_split(4)[part] for user in histories]
        offsets = torch.tensor([0, *map(len, new)]).cumsum(0)
        cache.extend_from(model.encode_history, list(histories), torch.cat(new), offsets)
    cache.keep("c", 300)
    targets = torch.randn(3 * m, 24)
    target_offsets = torch.arange(4) * m
    with cache.select(["c", "a", "b"]) as chosen:
        index, offsets = chosen.history_index, chosen.history_offsets
        z = model.attend(targets, chosen.encoded, target_offsets, offsets, history_index=index)
    whole = torch.cat([histories["c"][33:], histories["a"], histories["b"]])
    assert torch.equal(z, model(targets, whole, target_offsets, offsets))


def test_wrong_arguments() -> None:
    cache = HistoryCache(LAYERS, DIM, 20, page_rows=4)
    cache.append("ann", _rows(0, 3), [1, 2, 2])
    wrong: list[tuple[type[Exception], str, Any]] = [
        (ValueError, "capacity_rows must be at least 1, got 0", lambda: HistoryCache(1, 1, 0)),
        (ValueError, "dtype and storage must be of .*int64", lambda: HistoryCache(1, 1, 1, storage=torch.int64)),
        (TypeError, "append: a user must be an int or a str, got bool True", lambda: cache.append(True, _rows(0, 1))),
        (ValueError, r"append: rows must be \[n, D\] = \[2, 4\] of 2 layers", lambda: cache.append(1, _rows(0, 2)[:1])),
        (
            ValueError,
            "append: times must never fall, got 1 .*'ann' after 2",
            lambda: cache.append("ann", _rows(0, 1), [1]),
        ),
        (ValueError, r"append: times must be \[n\] = \[1\]", lambda: cache.append("ann", _rows(0, 1), [1, 2])),
        (
            ValueError,
            "append: times must be whole numbers, got float",
            lambda: cache.append("ann", _rows(0, 1), torch.tensor([2.5])),
        ),
        (ValueError, "select: until must be whole numbers, got float", lambda: cache.select(["ann"], until=[1.9])),  # type: ignore[list-item]
        (TypeError, "evict: users must be several, got the text 'ann'", lambda: cache.evict("ann")),
        (MemoryError, "append: 21 rows must find room in 6 pages of 4", lambda: cache.append(2, _rows(0, 21))),
        (ValueError, "last must be at least 0", lambda: cache.select(["ann"], last=-1)),
        (ValueError, "until must be one of 1 users", lambda: cache.select(["ann"], until=[1, 2])),
        (MissingUsersError, "missing 2 of 3: 'bob', 5", lambda: cache.select(["bob", "ann", 5])),
        (
            ValueError,
            r"offsets must be \[U \+ 1\] for 1 users, from 0 to N = 2",
            lambda: cache.extend_from(lambda x: [x, x], ["x"], torch.zeros(2, DIM), torch.tensor([0, 1])),
        ),
        (
            ValueError,
            "users must differ, got 2 users of whom 1 differ",
            lambda: cache.extend_from(lambda x: [x, x], [1, 1], torch.zeros(2, DIM), torch.tensor([0, 1, 2])),
        ),
    ]
    before = cache.statistics()
    for kind, message, call in wrong:
        with pytest.raises(kind, match=message):
            call()
    assert cache.statistics().rows == before.rows == 3
    assert _found(cache, users=["ann"]) == [[0, 1, 2]]
