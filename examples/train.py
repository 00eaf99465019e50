"""Trains a ranker on an event log: AUC on the last tenth of its time. Read it from top to bottom, and make it yours.

    python examples/train.py                           a generated log, about a minute
    python examples/train.py --log events.csv          any log that stca.data.convert knows
    torchrun --nproc-per-node 2 -- examples/train.py   two processes, on CUDA with a GPU each

Log -> requests.parquet, each history once -> batches of equal tokens -> histories cut short in training, served long ->
embeddings, STCA, head -> loss. Started again it goes on where it was; another --out starts anew.
"""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ranker.checkpoint import check_settings, load_checkpoint, whole_checkpoint
from ranker.generate import generate_log
from ranker.ranks import device, gathered, joined, rank, replicated, total, world_size
from torch import Tensor, nn
from torchmetrics.classification import BinaryAUROC
from tqdm import tqdm

import stca
from stca.batch import RequestBatch, bce_loss
from stca.data import RequestDataset, group_log, read_events, write_requests
from stca.files import whole_file
from stca.lengths import BetaLengths, recent_suffix
from stca.ops import request_gather

ROWS, DIM, LAYERS = 16_384, 64, 2  # of a table of ids (where ids are more, they share rows), of a row, of STCA


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, help="an event log; generated when not given")
    parser.add_argument("--out", type=Path, default=Path("build/train"), help="folder of requests and checkpoint")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batches", type=int, help="of a step, dealt out to the processes; as many as these")
    parser.add_argument("--budget", type=int, default=8_000, help="history rows of a batch, before they are cut")
    parser.add_argument("--max-length", type=int, default=4096, help="events that a target sees at most")
    parser.add_argument("--average-length", type=int, default=512, help="events that it sees in training, on average")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--every", type=int, default=100, help="steps from checkpoint to checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, default=1800, help="seconds that a process waits for another")
    return parser.parse_args(arguments)


def settings_of(args: argparse.Namespace, batches: int) -> dict[str, object]:
    """What a run that goes on must have as it began, `batches` a step included."""
    given = {name: str(value) for name, value in vars(args).items() if name not in ("out", "patience")}
    return {**given, "batches": batches}


def matching(stack: stca.nn.STCA) -> stca.nn.STCA:
    """The stack, with queries and keys that start alike, so that a target finds events of its own item at once."""
    for name, weight in stack.named_parameters():
        if name.endswith("w_q"):
            nn.init.orthogonal_(weight)
            stack.get_parameter(name[:-1] + "k").data.copy_(weight)
            weight.data *= 2
    return stack


def ages(batch: RequestBatch) -> Tensor:
    """Seconds [N] from each event to the first request of its history."""
    now = batch.targets["timestamp"][batch.target_offsets[:-1]]
    return request_gather(now, batch.history_offsets, total=batch.N) - batch.history["timestamp"]


def buckets(age: Tensor) -> Tensor:
    """Buckets [N] of ages in seconds, two for each doubling."""
    return (2 * (age.clamp(min=0) + 1).log2()).long().clamp(max=63)


class Ranker(nn.Module):
    """Embeddings of ids, labels and ages -> what a target finds in its history -> logit."""

    def __init__(self) -> None:
        super().__init__()
        self.item, self.user = nn.Embedding(ROWS, DIM), nn.Embedding(ROWS, DIM)
        self.label, self.age = nn.Embedding(2, DIM), nn.Embedding(64, DIM)
        self.stca = matching(stca.nn.STCA(DIM, LAYERS, num_heads=1, share_ffn=True, use_lse=True))
        self.head = nn.Sequential(nn.Linear(3 * DIM, DIM), nn.GELU(), nn.Linear(DIM, 1))

    def forward(self, batch: RequestBatch) -> Tensor:
        """Logits [T]."""
        history, targets = batch.history, batch.targets
        offsets, events = (batch.target_offsets, batch.history_offsets), (history["item_id"], history["label"])
        return self.score(targets["item_id"], targets["user_id"], *events, ages(batch), *offsets, batch.visible)

    def score(
        self,
        item_id: Tensor,
        user_id: Tensor,
        event_item_id: Tensor,
        event_label: Tensor,
        event_age: Tensor,
        target_offsets: Tensor,
        history_offsets: Tensor,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Logits [T] of targets [T] and events [N]."""
        events = self.item(event_item_id % ROWS) + self.label(event_label.long()) + self.age(buckets(event_age))
        item, user = self.item(item_id % ROWS), self.user(user_id % ROWS)
        z = self.stca(item, events, target_offsets, history_offsets, visible=visible)
        logits: Tensor = self.head(torch.cat([z, item, user], dim=1)).squeeze(1)
        return logits


def write(log: Path | None, path: Path, max_length: int, budget: int) -> None:
    """Log -> requests: up to 32 of a user share a history, in which each target sees what was before its request."""
    events = read_events(log) if log is not None else [generate_log(requests_per_user=500)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_requests(group_log(events, per_history=32, max_length=max_length), path, tokens=4 * budget)


def last_tenth(path: Path) -> int:
    """The moment after which the last tenth of the targets comes."""
    return int(np.quantile(torch.cat([batch.targets["timestamp"] for batch in RequestDataset(path, 10**9)]), 0.9))


def endless(dataset: RequestDataset, cut: int) -> Iterator[RequestBatch]:
    """Training targets, those up to the cut, one epoch after the other."""
    if dataset.rank >= len(dataset.row_groups):
        raise ValueError(f"{dataset.world_size} batches a step take as many row groups, got {len(dataset.row_groups)}")
    while True:
        for batch in dataset:
            yield batch.filter(batch.targets["timestamp"] <= cut)


def shortened(batch: RequestBatch, lengths: BetaLengths, seed: tuple[int, ...]) -> RequestBatch:
    """Targets see as many of their last events as is drawn for their history; what nobody sees is left out."""
    keep = request_gather(lengths.sample(batch.R, seed), batch.target_offsets, total=batch.T)
    return replace(batch, visible=recent_suffix(batch.ranges(), keep)).trim()


@torch.no_grad()
def evaluate(model: nn.Module, requests: Iterable[RequestBatch], cut: int) -> float:
    """AUC over the targets after the cut, each with all that it may see, of this process and the others."""
    auc = BinaryAUROC()
    for batch in requests:
        later = batch.filter(batch.targets["timestamp"] > cut).trim().to(device())
        auc.update(model(later).double().sigmoid().cpu(), later.labels["label"].long().cpu())
    return float(auc.compute())


def train(args: argparse.Namespace) -> float:
    """Trains, or goes on where it was; the AUC of the end."""
    path, checkpoint = args.out / "requests.parquet", args.out / "checkpoint.pt"
    if rank() == 0 and not checkpoint.exists():
        write(args.log, path, args.max_length, args.budget)
    total(0)  # other processes wait until it is written
    cut, lengths = last_tenth(path), BetaLengths(args.average_length // 8, args.max_length, args.average_length)
    count, test = args.batches or world_size(), RequestDataset(path, args.budget, rank=rank(), world_size=world_size())
    if count < world_size():
        raise ValueError(f"--batches must be at least {world_size()}, one for each process, got {count}")
    mine = range(rank(), count, world_size())  # A step takes a batch of every dataset, whichever process reads it.
    datasets = [RequestDataset(path, args.budget, seed=args.seed, rank=i, world_size=count) for i in mine]
    streams = {dataset.rank: endless(dataset, cut) for dataset in datasets}

    torch.manual_seed(args.seed)
    model = Ranker().to(device())
    replica, optimizer = replicated(model), torch.optim.AdamW(model.parameters(), args.learning_rate)
    settings = settings_of(args, count)
    first = 0
    if checkpoint.exists():
        saved = load_checkpoint(checkpoint, ("settings", "model", "optimizer", "datasets", "steps"), device=device())
        check_settings(checkpoint, settings, saved["settings"], " (or take another --out)")
        with whole_checkpoint(checkpoint):
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            for dataset in datasets:
                dataset.load_state_dict(saved["datasets"][dataset.rank])
        first = saved["steps"]

    progress = tqdm(range(first, args.steps), initial=first, total=args.steps, unit="step", disable=rank() > 0)
    for step in progress:
        batches = [shortened(next(stream), lengths, (args.seed, step, i)) for i, stream in streams.items()]
        [targets] = total(sum(batch.T for batch in batches))
        optimizer.zero_grad()
        for batch in (batch.to(device()) for batch in batches):
            loss = bce_loss(replica(batch), batch.labels["label"], batch)
            share = batch.T * world_size() / max(1, targets)  # DDP takes the mean over processes
            (loss * share).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        if (step + 1) % args.every == 0 or step + 1 == args.steps:
            places = {state["rank"]: state for of in gathered([d.state_dict() for d in datasets]) for state in of}
            saved = {"settings": settings, "steps": step + 1, "datasets": places}
            if rank() == 0:
                with whole_file(checkpoint) as part:
                    torch.save(saved | {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, part)
    auc = evaluate(model, test, cut)
    if rank() == 0:
        tqdm.write(f"AUC {auc:.4f} on the targets after {cut}")
    return auc


if __name__ == "__main__":
    args = parse()
    with joined(args.patience):
        train(args)
