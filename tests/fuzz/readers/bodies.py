"""The bodies of examples/serve, through the whole application: JSON by `json`, safetensors by torch's reader of it.

An input is a path, a line break, and a body.
"""

import asyncio
import json
import math
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

import torch
from ranker.requests import COUNTER_BUCKETS, COUNTERS
from safetensors import SafetensorError
from safetensors.torch import load, save
from serve.app import BINARY, make_app
from serve.scorer import Scorer
from service_process import ITEMS, USERS, ScratchStore, write_checkpoint

from readers.values import changed_bytes, changed_json, changed_safetensors

_MOST = 1 << 16
_NUMPY: tuple[torch.dtype, ...] = (
    torch.bool,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.int8,
    torch.int16,
    torch.int32,
)
_NUMPY += (torch.int64, torch.float16, torch.float32, torch.float64, torch.complex64)


class _Service:
    """The application, and a loop that it runs in."""

    def __init__(self) -> None:
        folder = Path(mkdtemp(prefix="stca-fuzz-"))
        self.store = ScratchStore()
        self.scorer = Scorer(write_checkpoint(folder / "ranker.pt"), self.store, 1024, 40, page_rows=16)
        self.app = make_app(self.scorer, self.store, max_wait=0.0, body_bytes=_MOST)
        self.loop = asyncio.new_event_loop()

    def post(self, path: str, body: bytes, kind: str) -> tuple[int, bytes]:
        """Status and body of the answer."""
        parts: list[dict[str, Any]] = []
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
        }
        scope |= {
            "headers": headers,
            "http_version": "1.1",
            "scheme": "http",
            "asgi": {"version": "3.0"},
            "root_path": "",
        }

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            parts.append(dict(message))

        self.loop.run_until_complete(self.app(scope, receive, send))
        return parts[0]["status"], b"".join(part.get("body", b"") for part in parts[1:])


_services: list[_Service] = []


def seeds() -> dict[str, bytes]:
    """A request of each kind."""
    score = {"user": 3, "candidates": [5, 17], "counters": [[1] * 9, [0] * 9], "time": 1700000000, "deadline_ms": 5e4}
    event = {"user": 3, "event_id": "a1", "item": 5, "label": 1, "time": 1700000000}
    events = {"events": [event, event | {"event_id": "a2", "label": 0}, event | {"user": 4}]}
    named = {"user": [3], "candidates": [5, 17, 2], "time": [10**6], "deadline_ms": [50_000]}
    tensors = {name: torch.tensor(values) for name, values in named.items()}
    full = tensors | {"counters": torch.ones(3, 9, dtype=torch.uint8), "candidates": torch.tensor([5, 17, 2]).short()}
    return {
        "score": b"/score\n" + json.dumps(score).encode(),
        "events": b"/events\n" + json.dumps(events).encode(),
        "binary": b"/score/binary\n" + save(tensors),
        "binary-full": b"/score/binary\n" + save(full),
    }


def mutate(data: bytes, rng: Random) -> bytes:
    """The body changed, by what it is."""
    path, _, body = data.partition(b"\n")
    change = changed_safetensors if path.endswith(b"binary") else changed_json
    return path + b"\n" + (changed_bytes if rng.random() < 0.2 else change)(body, rng)


def check(data: bytes, folder: Path) -> None:
    """An answer of 200 is what the body asks for; a body that asks for what there is gets it."""
    start, _, body = data.partition(b"\n")
    path = {b"/events": "/events", b"/score/binary": "/score/binary"}.get(start, "/score")
    body = body[: _MOST + 1]
    service = _services[0] if _services else _Service()
    _services[:] = [service]
    stored = _rows(service.store)
    status, answer = service.post(path, body, BINARY if path.endswith("binary") else "application/json")
    assert status in (200, 400, 413, 422, 504), (status, answer)
    if status == 504:  # the time that the body gave
        return
    asked = _binary(body) if path.endswith("binary") else _json(body)
    if path == "/events":
        wanted = _events(asked)
        assert (status == 200) == (wanted is not None) or _is_lenient(asked), (status, asked)
        if status != 200:
            assert _rows(service.store) == stored
        elif wanted is not None:
            assert _rows(service.store) == {**dict(wanted[::-1]), **stored}
            assert json.loads(answer) == {"stored": len(wanted)}
        service.store._writer.execute("DELETE FROM events")
        service.scorer.cache.evict(range(USERS))
        return
    fits = _fits(asked)
    assert (status == 200) == fits or _is_lenient(asked), (status, asked, answer[:200])
    if status == 200:
        scores = load(answer)["scores"].tolist() if path.endswith("binary") else json.loads(answer)["scores"]
        assert len(scores) == len(asked["candidates"])
        assert all(math.isfinite(x) and 0 <= x <= 1 for x in scores)


def _rows(store: ScratchStore) -> dict[tuple[int, str], tuple[int, int, int]]:
    found = store._writer.execute("SELECT user, event_id, item, label, time FROM events").fetchall()
    return {(user, name): (item, label, time) for user, name, item, label, time in found}


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _binary(body: bytes) -> Any:
    try:
        tensors = load(body)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return None
    if any(x.dim() > 2 or max(x.shape, default=0) > 2000 or x.dtype not in _NUMPY for x in tensors.values()):
        return None
    asked = {name: x.tolist() for name, x in tensors.items()}
    ones = {
        name: x[0]
        for name, x in asked.items()
        if name in ("user", "time", "deadline_ms") and x.__class__ is list and len(x) == 1
    }
    return asked | ones


def _number(x: Any, below: int) -> bool:
    return type(x) is int and 0 <= x < below


def _fits(asked: Any) -> bool:
    if not isinstance(asked, dict) or not {"user", "candidates"} <= set(asked) <= {*_SCORE}:
        return False
    items, counters, time, deadline = (asked.get(name, default) for name, default in _SCORE.items() if name != "user")
    return (
        _number(asked["user"], USERS)
        and isinstance(items, list)
        and 0 < len(items) <= 2000
        and all(_number(x, ITEMS) for x in items)
        and (
            counters is None
            or (isinstance(counters, list) and len(counters) == len(items) and all(map(_nine, counters)))
        )
        and (time is None or _number(time, 2**63))
        and type(deadline) in (int, float)
        and 0 < deadline <= 60_000
    )


_SCORE: dict[str, Any] = {"candidates": None, "counters": None, "time": None, "deadline_ms": 1000, "user": None}


def _nine(row: Any) -> bool:
    return isinstance(row, list) and len(row) == COUNTERS and all(_number(x, COUNTER_BUCKETS) for x in row)


def _events(asked: Any) -> list[tuple[tuple[int, str], tuple[int, int, int]]] | None:
    rows = asked.get("events") if isinstance(asked, dict) and set(asked) == {"events"} else None
    if not isinstance(rows, list) or not 0 < len(rows) <= 1000:
        return None
    for row in rows:
        if not isinstance(row, dict) or not {"user", "event_id", "item", "time"} <= set(row) <= {*EVENT}:
            return None
        name = row["event_id"]
        if not (isinstance(name, str) and 1 <= len(name) <= 200 and not any(0xD800 <= ord(c) < 0xE000 for c in name)):
            return None
        if not all(_number(row.get(each, 1), below) for each, below in EVENT.items() if below):
            return None
    return [((row["user"], row["event_id"]), (row["item"], row.get("label", 1), row["time"])) for row in rows]


EVENT = {"user": USERS, "item": ITEMS, "label": 2, "time": 2**63, "event_id": 0}


def _is_lenient(asked: Any) -> bool:
    """Whether numbers are written as text, truth values or whole floats, which the service takes."""
    if isinstance(asked, dict):
        deadline = isinstance(asked.get("deadline_ms"), str | bool)
        return deadline or any(_is_lenient(x) for name, x in asked.items() if name not in ("event_id", "deadline_ms"))
    return any(map(_is_lenient, asked)) if isinstance(asked, list) else isinstance(asked, str | bool | float)
