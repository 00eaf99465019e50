"""The road of train.py with torchrec's tables: sharded over processes, looked up by ids, histories never expanded.

    torchrun --nproc-per-node 2 -- examples/train_torchrec.py
    torchrun --nproc-per-node 2 -- examples/train_torchrec.py --log events.csv

A batch holds each history once; `to_keyed` gives its ids as the KeyedJaggedTensor that torchrec's EmbeddingCollection
looks up, and the rows that come back lie as STCA takes them. (A pipeline that hands out KeyedJaggedTensors makes its
batches by `from_keyed`.) DistributedModelParallel shards the tables by rows and updates them in the backward pass.
Started again with as many processes it goes on where it was; another --out starts anew.
"""

import argparse
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranker.checkpoint import check_settings, whole_checkpoint
from ranker.ranks import device, joined, rank, total, world_size
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_loader import load as load_parts
from torch.distributed.checkpoint.state_dict_saver import save as save_parts
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from tqdm import tqdm
from train import (
    DIM,
    LAYERS,
    ROWS,
    ages,
    buckets,
    endless,
    evaluate,
    last_tenth,
    matching,
    parse,
    settings_of,
    shortened,
    write,
)

import stca
from stca.batch import RequestBatch, bce_loss, to_keyed
from stca.data import RequestDataset
from stca.lengths import BetaLengths

TABLES = {"item": ["history_item_id", "item_id"], "user": ["user_id"]}  # and the features that are looked up there


def keyed(batch: RequestBatch) -> KeyedJaggedTensor:
    """The ids of a batch, [R] lists of each: an item has one row, in a history as among the targets."""
    history = {"history_item_id": batch.history["item_id"] % ROWS}
    targets = {name: batch.targets[name] % ROWS for name in ("item_id", "user_id")}
    batch = replace(batch, history=history, targets=targets)
    lists = KeyedJaggedTensor.concat([to_keyed(batch, "history"), to_keyed(batch, "targets")])
    if batch.R == 0:  # torchrec has no batch of no list: one empty list of each
        lists = KeyedJaggedTensor(
            lists.keys(), lists.values(), lengths=torch.zeros(len(lists.keys()), dtype=torch.int64)
        )
    return lists


class Ranker(nn.Module):
    """As train.py's, with one table for items and one for users."""

    def __init__(self, where: torch.device) -> None:
        super().__init__()
        self.tables = EmbeddingCollection(
            tables=[
                EmbeddingConfig(
                    name=name, num_embeddings=ROWS, embedding_dim=DIM, feature_names=features, init_fn=nn.init.normal_
                )
                for name, features in TABLES.items()
            ],
            device=where,
        )
        self.label, self.age = nn.Embedding(2, DIM), nn.Embedding(64, DIM)
        self.stca = matching(stca.nn.STCA(DIM, LAYERS, num_heads=1, share_ffn=True, use_lse=True))
        self.head = nn.Sequential(nn.Linear(3 * DIM, DIM), nn.GELU(), nn.Linear(DIM, 1))

    def forward(self, batch: RequestBatch) -> Tensor:
        """Logits [T]."""
        rows = {name: looked_up.values() for name, looked_up in self.tables(keyed(batch)).items()}
        events = rows["history_item_id"] + self.label(batch.history["label"].long()) + self.age(buckets(ages(batch)))
        item, user = rows["item_id"], rows["user_id"]
        z = self.stca(item, events, batch.target_offsets, batch.history_offsets, visible=batch.visible)
        logits: Tensor = self.head(torch.cat([z, item, user], dim=1)).squeeze(1)
        return logits


def sharded(learning_rate: float) -> DistributedModelParallel:
    """The ranker with its tables cut by rows over the processes; Adagrad updates these in the backward pass."""
    model = Ranker(torch.device("meta"))
    apply_optimizer_in_backward(torch.optim.Adagrad, model.tables.parameters(), {"lr": learning_rate})
    constraints = {
        name: ParameterConstraints(sharding_types=["row_wise"], compute_kernels=["fused"]) for name in TABLES
    }
    topology = Topology(world_size=world_size(), compute_device=device().type)
    planner = EmbeddingShardingPlanner(topology=topology, constraints=constraints)
    sharders = [EmbeddingCollectionSharder()]
    plan = planner.collective_plan(model, sharders, dist.GroupMember.WORLD)
    return DistributedModelParallel(model, device=device(), plan=plan, sharders=sharders)


def in_step(batches: Iterable[RequestBatch]) -> Iterator[RequestBatch]:
    """Batches until no process has any, empty ones at the end: a look-up takes all processes."""
    left = iter(batches)
    batch = next(left)
    while total(batch.T)[0]:
        yield batch
        batch = next(left, batch.filter(torch.zeros(batch.T, dtype=torch.bool)))


class Checkpoints:
    """Folders of a run, a process's parts of the tables by itself; one is whole once it has its metadata.

    They are read by `pickle`: load your own.
    """

    def __init__(self, folder: Path, settings: dict[str, object], *parts: Any) -> None:
        self.folder, self.settings, self.parts = folder, settings, parts

    def _state(self) -> dict[str, Any]:
        model, dense, requests = self.parts
        state = {"model": model.state_dict(), "tables": model.fused_optimizer.state_dict(), "dense": dense.state_dict()}
        return {**state, f"requests {rank()}": requests.state_dict()}

    def save(self, steps: int) -> None:
        """Writes one; those before it go."""
        new = self.folder / f"checkpoint-{steps}"
        save_parts({**self._state(), "settings": json.dumps(self.settings)}, checkpoint_id=new)
        for old in self.folder.glob("checkpoint-*") if rank() == 0 else ():
            if old != new:
                shutil.rmtree(old)

    def load(self) -> int:
        """Takes the last one that is whole; its steps, or 0 where there is none."""
        whole = {
            int(path.parent.name.split("-")[1]): path.parent for path in self.folder.glob("checkpoint-*/.metadata")
        }
        if not whole:
            return 0
        path, saved = whole[max(whole)], {"settings": ""}
        with whole_checkpoint(path):
            load_parts(saved, checkpoint_id=path)
            found = json.loads(saved["settings"])
        check_settings(path, self.settings, found, " (or take another --out)")
        model, dense, requests = self.parts
        for p in dense.param_groups[0]["params"]:  # a step makes the state that is read into; the rest it may change
            p.grad = torch.zeros_like(p)
        dense.step()
        with whole_checkpoint(path):
            load_parts(state := self._state(), checkpoint_id=path)
            model.load_state_dict(state["model"])
            model.fused_optimizer.load_state_dict(state["tables"])
            dense.load_state_dict(state["dense"])
            requests.load_state_dict(state[f"requests {rank()}"])
        return max(whole)


def train(args: argparse.Namespace) -> float:
    """Trains, or goes on where it was; the AUC of the end."""
    path: Path = args.out / "requests.parquet"
    if rank() == 0 and not any(args.out.glob("checkpoint-*/.metadata")):
        write(args.log, path, args.max_length, args.budget)
    total(0)  # other processes wait until it is written
    cut, lengths = last_tenth(path), BetaLengths(args.average_length // 8, args.max_length, args.average_length)
    requests, test = (RequestDataset(path, args.budget, rank=rank(), world_size=world_size()) for _ in range(2))
    torch.manual_seed(args.seed)  # the dense part is the same everywhere, each process draws rows of its own
    model = sharded(args.learning_rate)
    dense = torch.optim.AdamW([p for name, p in model.named_parameters() if "tables" not in name], args.learning_rate)
    checkpoints = Checkpoints(args.out, settings_of(args, world_size()), model, dense, requests)
    first, stream = checkpoints.load(), endless(requests, cut)
    for step in tqdm(range(first, args.steps), unit="step", disable=rank() > 0):
        batch = shortened(next(stream), lengths, (args.seed, step, rank())).to(device())
        [targets] = total(batch.T)
        loss = bce_loss(model(batch), batch.labels["label"], batch) * batch.T * world_size() / max(1, targets)
        dense.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # the tables' rows have moved by now
        dense.step()
        if (step + 1) % args.every == 0 or step + 1 == args.steps:
            checkpoints.save(step + 1)
    auc = evaluate(model, in_step(test), cut)
    if rank() == 0:
        tqdm.write(f"AUC {auc:.4f} on the targets after {cut}")
    return auc


if __name__ == "__main__":
    with joined():
        train(parse())
