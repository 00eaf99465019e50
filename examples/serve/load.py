"""Drives the service and says how long it took to answer.

    PYTHONPATH=examples python -m serve.load --rate 20 --seconds 30
    PYTHONPATH=examples python -m serve.load --users 20 --events 10000      long histories, stored and encoded first

Requests arrive at random (Poisson), in bursts now and then, whether earlier ones were answered or not; users are of
Zipf's law; one request in five brings events. Prints latency, throughput and refusals, and draws a histogram.
"""

import argparse
import asyncio
import sys
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray
from ranker.arguments import at_least

from stca.files import check_output, whole_file


@dataclass
class Answers:
    """What came back: seconds of each scored request, and how many answers of each status."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)


def arrivals(rate: float, seconds: float, most: int, burst: float, seed: int) -> NDArray[np.float64]:
    """Moments of requests: `rate` a second, and `burst` times as many in each fifth second."""
    generator = np.random.default_rng(seed)
    now, moments = 0.0, list[float]()
    while len(moments) < most:
        now += generator.exponential(1 / (rate * (burst if int(now) % 5 == 4 else 1)))
        if now >= seconds:
            break
        moments.append(now)
    return np.array(moments)


async def fill(client: httpx.AsyncClient, args: argparse.Namespace) -> None:
    """Stores `events` events of each user, the same ones every time, and has them encoded."""
    generator, most = np.random.default_rng(args.seed), 1000
    for user in range(args.users if args.events else 0):
        items = generator.integers(0, args.items, args.events).tolist()
        events = [{"user": user, "event_id": f"{i}", "item": item, "time": i} for i, item in enumerate(items)]
        for first in range(0, args.events, most):
            (await client.post("/events", json={"events": events[first : first + most]})).raise_for_status()
        body = {"user": user, "candidates": items[:1], "deadline_ms": 60_000}
        (await client.post("/score", json=body)).raise_for_status()


async def drive(client: httpx.AsyncClient, args: argparse.Namespace) -> Answers:
    """Sends every request at its moment; what has no free connection waits, and that is part of its latency."""
    generator, answers = np.random.default_rng(args.seed), Answers()
    moments = arrivals(args.rate, args.seconds, args.requests, args.burst, args.seed)
    users = (generator.zipf(args.zipf, len(moments)) - 1) % args.users
    free = asyncio.Semaphore(args.connections)  # httpx goes through all that wait for a connection at each that is free
    begin = time.perf_counter()

    async def asked(user: int, items: list[int]) -> httpx.Response:
        if items[0] % 5 == 0:
            event = {"user": user, "event_id": uuid.uuid4().hex, "item": items[0], "time": int(time.time())}
            answers.statuses[f"events {(await client.post('/events', json={'events': [event]})).status_code}"] += 1
        return await client.post("/score", json={"user": user, "candidates": items})

    async def one(moment: float, user: int, items: list[int]) -> None:
        await asyncio.sleep(max(0.0, begin + moment - time.perf_counter()))
        async with free:
            try:
                answer = await asked(user, items)
            except httpx.HTTPError as error:
                answers.statuses[type(error).__name__] += 1
                return
        answers.statuses[f"score {answer.status_code}"] += 1
        if answer.status_code == 200:
            answers.seconds.append(time.perf_counter() - begin - moment)

    items = generator.integers(0, args.items, (len(moments), args.candidates)).tolist()
    await asyncio.gather(*(one(*each) for each in zip(moments.tolist(), users.tolist(), items, strict=True)))
    return answers


async def run(args: argparse.Namespace) -> Answers:
    """Drives, and prints."""
    limits = httpx.Limits(max_connections=args.connections)
    async with httpx.AsyncClient(base_url=args.url, timeout=30, limits=limits) as client:
        await fill(client, args)
        begin = time.perf_counter()
        before = await _cache(client)
        answers = await drive(client, args)
        seconds = time.perf_counter() - begin
        hits, misses = (await _cache(client) - before).tolist()
    p50, p95, p99 = np.percentile(answers.seconds or [np.nan], [50, 95, 99]) * 1000
    print(
        f"p50 {p50:.1f} ms, p95 {p95:.1f} ms, p99 {p99:.1f} ms of {len(answers.seconds)} answers, from due to answered"
    )
    print(f"{len(answers.seconds) / seconds:.1f} scored a second; cached: {100 * hits / max(1, hits + misses):.1f} %")
    print(f"rejected {answers.statuses['score 429']}; {dict(sorted(answers.statuses.items()))}")
    return answers


async def _cache(client: httpx.AsyncClient) -> NDArray[np.float64]:
    text = (await client.get("/metrics")).text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("stca_cache_"))
    return np.array([float(values[f"stca_cache_{name}"]) for name in ("hits", "misses")])


def draw(seconds: list[float], path: Path) -> None:
    """The histogram of latencies."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    milliseconds = np.array(seconds) * 1000
    figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
    axis.hist(milliseconds, bins=np.geomspace(milliseconds.min(), milliseconds.max() + 1e-6, 50).tolist())
    axis.set(xscale="log", xlabel="milliseconds from due to answered", ylabel="requests")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    for share in (50, 95, 99):
        value = float(np.percentile(milliseconds, share))
        axis.axvline(value, color="gray", linestyle=":")
        axis.text(value, 1.01, f"p{share} {value:.0f}", transform=axis.get_xaxis_transform(), ha="center")
    with whole_file(path) as part:
        figure.savefig(part, dpi=120, format="png")
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Drives and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--rate", type=at_least(0.001), default=20, help="requests a second")
    parser.add_argument("--burst", type=at_least(0.001), default=3, help="times the rate, in each fifth second")
    parser.add_argument("--seconds", type=at_least(0.001), default=30)
    parser.add_argument("--requests", type=at_least(1), default=20_000, help="at most")
    parser.add_argument("--connections", type=at_least(1), default=100)
    parser.add_argument("--users", type=at_least(1), default=100)
    parser.add_argument("--events", type=at_least(0), default=0, help="of each user, stored before the first request")
    parser.add_argument("--items", type=at_least(1), default=1000)
    parser.add_argument("--candidates", type=at_least(1), default=300, help="m")
    parser.add_argument("--zipf", type=at_least(1.001), default=1.3)
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--out", type=Path, help="also draw the histogram here, as PNG")
    args = parser.parse_args(arguments)
    try:
        if args.out is not None:
            check_output(args.out)
        answers = asyncio.run(run(args))
    except (httpx.HTTPError, ValueError) as error:
        sys.exit(f"load.py: {args.url}: {error or type(error).__name__}")
    if args.out is not None and answers.seconds:
        draw(answers.seconds, args.out)


if __name__ == "__main__":
    main()
