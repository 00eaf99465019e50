"""Serves a ranker that `train_ranker.py --event-time` trained.

    make serve                                               trains the demo's ranker first, where there is none yet
    PYTHONPATH=examples python -m serve --checkpoint build/serve/generated-STCA.pt

POST /events   {"events": [{"user": 3, "event_id": "a1", "item": 5, "label": 1, "time": 1700000000}]}
POST /score    {"user": 3, "candidates": [5, 17]}
POST /score/binary, GET /health, GET /metrics, and GET /docs with every field.
"""

import argparse
import gc
import sys
from pathlib import Path

import torch
import uvicorn
from ranker.arguments import at_least

from serve.app import make_app
from serve.scorer import Scorer
from serve.store import open_store


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--store", default="events.sqlite", help="a file for SQLite, or redis://...")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--capacity-rows", type=at_least(1), default=1_000_000, help="encoded rows of all users in memory"
    )
    parser.add_argument("--length", type=at_least(1), default=10_000, help="events of a user that targets see, at most")
    parser.add_argument("--keep", choices=["rows", "keys_values"], default="rows", help="the latter for several heads")
    parser.add_argument("--storage", choices=["float32", "bfloat16", "float16", "int8"], default="float32")
    parser.add_argument("--max-pairs", type=at_least(1), default=1_000_000, help="of a batch: candidates times events")
    parser.add_argument(
        "--max-wait-ms", type=at_least(0.0), default=0, help="that a request waits for others while nobody works"
    )
    parser.add_argument("--max-jobs", type=at_least(1), default=256, help="requests that wait; more get 429")
    parser.add_argument("--connections", type=at_least(1), default=1024, help="at a time; more get 503")
    args = parser.parse_args()
    options = {"keep": args.keep, "storage": getattr(torch, args.storage)}
    try:
        store = open_store(args.store)
        scorer = Scorer(args.checkpoint, store, args.capacity_rows, args.length, **options)
    except ValueError as error:
        sys.exit(f"serve: {error}")
    limits = {"max_pairs": args.max_pairs, "max_wait": args.max_wait_ms / 1000, "max_jobs": args.max_jobs}
    app = make_app(scorer, store, **limits)
    gc.collect()
    gc.freeze()  # what is here now stays: a collection that went through it would hold everybody up for 0.1 s
    # httptools reads a body of many small chunks 30 times as fast as h11, and nobody else is served meanwhile.
    # Idle connections stay longer than clients keep them, so that none is closed while a request is on its way.
    connections = {"limit_concurrency": args.connections, "timeout_keep_alive": 30, "log_level": "warning"}
    connections["timeout_graceful_shutdown"] = 30  # else a client that sends nothing keeps it alive
    uvicorn.run(app, http="httptools", host=args.host, port=args.port, **connections)


if __name__ == "__main__":
    main()
