"""Trains a ranker with STCA on an event log and shows what longer histories are worth.

    python examples/train_ranker.py                        a generated log, about two minutes of two idle cores
    python examples/train_ranker.py --log events.csv       your own: user_id, item_id, timestamp, label (, request_id)
    python examples/train_ranker.py --log ml-100k.inter    MovieLens; a rating of 4 or more is label 1
    python examples/train_ranker.py --log some/git/clone   which files an author touches, among those others touch
    torchrun --nproc-per-node 2 --max-restarts 3 -- examples/train_ranker.py --log events.csv      in two processes

Prints AUC and log loss of the ranker at growing served lengths, of a model of biases alone and of one that averages
the history (at its best length), all on the last tenth of time; then training speed and memory, request-level against
point-wise. An interrupted run goes on when started again with the same arguments, as torchrun does if a process dies.
Steps are small: where other programs want the cores too, OMP_NUM_THREADS=1 is faster by far.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import torch
from ranker.generate import generate_log
from ranker.measure import compare
from ranker.model import BiasOnly, Ranker, mean_pooled
from ranker.ranks import joined, rank
from ranker.report import Clock, Report, draw, make_ready, print_report, write_json
from ranker.requests import Requests, Split, make_requests, read_requests, split_by_time
from ranker.train import Config, Training, evaluate
from torch import nn

LENGTHS = (64, 256, 1024, 4096, 16384, 65536)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--log", type=Path, help="event log: CSV (.gz too), Parquet, a git clone; generated when not given"
    )
    parser.add_argument("--out", type=Path, default=Path("build/ranker"), help="folder of picture, table, checkpoints")
    parser.add_argument("--json", type=Path, help="also write the report here")
    parser.add_argument("--epochs", type=int, help="8; 2 for 200,000 events and more")
    parser.add_argument("--average-length", type=int, default=1024, help="history rows in training")
    parser.add_argument("--max-length", type=int, help="history rows in training, at most: 4096, 16384 with a log")
    parser.add_argument("--budget", type=int, help="history rows of a batch: 12000, 6000 with a log")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--dim", type=int, default=64, help="D")
    parser.add_argument("--heads", type=int, default=1, help="H")
    parser.add_argument("--layers", type=int, default=2, help="M")
    parser.add_argument(
        "--event-time",
        action="store_true",
        help="rows carry when they happened, not how long ago: each distinct one of a batch is encoded once",
    )
    parser.add_argument("--save-every", type=int, default=50, help="steps from checkpoint to checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--restart", action="store_true", help="forget the checkpoints of an interrupted run")
    args = parser.parse_args()
    args.max_length = args.max_length or (4096 if args.log is None else 16384)
    return args


def train(
    name: str, model: nn.Module, requests: Requests, split: Split, config: Config, args: argparse.Namespace
) -> nn.Module:
    """Trains a model, or goes on with its checkpoint."""
    stem = "generated" if args.log is None else args.log.name
    checkpoint = args.out / f"{stem}-{name.replace(' ', '-')}.pt"
    if args.restart and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        checkpoint.unlink(missing_ok=True)
    Training(model, requests, split, config, checkpoint).run(name)
    return model


def main() -> None:
    """Runs everything."""
    args = parse()
    with joined():
        run(args)


def run(args: argparse.Namespace) -> None:
    """Trains, measures and reports; of several processes the first alone measures speed and writes."""
    clock = Clock()
    torch.manual_seed(args.seed)
    table, picture = args.out / "report.json", args.out / "served_length.png"
    make_ready(filter(None, (table, picture, args.json)), args.log)
    requests = make_requests(generate_log(seed=args.seed)) if args.log is None else read_requests(args.log)
    split, events = split_by_time(requests), requests.batch.T
    clock.done("reading")
    config = Config(
        epochs=args.epochs or (8 if events < 200_000 else 2),
        average_length=args.average_length,
        max_length=args.max_length,
        learning_rate=args.learning_rate,
        seed=args.seed,
        budget=args.budget or (12_000 if args.log is None else 6_000),
        max_span_days=30 if args.log is None else 2,
        event_time=args.event_time,
        save_every=args.save_every,
    )
    if rank() == 0:
        print(
            f"{events:,} events of {requests.num_users:,} users and {requests.num_items:,} items; requests: "
            f"{len(split.train):,} train, {len(split.validation):,} validation, {len(split.test):,} test"
        )
    longest = int(requests.seen[split.test].max())
    lengths = [length for i, length in enumerate(LENGTHS) if i == 0 or LENGTHS[i - 1] < longest]

    sizes = requests.num_items, requests.num_users
    ranker = train("STCA", Ranker(*sizes, args.dim, args.layers, args.heads), requests, split, config, args)
    clock.done("training STCA")
    mean = train("mean pooled", mean_pooled(*sizes, args.dim), requests, split, config, args)
    clock.done("training mean pooled")
    bias_config = replace(
        config, epochs=6, patience=2, min_length=8, average_length=8, max_length=8, learning_rate=0.02, warmup=10
    )
    biases = train("bias only", BiasOnly(*sizes), requests, split, bias_config, args)
    clock.done("training bias only")

    report: Report = {"log": "generated log" if args.log is None else args.log.name}
    served, pooled = (
        {str(length): evaluate(model, requests, split.test, length, config, f"{name}, {length}") for length in lengths}
        for name, model in (("STCA", ranker), ("mean pooled", mean))
    )
    report["served"] = served
    report["baselines"] = {
        "bias only": evaluate(biases, requests, split.test, 8, config, "bias only"),
        # At the length that suits it best: the strongest opponent.
        "mean pooled": max(pooled.values(), key=lambda result: result["auc"]),
    }
    clock.done("serving all lengths")
    if rank() > 0:
        return
    measured = compare(requests, split.train, min(1024, longest), config.requests_per_history, config.event_time)
    for key, field in (
        ("throughput", "targets_per_s"),
        ("peak_memory_mb", "peak_memory_mb"),
        ("bytes_per_target", "bytes_per_target"),
    ):
        report[key] = {form: result[field] for form, result in measured.items()}

    clock.done("measuring speed and memory")
    report["seconds"] = clock.parts
    print_report(report)
    for path in filter(None, (table, args.json)):
        write_json(report, path)
    draw(report, picture)
    print(f"\nwritten: {table}, {picture}")


if __name__ == "__main__":
    main()
