"""examples/serve in this process: what it scores, what it refuses, and how."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi.testclient import TestClient
from ranker.batches import log_bucket
from safetensors.torch import load, save
from serve.app import BINARY, make_app
from serve.scorer import Query, Scorer
from serve.store import SQLiteStore
from service_process import ITEMS, USERS, write_checkpoint

from stca.nn import Keep

PATIENT = {"deadline_ms": 60_000}


class Service:
    """The application with what it is made of."""

    def __init__(self, folder: Path, keep: Keep = "rows", **limits: Any) -> None:
        self.store = SQLiteStore(folder / "events.sqlite")
        self.scorer = Scorer(write_checkpoint(folder / "ranker.pt"), self.store, 1024, 40, keep, page_rows=16)
        self.app = make_app(self.scorer, self.store, **limits)


@pytest.fixture(params=["rows"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Service:
    return Service(tmp_path, request.param)


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(service.app) as client:
        yield client


def _events(user: int, begin: int, end: int) -> dict[str, Any]:
    return {
        "events": [
            {"user": user, "event_id": f"e{n}", "item": 7 * n % ITEMS, "label": n % 2, "time": 900 * n}
            for n in range(begin, end)
        ]
    }


def _expected(scorer: Scorer, events: dict[str, Any], candidates: list[int], moment: int) -> list[float]:
    """The ranker's own forward pass over the last 40 events."""
    rows, model, m = events["events"][-40:], scorer.model, len(candidates)
    times = torch.bucketize(torch.tensor([row["time"] for row in rows]), scorer.parts, right=True)
    columns = {"item_id": [row["item"] for row in rows], "label": [row["label"] for row in rows]}
    history = model.history_rows({name: torch.tensor(x) for name, x in columns.items()} | {"time_bucket": times})
    targets = {
        "item_id": torch.tensor(candidates),
        "user_id": torch.full((m,), rows[0]["user"]),
        "counters": torch.zeros(m, 9, dtype=torch.int64),
        "time_bucket": torch.bucketize(torch.tensor([moment] * m), scorer.parts, right=True),
        "length_bucket": log_bucket(torch.tensor([len(rows)] * m)),
    }
    offsets = torch.tensor([0, m]), torch.tensor([0, len(rows)])
    found: list[float] = (
        model.logits(scorer.stack(model.target_rows(targets), history, *offsets), targets).sigmoid().tolist()
    )
    return found


@pytest.mark.parametrize("service", ["rows", "keys_values"], indirect=True)
def test_scores_are_those_of_the_ranker(service: Service, client: TestClient) -> None:
    candidates = list(range(9))
    for end in (3, 30, 31, 90):  # the last 40 of them count; each event comes again and again
        events = _events(4, 0, end)
        assert client.post("/events", json=events).json() == {"stored": end}
        answer = client.post("/score", json={"user": 4, "candidates": candidates, "time": 10**6, **PATIENT})
        assert answer.json()["scores"] == pytest.approx(_expected(service.scorer, events, candidates, 10**6), abs=1e-6)
    named = {"user": [4], "candidates": candidates, "time": [10**6], "deadline_ms": [60_000]}
    body = save({name: torch.tensor(values) for name, values in named.items()})
    binary = client.post("/score/binary", content=body, headers={"content-type": BINARY})
    assert load(binary.content)["scores"].tolist() == pytest.approx(answer.json()["scores"], abs=1e-7)
    empty = client.post("/score", json={"user": 5, "candidates": [1], **PATIENT})
    assert 0 < empty.json()["scores"][0] < 1
    service.scorer.cache.evict([4])
    again = client.post("/score", json={"user": 4, "candidates": candidates, "time": 10**6, **PATIENT})
    assert again.json()["scores"] == pytest.approx(answer.json()["scores"], abs=1e-6)
    text = client.get("/metrics").text
    assert 'stca_answers_total{path="/score",status="200"} 6.0' in text
    assert "stca_cache_users 2.0" in text
    assert client.get("/health").json() == {"waiting": 0, "users": 2}


BAD: list[tuple[str, Any, list[str]]] = [
    ("/score", {"user": 1}, ["candidates"]),
    ("/score", {"user": 1, "candidates": []}, ["candidates"]),
    ("/score", {"user": USERS, "candidates": [1]}, ["user"]),
    ("/score", {"user": "x", "candidates": [1, -1]}, ["user", "candidates"]),
    ("/score", {"user": 1, "candidates": [ITEMS]}, ["candidates"]),
    ("/score", {"user": 1, "candidates": [1], "candidate": [1]}, ["candidate"]),
    ("/score", {"user": 1, "candidates": [1], "counters": [[1] * 8]}, ["counters"]),
    ("/score", {"user": 1, "candidates": [1], "counters": []}, ["counters"]),
    ("/score", {"user": 1, "candidates": [1], "deadline_ms": 0}, ["deadline_ms"]),
    ("/events", {"events": []}, ["events"]),
    ("/events", {"events": [{"user": 1, "event_id": "", "item": 1, "time": 2**63}]}, ["event_id", "time"]),
    ("/events", {"events": [{"user": 1, "event_id": "a", "item": ITEMS, "time": 1}]}, ["item"]),
]


@pytest.mark.parametrize(("path", "body", "fields"), BAD)
def test_a_bad_body_is_told_its_fields(client: TestClient, path: str, body: Any, fields: list[str]) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 422, answer.text
    for field in fields:
        assert f'"{field}"' in answer.text or f"{field} must" in answer.text


@pytest.mark.parametrize("body", ['{"user": NaN}', "[Infinity]", '{"user": 1, "event_id": "\\ud800", "\\ud800": 1}'])
@pytest.mark.parametrize("path", ["/score", "/events"])
def test_a_value_that_json_does_not_know(client: TestClient, path: str, body: str) -> None:
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text


def test_one_user_never_fills_the_cache(tmp_path: Path) -> None:
    """Each time as many events come as the ranker looks at: their rows and the older ones have no room together."""
    store, checkpoint = SQLiteStore(tmp_path / "events.sqlite"), write_checkpoint(tmp_path / "ranker.pt")
    scorer = Scorer(checkpoint, store, 64, 40, page_rows=16)
    with TestClient(make_app(scorer, store)) as client:
        for begin in range(0, 200, 40):
            assert client.post("/events", json=_events(3, begin, begin + 40)).status_code == 200
            answer = client.post("/score", json={"user": 3, "candidates": [5, 9], "time": 10**6, **PATIENT})
            expected = _expected(scorer, _events(3, begin, begin + 40), [5, 9], 10**6)
            torch.testing.assert_close(torch.tensor(answer.json()["scores"]), torch.tensor(expected))


def test_what_the_service_does_not_start_with(tmp_path: Path) -> None:
    store, checkpoint = SQLiteStore(tmp_path / "events.sqlite"), write_checkpoint(tmp_path / "ranker.pt")
    with pytest.raises(ValueError, match="capacity_rows must have room for a user's 40 rows and a page, got 40"):
        Scorer(checkpoint, store, 40, 40, page_rows=16)
    by_age = tmp_path / "by_age.pt"
    torch.save(torch.load(checkpoint) | {"settings": "event_time=False"}, by_age)
    (tmp_path / "text").write_text("no checkpoint")
    for path in (by_age, tmp_path / "text", tmp_path / "missing"):
        with pytest.raises(
            ValueError, match=f"{path.name}: must be a whole checkpoint of STCA by train_ranker.py --event-time"
        ):
            Scorer(path, store, 1024, 40)


def test_bad_binary_bodies(client: TestClient) -> None:
    headers = {"content-type": BINARY}
    whole = save({"user": torch.tensor([1]), "candidates": torch.tensor([1, 2])})
    for body, field in (
        (whole[:-1], "safetensors"),
        (b"", "safetensors"),
        (save({"user": torch.tensor([1])}), "candidates"),
        # Of no byte, and more lists than a memory holds.
        (save({"user": torch.tensor([1]), "candidates": torch.empty(2**40, 0)}), "candidates"),
        (save({"user": torch.tensor([1]), "more": torch.empty(1, 1, 1)}), "more"),
    ):
        answer = client.post("/score/binary", content=body, headers=headers)
        assert (answer.status_code, f'"{field}"' in answer.text) == (422, True)
    assert client.post("/score/binary", content=whole).status_code == 415
    assert client.post("/score", content=b"{").status_code == 422


def test_a_body_that_is_too_large(tmp_path: Path) -> None:
    with TestClient(Service(tmp_path, body_bytes=1000).app) as client:
        assert client.post("/score", content=b"[" * 1001).status_code == 413
        assert client.post("/score", json={"user": 1, "candidates": [1], **PATIENT}).status_code == 200


class _Held:
    """A scorer whose first batch waits until the others have come, and that has no scores for user 13."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer, self.sizes = scorer, list[int]()
        self.begun, self.go = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scorer, name)

    def __call__(self, queries: Sequence[Query]) -> list[list[float]]:
        self.sizes.append(len(queries))
        self.begun.set()
        self.go.wait(60)
        if any(query.user == 13 for query in queries):
            raise RuntimeError("no scores for user 13")
        return self._scorer(queries)


def _client(service: Service, held: _Held, **limits: Any) -> httpx.AsyncClient:
    app = make_app(held, service.store, **limits)  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://service")


def _ask(client: httpx.AsyncClient, user: int, m: int = 2, deadline: float = 60_000) -> asyncio.Task[httpx.Response]:
    body = {"user": user, "candidates": [1] * m, "deadline_ms": deadline}
    return asyncio.create_task(client.post("/score", json=body))


def test_one_that_fails_never_fails_its_batch(service: Service) -> None:
    """All wait behind a first request, so that they are of one batch, and one of them has no scores."""
    held = _Held(service.scorer)

    async def all_of_them() -> tuple[list[int], str]:
        async with _client(service, held, max_jobs=6) as client:
            first = _ask(client, 0)
            await asyncio.to_thread(held.begun.wait, 60)
            asked = [_ask(client, user) for user in (1, 13, 2, 3)]
            late = _ask(client, 4, deadline=1)
            await asyncio.wait([late])
            more = [_ask(client, 5), _ask(client, 6)]
            await asyncio.sleep(0.2)
            refused = await _ask(client, 7)
            held.go.set()
            answers = [*await asyncio.gather(first, *asked, late, *more), refused]
            return [each.status_code for each in answers], refused.headers.get("retry-after", "")

    statuses, retry = asyncio.run(all_of_them())
    assert statuses == [200, 200, 500, 200, 200, 504, 200, 200, 429]
    assert int(retry) >= 1
    assert held.sizes == [1, 6, 1, 1, 1, 1, 1, 1]


def test_what_takes_long_is_a_batch_of_its_own(service: Service) -> None:
    """Short lists share a batch; a long list does not, nor a short one of a long history that would make it long."""
    for user in range(5):
        service.scorer.cache.append(user, [torch.zeros(40 if user == 3 else 1, 16)] * 2)
    held = _Held(service.scorer)

    async def all_of_them() -> list[int]:
        async with _client(service, held, max_pairs=4 * 2001) as client:
            asked = [_ask(client, 0, 1)]
            await asyncio.to_thread(held.begun.wait, 60)
            for user, m in ((1, 2), (2, 2), (4, 9), (1, 1), (2, 1), (3, 2)):
                asked.append(_ask(client, user, m))
                await asyncio.sleep(0.05)
            held.go.set()
            return [(await each).status_code for each in asked]

    assert asyncio.run(all_of_them()) == [200] * 7
    assert held.sizes == [1, 2, 1, 2, 1]
