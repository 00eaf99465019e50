"""Where events lie: in SQLite's write-ahead log beside the service, or in Redis where several servers share users.

A store is a log for each user. An event is in it once, by the id that its client gave it, and has a place: events read
later lie behind those read before.
"""

import sqlite3
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


class Event(NamedTuple):
    """One event of a user."""

    user: int
    event_id: str
    item: int
    label: int
    time: int


class Store(Protocol):
    """What the service asks of a store."""

    def append(self, events: Sequence[Event]) -> int:
        """Stores events, and says how many were new. They stay, whatever happens to this process afterwards."""

    def read(self, users: Sequence[tuple[int, int]], last: int) -> list[Integers]:
        """Of each (user, place): the `last` events behind that place, [n, 4] of place, item, label and time.

        A log that ends before the place has lost its events and begun again: it is read from its beginning.
        """

    def claim(self, label: str) -> str:
        """Says what its users and items are numbers of, the first time; and gives what was said then."""

    def close(self) -> None:
        """Closes it."""


class SQLiteStore:
    """One file; processes on one machine may share it."""

    def __init__(self, path: Path | str) -> None:
        if str(path) in ("", ":memory:"):  # what the one writes there the other could not read
            raise ValueError(f"must be a file, got {str(path)!r}")
        self._writer, self._reader = (sqlite3.connect(path, check_same_thread=False, timeout=10) for _ in range(2))
        self._writer.execute("PRAGMA journal_mode = WAL")
        self._writer.execute("PRAGMA synchronous = FULL")  # a commit is on the disk when it returns
        with self._writer:
            self._writer.execute(
                "CREATE TABLE IF NOT EXISTS events (place INTEGER PRIMARY KEY AUTOINCREMENT, user INTEGER NOT NULL, "
                "event_id TEXT NOT NULL, item INTEGER NOT NULL, label INTEGER NOT NULL, time INTEGER NOT NULL, "
                "UNIQUE (user, event_id))"
            )
            self._writer.execute("CREATE TABLE IF NOT EXISTS label (one INTEGER PRIMARY KEY, text TEXT NOT NULL)")
            self._writer.execute("CREATE INDEX IF NOT EXISTS events_of_user ON events (user, place)")

    def append(self, events: Sequence[Event]) -> int:
        """See `Store`."""
        with self._writer:
            before = self._writer.total_changes
            self._writer.executemany(
                "INSERT OR IGNORE INTO events (user, event_id, item, label, time) VALUES (?, ?, ?, ?, ?)", events
            )
            return self._writer.total_changes - before

    def read(self, users: Sequence[tuple[int, int]], last: int) -> list[Integers]:
        """See `Store`."""
        query = "SELECT place, item, label, time FROM events WHERE user = ? AND place > ? ORDER BY place DESC LIMIT ?"
        found = (self._reader.execute(query, (*each, last)).fetchall() for each in users)
        return [np.array(rows[::-1], dtype=np.int64).reshape(-1, 4) for rows in found]

    def claim(self, label: str) -> str:
        """See `Store`."""
        with self._writer:
            self._writer.execute("INSERT OR IGNORE INTO label VALUES (1, ?)", [label])
        return str(self._reader.execute("SELECT text FROM label").fetchone()[0])

    def close(self) -> None:
        """See `Store`."""
        self._writer.close()
        self._reader.close()


class RedisStore:
    """A list and a set of ids for each user, changed together by a script; what a crash of Redis keeps, it decides.

    With `appendonly yes` and `appendfsync always` nothing that was acknowledged is lost.
    """

    _ROW = struct.Struct("<qqq")  # item, label, time; the place is that in the list, from 1
    _APPEND = (
        "if redis.call('SADD', KEYS[1], ARGV[1]) == 0 then return 0 end redis.call('RPUSH', KEYS[2], ARGV[2]) return 1"
    )

    def __init__(self, url: str) -> None:
        import redis

        self._redis = redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5)
        self._redis.ping()

    def append(self, events: Sequence[Event]) -> int:
        """See `Store`."""
        pipeline = self._redis.pipeline(transaction=False)
        for event in events:
            ids, log = (f"stca:{{{event.user}}}:{name}" for name in ("ids", "events"))
            pipeline.eval(
                self._APPEND, 2, ids, log, event.event_id, self._ROW.pack(event.item, event.label, event.time)
            )
        return sum(pipeline.execute())

    def read(self, users: Sequence[tuple[int, int]], last: int) -> list[Integers]:
        """See `Store`."""
        if last == 0:
            return [np.empty((0, 4), dtype=np.int64) for _ in users]
        logs = [f"stca:{{{user}}}:events" for user, _ in users]
        pipeline = self._redis.pipeline(transaction=False)
        for log in logs:
            pipeline.llen(log)
        begins = [
            max(place if place <= length else 0, length - last)
            for (_, place), length in zip(users, pipeline.execute(), strict=True)
        ]
        for log, begin in zip(logs, begins, strict=True):
            pipeline.lrange(log, begin, begin + last - 1)  # no event of those that came since
        found = []
        for begin, rows in zip(begins, pipeline.execute(), strict=True):
            values = np.frombuffer(b"".join(rows), dtype="<i8").reshape(-1, 3)
            places = np.arange(begin + 1, begin + 1 + len(values))
            found.append(np.column_stack([places, values]).astype(np.int64))
        return found

    def claim(self, label: str) -> str:
        """See `Store`."""
        self._redis.setnx("stca:label", label)
        first: Any = self._redis.get("stca:label")
        return str(first, "utf-8")

    def close(self) -> None:
        """See `Store`."""
        self._redis.close()


def open_store(where: str) -> Store:
    """Redis by a redis:// URL, else SQLite by a path.

    Raises:
        ValueError: what cannot be opened, or is no store of events, by its name.
    """
    try:
        return RedisStore(where) if where.startswith(("redis://", "rediss://", "unix://")) else SQLiteStore(where)
    except (sqlite3.Error, OSError, ValueError) as error:
        raise ValueError(f"{where}: cannot be opened as a store of events: {error}") from error
    except Exception as error:  # redis has errors of its own, where it is installed
        if type(error).__module__.partition(".")[0] != "redis":
            raise
        raise ValueError(f"{where}: cannot be opened as a store of events: {error}") from error
