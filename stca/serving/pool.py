"""Users' rows in pages of a pool: who has which, how they come, and how they go."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from stca.serving.pages import Integers, Pages, integers
from stca.serving.rows import Rows

User = int | str
NO_TIME = int(np.iinfo(np.int64).min)


class MissingUsersError(LookupError):
    """Users that a cache does not hold, in `users`."""

    def __init__(self, owner: str, users: list[User], asked: int) -> None:
        some = ", ".join(repr(user) for user in users[:5])
        super().__init__(f"{owner}: users must be in the cache, missing {len(users)} of {asked}: {some}")
        self.users = users


def check_users(owner: str, users: Iterable[User]) -> list[User]:
    """The users, before any of them is looked for: True and 1.0 would find user 1."""
    if isinstance(users, str):
        raise TypeError(f"{owner}: users must be several, got the text {users!r}")
    # At once, since what makes them may ask the cache.
    users = [int(user) if isinstance(user, np.integer) else user for user in users]
    for user in users:
        if type(user) not in (int, str):
            raise TypeError(f"{owner}: a user must be an int or a str, got {type(user).__name__} {user!r}")
        if isinstance(user, int) and not -(2**63) <= user < 2**64:
            raise ValueError(f"{owner}: a user must be an int of 64 bits, got one of {user.bit_length()}")
    return users


@dataclass(frozen=True)
class History:
    """Rows of one user: `length` of them from place `head` of the first page on. Replaced, never changed."""

    pages: Integers = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    head: int = 0
    length: int = 0
    last_time: int = NO_TIME


class Pool:
    """What the methods of `HistoryCache` work on.

    `lock` is held for moments, by all; `writer` as long as rows are being written, by those who write.
    """

    def __init__(
        self,
        layers: int,
        shape: tuple[int, ...],
        capacity_rows: int,
        dtype: torch.dtype,
        storage: torch.dtype,
        page_rows: int,
        device: torch.device,
    ) -> None:
        self.shape, self.page_rows = shape, page_rows
        self.pages = Pages(-(-capacity_rows // page_rows))
        slots = self.pages.count * page_rows
        self.rows = [Rows(slots, shape, dtype, storage, device) for _ in range(layers)]
        self.device = self.rows[0].pool.device  # "cuda" means another GPU in another thread
        self.times = np.zeros(slots, dtype=np.int64)
        self.users: OrderedDict[User, History] = OrderedDict()  # those used last at the end
        self.lock, self.writer = threading.Lock(), threading.RLock()
        self.hits = self.misses = self.appended = self.evicted = 0

    def look_up(self, owner: str, users: Sequence[User], counts: bool = False) -> list[History]:
        """Histories of users, who are now those used last; `counts`: as hits and misses."""
        missing = [user for user in dict.fromkeys(users) if user not in self.users]
        self.misses += len(missing) if counts else 0
        if missing:
            raise MissingUsersError(owner, missing, len(users))
        self.hits += len(users) if counts else 0
        for user in users:
            self.users.move_to_end(user)
        return [self.users[user] for user in users]

    def slots_of(self, history: History, begin: int = 0, end: int | None = None) -> Integers:
        """Places in the pool of a history's rows [begin, end)."""
        begin, end = history.head + begin, history.head + (history.length if end is None else end)
        first = begin // self.page_rows
        pages = history.pages[first : -(-end // self.page_rows), None] * self.page_rows
        slots: Integers = (pages + np.arange(self.page_rows)).ravel()
        return slots[begin - first * self.page_rows : end - first * self.page_rows]

    def append(
        self,
        owner: str,
        users: Sequence[User],
        rows: Sequence[Tensor],
        offsets: Integers,
        times: Sequence[int] | Tensor | None,
    ) -> None:
        """Appends rows offsets[u]:offsets[u+1], [n, *shape] of every layer, to user u. All, or nothing."""
        shape, like = (int(offsets[-1]), *self.shape), self.rows[0]
        form = "[n, D]" if len(shape) == 2 else "[n, 2, H, D / H]"
        for own in rows:
            if not isinstance(own, Tensor):
                raise TypeError(f"{owner}: rows must be tensors, got {type(own).__name__}")
            got, must = (own.layout, own.dtype, own.device), (torch.strided, like.dtype, like.pool.device)
            if got != must:
                raise ValueError("{}: rows must be {} {} on {}, got {} {} on {}".format(owner, *must, *got))
        if len(rows) != len(self.rows) or any(own.shape != shape for own in rows):
            raise ValueError(
                f"{owner}: rows must be {form} = {list(shape)} of {len(self.rows)} layers, got "
                f"{[list(own.shape) for own in rows]}"
            )
        when = np.full(shape[0], NO_TIME) if times is None else integers(owner, "times", times)
        if when.shape != shape[:1]:
            raise ValueError(f"{owner}: times must be [n] = [{shape[0]}], got {list(when.shape)}")
        stored = [pool.stored(own) for pool, own in zip(self.rows, rows, strict=True)]  # may fail: nobody is gone yet

        def write(slots: Tensor) -> None:
            for pool, parts in zip(self.rows, stored, strict=True):
                pool.put(slots, parts)

        self.add(owner, users, offsets, when, write)

    def add(
        self,
        owner: str,
        users: Sequence[User],
        offsets: Integers,
        times: Integers,
        write: Callable[[Tensor], None],
    ) -> None:
        """`append`, of rows that `write` puts into slots."""
        users = check_users(owner, users)
        if len(set(users)) < len(users):
            raise ValueError(f"{owner}: users must differ, got {len(users)} users of whom {len(set(users))} differ")
        with self.writer:
            grown = self._grown(owner, users, offsets, times)
            try:
                slots = [
                    self.slots_of(history, history.length - (end - begin))
                    for history, begin, end in zip(grown, offsets[:-1], offsets[1:], strict=True)
                ]
                places = np.concatenate([*slots, np.empty(0, dtype=np.int64)])
                write(torch.from_numpy(places).to(self.device))
                self.times[places] = times
            except BaseException:
                with self.lock:
                    for user, history in zip(users, grown, strict=True):
                        self.pages.give_back(history.pages[len(self.users.get(user, History()).pages) :])
                raise
            with self.lock:
                for user, history in zip(users, grown, strict=True):
                    self.users[user] = history
                    self.users.move_to_end(user)
                self.appended += len(places)
                while len(self.users) > self.pages.count * self.page_rows:  # users without rows take memory too
                    self.forget([next(iter(self.users))])

    def keep(self, user: User, history: History, last: int) -> None:
        """Leaves the most recent rows of a history."""
        length = min(history.length, last)
        begin = history.head + history.length - length
        first = begin // self.page_rows if length else len(history.pages)
        self.pages.give_back(history.pages[:first])
        head = begin % self.page_rows if length else 0
        self.users[user] = replace(history, pages=history.pages[first:], head=head, length=length)

    def forget(self, users: Iterable[User]) -> int:
        """Evicts users, those who are there, and says how many they were."""
        gone = 0
        for user in users:
            if (history := self.users.pop(user, None)) is not None:
                self.pages.give_back(history.pages)
                gone += 1
        self.evicted += gone
        return gone

    def make_room(self, pages: int) -> int:
        """Evicts those who have been unused for longest until so many pages are free, or nobody is left."""
        gone = 0
        while self.users and self.pages.free_count < pages:
            gone += self.forget([next(iter(self.users))])
        return gone

    def room_without(self, pages: int, spared: Iterable[User]) -> tuple[int, list[User]]:
        """Who would go for so many pages, of those unused for longest, and the pages that are free then.

        Neither `spared` nor who is being read may go. It looks no further than it must: users may be very many.
        """
        room, stay, gone = self.pages.free_count, set(spared), list[User]()
        for user, history in self.users.items():
            if room >= pages:
                break
            if user not in stay and not self.pages.held(history.pages):
                gone.append(user)
                room += len(history.pages)
        return room, gone

    def _grown(self, owner: str, users: Sequence[User], offsets: Integers, times: Integers) -> list[History]:
        """The users' histories as they will be, with pages for the new rows."""
        with self.lock:
            before = [self.users.get(user, History()) for user in users]
            for user, history, begin, end in zip(users, before, offsets[:-1], offsets[1:], strict=True):
                own = np.concatenate([[history.last_time], times[begin:end]])
                if (own[1:] < own[:-1]).any():
                    at = int((own[1:] < own[:-1]).argmax())
                    raise ValueError(
                        f"{owner}: times must never fall, got {own[at + 1]} of user {user!r} after {own[at]}"
                    )
            lengths = [history.length + int(n) for history, n in zip(before, np.diff(offsets), strict=True)]
            pages = [
                -(-(history.head + n) // self.page_rows) - len(history.pages)
                for history, n in zip(before, lengths, strict=True)
            ]
            room, gone = self.room_without(sum(pages), users)
            if room < sum(pages):
                raise MemoryError(
                    f"{owner}: {int(offsets[-1])} rows must find room in {sum(pages)} pages of {self.page_rows}, got "
                    f"{room} of {self.pages.count} that are free, or of other users whom nobody reads"
                )
            self.forget(gone)
            return [
                History(
                    np.concatenate([history.pages, self.pages.take(more)]),
                    history.head,
                    length,
                    max([history.last_time, *times[end - 1 : end].tolist()] if end > begin else [history.last_time]),
                )
                for history, more, length, begin, end in zip(
                    before, pages, lengths, offsets[:-1], offsets[1:], strict=True
                )
            ]
