"""Training with early stop, checkpoint and resume; AUC and log loss of a model on chosen requests."""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc
from tqdm import tqdm

from ranker.batches import group_requests, make_batch
from ranker.checkpoint import check_settings, load_checkpoint, whole_checkpoint
from ranker.ranks import gathered, rank, replicated, total, world_size
from ranker.requests import Integers, Requests, Split, time_parts
from stca.batch import bce_loss
from stca.files import whole_file
from stca.lengths import BetaLengths, TokenBudgetSampler


@dataclass(frozen=True)
class Config:
    """How to train.

    Lengths are history rows that a target sees, drawn anew for each run of requests and epoch; `window` says which of
    its rows, `budget` is history rows of a batch. `runs_per_step` in its place makes batches of so many runs on
    average, whatever their lengths: then models trained on different lengths make about as many steps.
    """

    epochs: int = 3
    patience: int = 1
    min_length: int = 64
    average_length: int = 1024
    max_length: int = 4096
    alpha: float = 0.3
    window: str = "suffix"
    requests_per_history: int = 32
    max_span_days: int = 30
    budget: int = 12_000
    runs_per_step: int | None = None
    event_time: bool = False
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup: int = 100
    save_every: int = 50
    seed: int = 0

    @property
    def lengths(self) -> BetaLengths:
        """Of the histories in training; all `max_length` where that is the average."""
        if self.average_length >= self.max_length:
            return BetaLengths(self.max_length, self.max_length, self.max_length)
        shortest = min(self.min_length, self.average_length - 1)
        return BetaLengths(shortest, self.max_length, self.average_length, self.alpha)


def evaluate(
    model: nn.Module, requests: Requests, chosen: Integers, length: int, config: Config, name: str
) -> dict[str, float]:
    """AUC and log loss over the targets of the requests `chosen`, each seeing at most its last `length` events.

    Processes share the work, and all have the result.
    """
    runs = group_requests(requests, chosen, config.requests_per_history, config.max_span_days * 86400)
    model.eval()
    logits, labels = [torch.zeros(0)], [torch.zeros(0)]
    with torch.no_grad():
        mine = range(rank(), len(runs), world_size())
        for i in tqdm(mine, desc=name, unit="run", leave=False, disable=rank() > 0):
            batch = make_batch(requests, runs[i : i + 1], length, config.event_time)
            logits.append(model(batch))
            labels.append(batch.labels["label"])
    score, label = (torch.cat(gathered(torch.cat(parts))) for parts in (logits, labels))
    score = score.double()
    return {
        "auc": float(binary_auroc(score.sigmoid(), label.long())),
        "logloss": float(F.binary_cross_entropy_with_logits(score, label.double())),
    }


class Training:
    """The state of one training run, kept in one file from which it goes on exactly where it was.

    Started by torchrun, every process has its own batches, and a step is that of one process on all of them together.
    """

    def __init__(
        self, model: nn.Module, requests: Requests, split: Split, config: Config, checkpoint: Path | None
    ) -> None:
        self.model, self.requests, self.split, self.config, self.checkpoint = model, requests, split, config, checkpoint
        self.runs = group_requests(requests, split.train, config.requests_per_history, config.max_span_days * 86400)
        # What a checkpoint must agree with.
        self.settings = asdict(config) | {
            "processes": world_size(),
            "events": requests.batch.T,
            "users": requests.num_users,
            "items": requests.num_items,
            "checksum of the log": requests.checksum,
            "checksum of what it is divided into": split.checksum,
            "parameters": sum(p.numel() for p in model.parameters()),
        }
        decayed = [p for p in model.parameters() if p.dim() > 1]
        plain = [p for p in model.parameters() if p.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=config.learning_rate,
            betas=(0.9, 0.98),
        )
        self.replica = replicated(model)
        self.state: dict[str, Any] = {"epoch": 0, "step": 0, "best": -math.inf, "best_model": None, "worse": 0}
        self.state |= {"rows": 0, "distinct": 0}  # of this epoch
        self.state |= {"tokens": 0, "seconds": 0.0}  # history rows and CPU time of all training steps
        self.resumed = checkpoint is not None and checkpoint.exists()
        if checkpoint is not None and self.resumed:
            self._load(checkpoint)

    def run(self, name: str) -> None:
        """Trains to the end or to the early stop; the model is then the best epoch's."""
        if self.resumed:
            tqdm.write(f"{name}: {self.checkpoint} holds {self.state['epoch']} of {self.config.epochs} epochs")
        while self.state["epoch"] < self.config.epochs and self.state["worse"] <= self.config.patience:
            self._epoch(name)
        if self.state["best_model"] is not None:
            self.model.load_state_dict(self.state["best_model"])

    def _batches(self) -> tuple[TokenBudgetSampler, Tensor]:
        """The epoch's batches of runs and their history lengths: a function of seed and epoch alone."""
        c, epoch = self.config, self.state["epoch"]
        drawn = c.lengths.sample(len(self.runs), (c.seed, epoch))
        first, last = self.requests.seen[self.runs[:, 0]], self.requests.seen[self.runs[:, 1] - 1]
        tokens = np.minimum(drawn.numpy(), first) + last - first + 1
        budget = c.budget if c.runs_per_step is None else math.ceil(c.runs_per_step * tokens.mean())
        sampler = TokenBudgetSampler(tokens, budget, seed=c.seed, rank=rank(), world_size=world_size())
        sampler.set_epoch(epoch, self.state["step"])
        return sampler, drawn

    def _epoch(self, name: str) -> None:
        state, c = self.state, self.config
        batches, lengths = self._batches()
        self.model.train()
        steps, padding = len(batches), batches.padded_share()
        epoch = f"{name}, epoch {state['epoch'] + 1}"
        progress = tqdm(batches, desc=epoch, initial=state["step"], total=steps, unit="step", disable=rank() > 0)
        for chosen in progress:
            start = time.process_time()
            batch = make_batch(self.requests, self.runs[chosen], lengths[chosen], c.event_time, c.window)
            targets, rows, distinct = total(batch.T, batch.N, len(batch.history["item_id"]))  # of all processes
            state["rows"], state["distinct"] = state["rows"] + rows, state["distinct"] + distinct
            done = state["epoch"] * steps + state["step"]
            share = min(1.0, done / (c.epochs * steps))
            rate = (
                c.learning_rate * min(1.0, (done + 1) / c.warmup) * (0.05 + 0.95 * (1 + math.cos(math.pi * share)) / 2)
            )
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            own = bce_loss(self.replica(batch), batch.labels["label"], batch)
            loss = own * batch.T * world_size() / targets  # gradients are averaged over processes
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            state["step"] += 1
            state["tokens"] += rows
            state["seconds"] += time.process_time() - start
            if state["step"] % 10 == 0:
                progress.set_postfix(loss=f"{loss.item():.4f}")
            if state["step"] % c.save_every == 0:
                self._save()
        result = evaluate(self.model, self.requests, self.split.validation, c.average_length, c, "validation")
        if rank() == 0:
            self._tell(epoch, result["auc"], padding)
        state["rows"] = state["distinct"] = 0
        if result["auc"] > state["best"]:
            state["best"], state["worse"] = result["auc"], 0
            state["best_model"] = {key: value.clone() for key, value in self.model.state_dict().items()}
        else:
            state["worse"] += 1
        state["epoch"], state["step"] = state["epoch"] + 1, 0
        self._save()

    def _tell(self, epoch: str, score: float, padding: float) -> None:
        state = self.state
        tqdm.write(f"{epoch}: validation AUC {score:.4f} ({padding:.0%} padding in padded batches, here none)")
        if self.config.event_time:
            share = state["distinct"] / max(1, state["rows"])
            tqdm.write(f"    N = {state['rows']:,} history rows, P = {state['distinct']:,} distinct, P/N = {share:.3f}")

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        random = gathered(torch.get_rng_state())
        if rank() > 0:
            return
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        saved = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "state": self.state,
            "random": random,
            "settings": self.settings,
            "time_parts": time_parts(self.requests.batch.targets["timestamp"]),
        }
        with whole_file(self.checkpoint) as part:
            torch.save(saved, part)

    def _load(self, path: Path) -> None:
        hint = " (--restart forgets it)"
        saved = load_checkpoint(path, ("settings", "model", "optimizer", "state", "random"), hint)
        check_settings(path, self.settings, saved["settings"], hint)
        with whole_checkpoint(path, hint):
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.state = {name: saved["state"][name] for name in self.state}
            torch.set_rng_state(saved["random"][rank()])
