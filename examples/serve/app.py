"""The service as an ASGI application."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serve.batcher import Batcher, BusyError
from serve.bodies import NewEvents, Score, read_score, refused, write_scores
from serve.limits import LimitBodies
from serve.scorer import Query, Scorer
from serve.store import Event, Store

BINARY = "application/octet-stream"
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)


class Metrics:
    """What GET /metrics tells."""

    def __init__(self, scorer: Scorer) -> None:
        self.registry = CollectorRegistry()
        self.seconds = Histogram(
            "stca_seconds", "Seconds of a request", ["path"], buckets=SECONDS, registry=self.registry
        )
        self.answers = Counter("stca_answers", "Answers", ["path", "status"], registry=self.registry)
        self.batch = Histogram(
            "stca_batch", "Requests of a batch", buckets=(1, 2, 4, 8, 16, 32), registry=self.registry
        )
        for name in ("users", "rows", "free_rows", "appended_rows", "evicted_users"):
            gauge = Gauge(f"stca_cache_{name}", f"HistoryCache.statistics().{name}", registry=self.registry)
            gauge.set_function(partial(_statistic, scorer, name))
        for name in ("hits", "misses"):
            gauge = Gauge(
                f"stca_cache_{name}", f"Users whose histories were there, or not: {name}", registry=self.registry
            )
            gauge.set_function(partial(getattr, scorer, name))


def make_app(
    scorer: Scorer,
    store: Store,
    *,
    max_pairs: int = 1_000_000,
    max_wait: float = 0.0,
    max_jobs: int = 256,
    body_bytes: int = 1 << 19,
    body_seconds: float = 5.0,
) -> FastAPI:
    """The service.

    Args:
        scorer: with the ranker and the cache.
        store: of events.
        max_pairs: of a batch, as `Scorer.pairs` counts them. What takes long gains nothing by a batch: its first
            request would wait for the last.
        max_wait: seconds that a request waits for others.
        max_jobs: requests that wait; more get 429.
        body_bytes: of a request, at most.
        body_seconds: that a body may take to come.
    """
    metrics = Metrics(scorer)
    scores: Batcher[Query, list[float]] = Batcher(
        scorer,
        scorer.pairs,
        max_pairs,
        max_wait,
        max_jobs,
        lambda jobs, _: metrics.batch.observe(jobs),
    )
    # One transaction for all that wait: each would be a write to the disk.
    events: Batcher[Sequence[Event], int] = Batcher(lambda lists: _stored(store, lists), len, 1000, 0.0, max_jobs)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await scores.close()
        await events.close()
        store.close()

    app = FastAPI(title="stca ranking", lifespan=lifespan)
    app.add_middleware(LimitBodies, most=body_bytes, seconds=body_seconds)

    @app.middleware("http")
    async def count(request: Request, answer) -> Response:  # type: ignore[no-untyped-def]
        route = request.url.path if request.url.path in PATHS else "other"
        status = 500
        try:
            with metrics.seconds.labels(route).time():
                response: Response = await answer(request)
            status = response.status_code
            return response
        finally:
            metrics.answers.labels(route, status).inc()

    @app.exception_handler(RequestValidationError)
    async def wrong(_: Request, error: RequestValidationError) -> Response:
        """The first of what is wrong, without the value, which JSON need not be able to hold."""
        detail = [{key: each[key] for key in ("type", "loc", "msg")} for each in error.errors()[:20]]
        return Response(json.dumps({"detail": detail}), 422, media_type="application/json")

    @app.exception_handler(BusyError)
    async def busy(_: Request, error: BusyError) -> Response:
        return Response(str(error), 429, {"Retry-After": str(error.retry_after)})

    @app.exception_handler(TimeoutError)
    async def late(_: Request, error: TimeoutError) -> Response:
        return Response("no result within the deadline", 504)

    async def scored(body: Score) -> list[float]:
        _check("user", [body.user], scorer.num_users)
        _check("candidates", body.candidates, scorer.num_items)
        query = Query(body.user, body.candidates, body.counters, body.time)
        return await scores(query, body.deadline_ms / 1000)

    @app.post("/events")
    async def add_events(body: NewEvents) -> dict[str, int]:
        _check("user", [event.user for event in body.events], scorer.num_users)
        _check("item", [event.item for event in body.events], scorer.num_items)
        rows = [Event(each.user, each.event_id, each.item, each.label, each.time) for each in body.events]
        return {"stored": await events(rows, 10.0)}

    @app.post("/score")
    async def score(body: Score) -> dict[str, list[float]]:
        return {"scores": await scored(body)}

    @app.post("/score/binary")
    async def score_binary(request: Request) -> Response:
        kind = request.headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() != BINARY:
            raise HTTPException(415, f"content-type must be {BINARY}, got {kind!r}")
        return Response(write_scores(await scored(read_score(await request.body()))), media_type=BINARY)

    @app.get("/health")
    async def health() -> dict[str, int]:
        return {"waiting": len(scores) + len(events), "users": scorer.cache.statistics().users}

    @app.get("/metrics")
    async def tell() -> Response:
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")

    return app


PATHS = {"/events", "/score", "/score/binary", "/health", "/metrics"}


def _statistic(scorer: Scorer, name: str) -> float:
    return float(getattr(scorer.cache.statistics(), name))


def _stored(store: Store, lists: Sequence[Sequence[Event]]) -> list[int]:
    """Stores all of them at once, and says how many each list holds."""
    store.append([event for events in lists for event in events])
    return [len(events) for events in lists]


def _check(field: str, numbers: list[int], count: int) -> None:
    if max(numbers) >= count:
        raise refused(field, f"must be below {count}, of those that the ranker knows", max(numbers))
