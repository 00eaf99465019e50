"""Makes of a served ranker a program without Python, which scores from a cache's pool as `examples/serve` does.

    python examples/train_ranker.py --event-time --out build/serve
    python examples/export_served.py                        build/serve/served.pt2, and a request to try it on
    examples/cpp (see there) scores the request in C++

The request is 300 candidates of a user with 10,000 events, whose encoded rows lie in pages of a `HistoryCache` beside
those of others. The program gets the pools whole, and `history_index`. With `--storage int8` each pool is int8 and its
scales follow it.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from export_ranker import graph, package
from ranker.arguments import at_least
from ranker.checkpoint import load_checkpoint, whole_checkpoint
from ranker.model import Ranker
from ranker.requests import COUNTER_BUCKETS, COUNTERS, TIME_BUCKETS
from serve.scorer import ranker_of
from torch import Tensor, nn

from stca.files import check_output
from stca.nn import STCA
from stca.serving import HistoryCache

TARGETS = "item_id", "user_id", "time_bucket", "length_bucket", "counters"  # [T] each, counters [T, 9]
DIMENSIONS = "TTTTTRRN"  # first sizes of targets, both offsets, history_index; then P of each pool, and of its scales
STORAGES = {"float32": torch.float32, "int8": torch.int8}
Arguments = tuple[Tensor, ...]


class Served(nn.Module):
    """A ranker over the tensors of a request and the pools of a cache, of as many layers as the ranker has."""

    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, *arguments: Tensor) -> Tensor:
        """Logits [T]."""
        targets = dict(zip(TARGETS, arguments, strict=False))
        *offsets, history_index = arguments[len(TARGETS) : len(DIMENSIONS)]
        parts, stack = arguments[len(DIMENSIONS) :], self.ranker.stca
        assert isinstance(stack, STCA)
        int8 = parts[0].dtype == torch.int8
        pools = list(zip(parts[::2], parts[1::2], strict=True)) if int8 else list(parts)
        z = stack.attend(self.ranker.target_rows(targets), pools, *offsets, history_index=history_index)
        return self.ranker.logits(z, targets)


def random_request(ranker: Ranker, m: int, events: int, users: int = 4, storage: str = "float32") -> Arguments:
    """Of one user among others, whose histories grew by turns."""
    stack, num_items, num_users = ranker.stca, ranker.candidate.num_embeddings, ranker.user.num_embeddings
    assert isinstance(stack, STCA)
    cache = HistoryCache(len(stack.layers), stack.dim, users * (events + 512), storage=STORAGES[storage])
    for part in np.array_split(np.arange(events), 5):
        n = users * len(part)
        new = {"item_id": torch.randint(num_items, (n,)), "label": torch.randint(2, (n,))}
        rows = ranker.history_rows(new | {"time_bucket": torch.randint(TIME_BUCKETS, (n,))})
        cache.extend_from(stack.encode_history, range(users), rows, torch.arange(users + 1) * len(part))
    of_targets = num_items, num_users, TIME_BUCKETS, TIME_BUCKETS
    targets = [torch.randint(most, (m,)) for most in of_targets]
    with cache.select([1]) as chosen:
        assert chosen.history_index is not None
        offsets = torch.tensor([0, m]), chosen.history_offsets
        counters = torch.randint(COUNTER_BUCKETS, (m, COUNTERS))
        parts = [part for kept in chosen.encoded for part in (kept if isinstance(kept, tuple) else (kept,))]
        return *targets, counters, *offsets, chosen.history_index, *parts


def export(ranker: Ranker, storage: str = "float32") -> torch.export.ExportedProgram:
    """The ranker as a graph, for any number of targets T, events N, requests R and rows P of the pools."""
    request = random_request(ranker, 7, 40, storage=storage)
    return graph(Served(ranker), request, DIMENSIONS.ljust(len(request), "P"))


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("build/serve/generated-STCA.pt"))
    parser.add_argument("--out", type=Path, help="the package; served.pt2 beside the checkpoint")
    parser.add_argument("--events", type=at_least(1), default=10_000, help="N")
    parser.add_argument("--candidates", type=at_least(1), default=300, help="T")
    parser.add_argument("--storage", choices=STORAGES, default="float32", help="of the pools")
    parser.add_argument("--calls", type=at_least(1), default=20, help="that are timed in Python")
    args = parser.parse_args(arguments)
    out: Path = args.out or args.checkpoint.with_name("served.pt2")
    check_output(out)
    saved = load_checkpoint(args.checkpoint, ("state", "model"))
    with whole_checkpoint(args.checkpoint):
        ranker = ranker_of(saved["state"]["best_model"] or saved["model"]).eval().requires_grad_(False)
    torch.manual_seed(0)
    request = random_request(ranker, args.candidates, args.events, storage=args.storage)
    package(export(ranker, args.storage), request, out)
    milliseconds = []
    with torch.inference_mode():
        for _ in range(args.calls):
            begin = time.perf_counter()
            Served(ranker)(*request)
            milliseconds.append(1e3 * (time.perf_counter() - begin))
    p50, p99 = np.percentile(milliseconds, [50, 99])
    print(f"in Python, without the package: p50 {p50:.2f} ms, p99 {p99:.2f} ms of {args.calls} calls")


if __name__ == "__main__":
    main()
