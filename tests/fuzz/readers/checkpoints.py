"""Checkpoints of the examples, as the service and the training load them."""

import io
import zipfile
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import torch
from ranker.checkpoint import load_checkpoint
from serve.scorer import Scorer
from service_process import ScratchStore, write_checkpoint

from readers import refused
from readers.names import packed, unpacked
from readers.values import changed_bytes

_store = ScratchStore()


def seeds() -> dict[str, bytes]:
    """One that the service takes, and that without what training adds to it."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path = write_checkpoint(Path(folder, "ranker.pt"))
        saved = torch.load(path, weights_only=True)
        small = io.BytesIO()
        torch.save({"settings": "x", "state": {}, "model": {"a": torch.arange(3)}, "steps": 3}, small)
        assert saved
        return {"ranker": path.read_bytes(), "small": small.getvalue()}


def mutate(data: bytes, rng: Random) -> bytes:
    """A record of the archive changed, or what the checkpoint holds."""
    if rng.random() < 0.5:
        with suppress(Exception):
            saved = torch.load(io.BytesIO(data), weights_only=True)
            _change(saved, rng)
            torch.save(saved, out := io.BytesIO())
            return out.getvalue()
    files = unpacked(data)
    if not files or rng.random() < 0.1:
        return changed_bytes(data, rng)
    pickles = [name for name in files if name.endswith(".pkl")]
    name = rng.choice(pickles if pickles and rng.random() < 0.7 else [*files])
    files[name] = changed_bytes(files[name], rng)
    if rng.random() < 0.2:
        return packed(files)
    with zipfile.ZipFile(out := io.BytesIO(), "w") as archive:
        for each, content in files.items():
            archive.writestr(zipfile.ZipInfo(each), content)
    return out.getvalue()


def _change(saved: Any, rng: Random) -> None:
    """Replaces, removes or distorts one entry, at any depth."""
    name = rng.choice([*saved])
    if isinstance(saved[name], dict) and saved[name] and rng.random() < 0.9:
        return _change(saved[name], rng)
    x, draw = saved[name], rng.randrange(6)
    if draw == 0:
        del saved[name]
    elif isinstance(x, torch.Tensor) and draw < 5:
        options = (x[:0], x.double(), x.reshape(-1), x.new_ones(1).expand(10 ** rng.randrange(14), *x.shape[1:]))
        saved[name] = rng.choice((*options, x.to_sparse(), x.to("meta"), x.new_full(x.shape, 2)))
    else:
        saved[name] = rng.choice((None, [], {}, "", 0, -1, 2**70, torch.zeros(()), torch.ones(2, 2)))
    return None


def check(data: bytes, folder: Path) -> None:
    """What is taken holds what was asked for, each tensor as `torch.load` has it; the service takes it or names it."""
    (path := folder / "ranker.pt").write_bytes(data)
    try:
        saved = load_checkpoint(path, ("model", "settings"))
    except ValueError as error:
        refused(error, path)
        saved = None
    else:
        again = torch.load(path, map_location="cpu", weights_only=True)
        assert list(saved) == list(again)
    try:
        scorer = Scorer(path, _store, 64, 8, page_rows=16)
    except ValueError as error:
        refused(error, path)
        return
    assert saved is not None
    weights = saved["state"]["best_model"] or saved["model"]
    for name, weight in scorer.model.state_dict().items():
        assert torch.equal(weight, weights[name].to(weight.dtype)) or weight.isnan().any()
    scorer.catch_up([0])
