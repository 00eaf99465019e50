"""Places of samplers and datasets, as JSON or a checkpoint may hold them, beside the batches of a fresh one."""

import json
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

import torch
from batches import make_requests

from readers import refused
from readers.values import changed_bytes, changed_json
from stca.batch import RequestBatch
from stca.data import RequestDataset, write_requests
from stca.lengths import TokenBudgetSampler

_LENGTHS = [9, 1, 5, 4, 20, 3, 3, 8, 2, 1]
_paths: list[Path] = []


def _sampler() -> TokenBudgetSampler:
    return TokenBudgetSampler(_LENGTHS, 10, seed=1)


def _dataset() -> RequestDataset:
    if not _paths:
        _paths.append(Path(mkdtemp(prefix="stca-fuzz-"), "log.parquet"))
        torch.manual_seed(0)
        write_requests(make_requests(12), _paths[0], tokens=40)
    return RequestDataset(_paths[0], 30, seed=1)


def seeds() -> dict[str, bytes]:
    """Both, at the start, in the midst of an epoch, and at its end."""
    found = {}
    for name, make in (("sampler", _sampler), ("dataset", _dataset)):
        for done in (0, 2):
            stream = iter(it := make())
            for _ in range(done):
                next(stream)
            found[f"{name}-{done}"] = name.encode() + b"\n" + json.dumps(it.state_dict()).encode()
    return found


def mutate(data: bytes, rng: Random) -> bytes:
    """The state changed as JSON, or by bytes."""
    name, _, state = data.partition(b"\n")
    return name + b"\n" + (changed_bytes if rng.random() < 0.1 else changed_json)(state, rng)


def check(data: bytes, folder: Path) -> None:
    """A state that is taken leaves exactly the batches behind its place; another leaves the iterator where it was."""
    name, _, text = data.partition(b"\n")
    try:
        state = json.loads(text)
    except (ValueError, RecursionError):
        return
    if not isinstance(state, dict):
        return
    it, fresh = (_dataset() if name == b"dataset" else _sampler() for _ in range(2))
    try:
        it.load_state_dict(state)
    except ValueError as error:
        refused(error, type(it).__name__)
        state = fresh.state_dict()
    whole = {number: fresh.state_dict()[number] for number in ("seed", "budget", "target_budget", "shuffle")}
    assert whole == {number: state[number] for number in whole}
    numbers = [state[each] for each in ("epoch", "step", "row_groups", "batches") if each in fresh.state_dict()]
    assert all(type(number) is int and 0 <= number < 2**63 for number in numbers), numbers
    if (
        name == b"dataset"
        and (state["workers"], state["worker"]) != (1, 0)
        and (state["row_groups"] or state["batches"])
    ):
        return  # which the iterator refuses, by its worker
    fresh.set_epoch(state["epoch"])
    batches = [_plain(batch) for batch in fresh]
    left = [_plain(batch) for batch in it]
    assert left == (batches[len(batches) - len(left) :])
    if name == b"sampler":
        assert len(left) == max(0, len(batches) - state["step"])


def _plain(batch: Any) -> Any:
    if not isinstance(batch, RequestBatch):
        return batch
    return [batch.target_offsets.tolist(), *(x.tolist() for x in batch.targets.values())]
