"""Readers beside a writer see whole histories of the user they asked for; storage is within its bounds."""

import threading
from collections import OrderedDict
from typing import Any

import pytest
import torch
from caches import poisoned, selected

from stca.serving import HistoryCache, MissingUsersError
from stca.serving.pool import History

TOGETHER, USERS = 5, 6


def test_readers_beside_a_writer() -> None:
    """Rows say whose they are and which; they come five at a time, in a pool that is too small for all users."""
    cache = poisoned(HistoryCache(1, 2, 256, page_rows=4))
    stop, wrong = threading.Event(), list[str]()
    seen = [0, 0]

    def read(which: int) -> None:
        generator = torch.Generator().manual_seed(which)
        while not stop.is_set():
            user = int(torch.randint(USERS, (1,), generator=generator))
            try:
                selection = cache.select([user, user])
            except MissingUsersError:
                continue
            with selection:
                rows = selection.encoded[0][selection.history_index]
                half = len(rows) // 2
                first = rows[0, 1] if half else 0
                expected = torch.stack([torch.full((half,), float(user)), first + torch.arange(half)], dim=1)
                if half % TOGETHER or not torch.equal(rows, torch.cat([expected, expected])):
                    wrong.append(f"user {user}: {rows.tolist()}")
                    return
            seen[which] += 1

    readers = [threading.Thread(target=read, args=(which,)) for which in range(2)]
    for reader in readers:
        reader.start()
    written = [0] * USERS
    generator = torch.Generator().manual_seed(9)
    step = 0
    while (step < 1000 or min(seen) < 200) and not wrong and step < 100_000:
        user, step = int(torch.randint(USERS, (1,), generator=generator)), step + 1
        if user not in cache:
            written[user] = 0
        numbers = written[user] + torch.arange(float(TOGETHER))
        written[user] += TOGETHER
        try:
            cache.append(user, [torch.stack([torch.full((TOGETHER,), float(user)), numbers], dim=1)])
        except MemoryError:  # readers hold what would be evicted
            written[user] -= TOGETHER
            continue
        if step % 7 == 0:
            cache.keep(user, TOGETHER * (step % 3))
        if step % 50 == 0:
            cache.evict([step // 50 % USERS])
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong, wrong
    assert min(seen) >= 200
    assert cache.statistics().evicted_users > 0


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16, torch.int8])
def test_storage(storage: torch.dtype) -> None:
    rows = torch.randn(40, 33) * torch.logspace(-2, 2, 40)[:, None]
    rows[7], rows[8, 5], rows[9, 2] = 0, torch.nan, torch.inf
    cache = HistoryCache(1, 33, 64, storage=storage, page_rows=16)
    cache.append("other", [torch.randn(3, 33)])
    cache.append("user", [rows])
    with cache.select(["user"], last=36) as selection:
        [found] = selected(selection)
        assert selection.history_offsets.tolist() == [0, 36]
    rows = rows[4:]
    whole = torch.isfinite(rows).all(dim=1)
    bound = rows.abs().amax(dim=1, keepdim=True) / 254 if storage == torch.int8 else rows.abs() * 2.0**-8 + 1e-7
    assert found.dtype == torch.float32
    assert ((found - rows).abs() <= bound * (1 + 1e-5))[whole].all()
    assert not torch.isfinite(found[~whole]).all(dim=1).any()
    assert (found[3] == 0).all()


def test_evicted_users_may_be_found_by_asking_the_cache() -> None:
    cache = HistoryCache(1, 1, 8, page_rows=1)
    for user in range(4):
        cache.append(user, [torch.zeros(1, 1)], [user])
    assert cache.evict(user for user in range(4) if (cache.last_time(user) or 0) < 2) == 2
    assert [user in cache for user in range(4)] == [False, False, True, True]


def test_who_finds_no_room_evicts_nobody() -> None:
    cache = HistoryCache(1, 1, 10, page_rows=1)
    for user in range(5):
        cache.append(user, [torch.zeros(1, 1)])
    with (
        cache.select([0, 1, 2, 3, 4]),
        pytest.raises(MemoryError, match="6 rows must find room in 6 pages of 1, got 5 of 10"),
    ):
        cache.append("new", [torch.zeros(6, 1)])
    assert cache.statistics().users == 5


def test_users_without_rows_and_readers_alone_take_bounded_memory() -> None:
    cache = HistoryCache(1, 1, 8, page_rows=1)
    for user in range(100):
        cache.append(user, [torch.zeros(0, 1)])
    assert cache.statistics().users == 8
    for _ in range(100):
        with cache.select([99]):
            pass
    assert len(cache._pool.pages._left) <= 1


def test_who_finds_room_looks_at_nobody_else() -> None:
    """An append costs the same among ten users and ten millions; where room is short, who was used last is not met."""

    class Watched(OrderedDict[int | str, History]):
        met = 0

        def items(self) -> Any:
            for each in super().items():
                self.met += 1
                yield each

    cache = HistoryCache(1, 1, 100, page_rows=1)
    for user in range(100):
        cache.append(user, [torch.zeros(0 if user == 99 else 1, 1)])
    cache._pool.users = users = Watched(cache._pool.users)
    cache.append(99, [torch.zeros(1, 1)])
    assert users.met <= 1
    with cache.select([0]):
        cache.append(99, [torch.zeros(2, 1)])
    assert users.met <= 5
    assert [user in cache for user in (0, 1, 2, 3, 99)] == [True, False, False, True, True]
