"""examples/train_torchrec.py: sharded tables train in two processes, and serve what tables in one process do."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import train
from processes import run_ranks
from ranker.generate import generate_log

from stca.batch import RequestBatch
from stca.data import RequestDataset

pytestmark = pytest.mark.peers


def _arguments(folder: Path, steps: int) -> Any:
    words = f"--log {folder / 'log.parquet'} --out {folder} --average-length 64 --budget 2000 --max-length 512"
    return train.parse([*words.split(), "--steps", str(steps)])


def _worker(rank: int, folder: str) -> dict[str, float]:
    import train_torchrec

    models, make = [], train_torchrec.sharded

    def sharded(learning_rate: float) -> Any:
        models.append(make(learning_rate))
        return models[-1]

    train_torchrec.sharded = sharded
    args = _arguments(Path(folder), 60)
    auc = train_torchrec.train(args)
    weights, plain = models[0].state_dict(), train_torchrec.Ranker(torch.device("cpu"))
    held = 0
    for name, x in plain.state_dict().items():
        if name.startswith("tables"):
            held += sum(shard.tensor.numel() for shard in weights[name].local_shards())
            weights[name].gather(dst=0, out=x if rank == 0 else None)
            dist.broadcast(x, 0)
        else:
            x.copy_(weights[name])
    path = Path(folder) / "requests.parquet"
    every = train.evaluate(plain, RequestDataset(path, 2000), train.last_tenth(path))
    return {"auc": auc, "of one process": every, "held": held, "all": 2 * train.ROWS * train.DIM}


def test_two_processes_serve_what_one_does(tmp_path: Path) -> None:
    pytest.importorskip("torchrec", exc_type=ImportError)
    pq.write_table(generate_log(num_users=20, requests_per_user=60, num_items=1100), tmp_path / "log.parquet")
    (tmp_path / "ranks").mkdir()
    first, second = run_ranks(_worker, 2, tmp_path / "ranks", str(tmp_path))
    assert first["auc"] == second["auc"] > 0.6
    assert abs(first["auc"] - first["of one process"]) < 1e-5
    assert first["held"] == second["held"] == first["all"] / 2


def test_ids_are_looked_up_once_however_many_targets_there_are() -> None:
    pytest.importorskip("torchrec", exc_type=ImportError)
    import train_torchrec

    items = torch.tensor([3, 4, train.ROWS + 5])
    targets = {"item_id": torch.arange(4), "user_id": torch.tensor([1, 1, 1, 2])}
    batch = RequestBatch({"item_id": items}, torch.tensor([0, 2, 3]), targets, torch.tensor([0, 3, 4]))
    keyed = train_torchrec.keyed(batch)
    assert keyed.to_dict()["history_item_id"].values().tolist() == [3, 4, 5]
    assert keyed.values().numel() == batch.N + 2 * batch.T
    assert keyed.lengths().tolist() == [2, 1, 3, 1, 3, 1]
    nothing = train_torchrec.keyed(batch.filter(torch.zeros(4, dtype=torch.bool)))
    assert (nothing.stride(), nothing.values().numel()) == (1, 0)
