"""What the storage of a served history costs: AUC of the ranker whose encoded rows, or keys and values, lie as
bfloat16, float16 or int8.

    python examples/storage.py --log events.csv      a log of any form that train_ranker.py takes

Trains STCA as `train_ranker.py --event-time` does, or goes on with its checkpoint, and prints AUC on the last tenth of
time for each form and storage of `stca.serving.HistoryCache`, with the difference from rows of float32.
"""

import argparse
from itertools import product
from pathlib import Path

import torch
from ranker.model import Ranker
from ranker.report import write_json
from ranker.requests import read_requests, split_by_time
from ranker.scaling_report import table
from ranker.train import Config, Training, evaluate
from torch import Tensor, nn

from stca.nn import STCA, Keep
from stca.serving import HistoryCache

FORMS: tuple[Keep, ...] = "rows", "keys_values"
STORAGES = torch.float32, torch.bfloat16, torch.float16, torch.int8


class Stored(nn.Module):
    """STCA, whose encoded history goes through a cache before anything attends to it."""

    def __init__(self, stack: STCA, keep: Keep, storage: torch.dtype) -> None:
        super().__init__()
        self.stack, self.keep, self.storage = stack, keep, storage

    def forward(
        self,
        targets: Tensor,
        history: Tensor,
        target_offsets: Tensor,
        history_offsets: Tensor,
        *,
        visible: Tensor | None,
        history_index: Tensor | None,
    ) -> Tensor:
        """As STCA's."""
        sizes, H = (len(self.stack.layers), self.stack.dim, max(1, len(history))), self.stack.num_heads
        cache = HistoryCache(*sizes, keep=self.keep, num_heads=H, storage=self.storage)
        cache.append("all", self.stack.encode_history(history, keep=self.keep))
        with cache.select(["all"]) as rows:
            # A first user's pages follow one another.
            encoded = [
                (own[0][: len(history)], own[1][: len(history)]) if isinstance(own, tuple) else own[: len(history)]
                for own in rows.encoded
            ]
            offsets = target_offsets, history_offsets
            return self.stack.attend(targets, encoded, *offsets, visible=visible, history_index=history_index)


def main(arguments: list[str] | None = None) -> None:
    """Trains, serves with each storage, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True, help="event log, or a git clone")
    parser.add_argument(
        "--out", type=Path, default=Path("build/storage"), help="folder of the checkpoint and the report"
    )
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument(
        "--length", type=int, default=4096, help="history rows served; in training an eighth on average"
    )
    parser.add_argument("--dim", type=int, default=64, help="D")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    requests = read_requests(args.log)
    split = split_by_time(requests)
    config = Config(
        epochs=args.epochs,
        average_length=args.length // 8,
        max_length=args.length,
        learning_rate=1e-3,
        budget=6_000,
        max_span_days=2,
        event_time=True,
    )
    model = Ranker(requests.num_items, requests.num_users, args.dim)
    Training(model, requests, split, config, args.out / f"{args.log.name}-STCA.pt").run("STCA")
    stack, found = model.stca, dict[str, dict[str, float]]()
    assert isinstance(stack, STCA)
    for keep, storage in product(FORMS, STORAGES):
        model.stca, name = Stored(stack, keep, storage), f"{keep} {str(storage).removeprefix('torch.')}"
        found[name] = evaluate(model, requests, split.test, args.length, config, name)
    exact = found["rows float32"]["auc"]
    rows = [[name, f"{result['auc']:.5f}", f"{result['auc'] - exact:+.5f}"] for name, result in found.items()]
    print("\n".join(table(["kept", "AUC", "difference"], rows)))
    write_json(found, args.out / f"{args.log.name}.json")


if __name__ == "__main__":
    main()
