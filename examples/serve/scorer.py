"""The ranker behind the service: histories stay encoded in a cache that reads through the store of events."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ranker.batches import log_bucket
from ranker.checkpoint import load_checkpoint, whole_checkpoint
from ranker.model import Ranker
from ranker.requests import COUNTERS, TIME_BUCKETS
from torch import Tensor

from serve.store import Store
from stca.nn import STCA, Keep
from stca.serving import HistoryCache


@dataclass(frozen=True)
class Query:
    """Candidates of one user: items [m] and their counters [m, 9]; the time is in seconds, now when None."""

    user: int
    candidates: list[int]
    counters: list[list[int]] | None = None
    time: int | None = None


class Scorer:
    """Scores queries in batches. One thread calls it.

    A user's place in the cache is the place in the store up to which rows are encoded: at each request what came
    behind it is read, encoded and appended, so that a restart, an eviction or another server costs one encoding.
    """

    def __init__(
        self, checkpoint: Path, store: Store, capacity_rows: int, length: int, keep: Keep = "rows", **options: Any
    ) -> None:
        hint = " of STCA by train_ranker.py --event-time"
        saved = load_checkpoint(checkpoint, ("settings", "state", "model", "time_parts"), hint)
        with whole_checkpoint(checkpoint, hint):
            if not saved["settings"]["event_time"]:
                raise ValueError("event_time must be True, got False")
            weights, self.parts = saved["state"]["best_model"] or saved["model"], saved["time_parts"]
            if self.parts.shape != (TIME_BUCKETS - 1,) or self.parts.dtype != torch.int64:
                raise ValueError(f"time_parts must be int64 [{TIME_BUCKETS - 1}], got {self.parts.dtype}")
            self.model = ranker_of(weights).eval().requires_grad_(False)
        assert isinstance(self.model.stca, STCA)
        self.stack, self.store, self.length = self.model.stca, store, length
        encoder = hashlib.sha256()
        for name, weight in sorted(weights.items()):
            encoder.update(name.encode() + weight.contiguous().numpy().tobytes())
        layers, dim = len(self.stack.layers), self.stack.dim
        options |= {"keep": keep, "num_heads": self.stack.num_heads, "encoder": encoder.hexdigest()}
        self.cache = HistoryCache(layers, dim, capacity_rows, **options)
        self.encode = partial(self.stack.encode_history, keep=keep)
        self.hits = self.misses = 0  # users of a batch whose histories were there, or not
        page_rows = options.get("page_rows", 256)
        if capacity_rows < length + page_rows:
            raise ValueError(f"capacity_rows must have room for a user's {length} rows and a page, got {capacity_rows}")
        known = f"{self.num_items} items and {self.num_users} users"
        if (first := store.claim(known)) != known:  # its numbers mean others now, or nobody
            raise ValueError(f"{checkpoint}: of {known}, got a store of events of {first}")

    @property
    def num_items(self) -> int:
        """Items that the ranker knows."""
        return self.model.candidate.num_embeddings

    @property
    def num_users(self) -> int:
        """Users that the ranker knows."""
        return self.model.user.num_embeddings

    def pairs(self, query: Query) -> int:
        """What a query will take: candidates times events, as many as may be of a user who has to be encoded first.

        A candidate's other costs are taken for those of 2,000 events, which nobody measured.
        """
        return len(query.candidates) * (2000 + (self.cache.length(query.user) or self.length))

    def catch_up(self, users: Sequence[int]) -> tuple[int, int]:
        """Encodes what the store holds of these users, and the cache does not yet: how many it held, how many not."""
        users = list(dict.fromkeys(users))
        behind = [(user, self.cache.last_time(user) or 0) for user in users]
        found = self.store.read(behind, self.length)
        for (user, place), new in zip(behind, found, strict=True):  # first: no user may take more than `length` rows
            if len(new) and new[0, 0] <= place:  # a store that lost its events and has some again
                self.cache.evict([user])
            elif len(new) and user in self.cache:
                self.cache.keep(user, self.length - len(new))
        hits = sum(user in self.cache for user in users)
        place, item, label, when = torch.from_numpy(np.concatenate(found).T.copy())
        time_bucket = torch.bucketize(when, self.parts, right=True)
        rows = self.model.history_rows({"item_id": item, "label": label, "time_bucket": time_bucket})
        offsets = torch.tensor([0, *map(len, found)]).cumsum(0)
        self.cache.extend_from(self.encode, users, rows, offsets, place)
        return hits, len(users) - hits

    def __call__(self, queries: Sequence[Query]) -> list[list[float]]:
        """The probability that each candidate's label is 1: [m] for every query."""
        users = [query.user for query in queries]
        hits, misses = self.catch_up(users)
        lengths = torch.tensor([len(query.candidates) for query in queries])
        target_offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        now = int(time.time())
        with self.cache.select(users, last=self.length) as histories:
            seen, times = histories.history_offsets.diff(), [now if q.time is None else q.time for q in queries]
            zeros = [[0] * COUNTERS]
            targets = {
                "item_id": torch.tensor([item for query in queries for item in query.candidates]),
                "counters": torch.tensor([row for q in queries for row in q.counters or zeros * len(q.candidates)]),
                "user_id": torch.tensor(users).repeat_interleave(lengths),
                "time_bucket": torch.bucketize(torch.tensor(times), self.parts, right=True).repeat_interleave(lengths),
                "length_bucket": log_bucket(seen).repeat_interleave(lengths),
            }
            z = self.stack.attend(
                self.model.target_rows(targets),
                histories.encoded,
                target_offsets,
                histories.history_offsets,
                history_index=histories.history_index,
            )
        scores, ends = self.model.logits(z, targets).sigmoid().tolist(), target_offsets.tolist()
        self.hits, self.misses = self.hits + hits, self.misses + misses  # a batch that fails is tried again
        return [scores[begin:end] for begin, end in pairwise(ends)]


def ranker_of(weights: dict[str, Tensor]) -> Ranker:
    """The ranker with these weights, whose shapes say its sizes."""
    num_items, dim = weights["candidate.weight"].shape
    layers = len({name.split(".")[2] for name in weights if name.startswith("stca.layers.")})
    heads, num_users = len(weights["stca.w_l"]) // layers, len(weights["user.weight"])
    if max(num_items, num_users, layers * dim) * dim > sum(weight.numel() for weight in weights.values()):
        raise ValueError(f"weights must be of {num_items} items, {num_users} users, {layers} layers of width {dim}")
    model = Ranker(num_items, num_users, dim, layers, heads)
    model.load_state_dict(weights)
    for name, weight in model.state_dict().items():  # of networks that are shared, each weight is there by two names
        if not torch.equal(weight.nan_to_num(), weights[name].to(weight.dtype).nan_to_num()):
            raise ValueError(f"weights that are shared must be equal, got others for {name}")
    return model
