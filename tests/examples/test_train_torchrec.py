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


def _interrupted(rank: int, folder: str) -> list[bool]:
    """Whether a run that ends amid a step, and another after it, leave what an undisturbed one does; and a refusal."""
    import train_torchrec

    example: Any = train_torchrec
    made: list[Any] = []
    sharded, loss, calls = example.sharded, example.bce_loss, 0

    def kept(learning_rate: float) -> Any:
        made.append(sharded(learning_rate))
        return made[-1]

    def run(out: str, steps: int = 10) -> float:
        args = _arguments(Path(folder), steps)
        args.out, args.every = Path(folder, out), 4
        return float(example.train(args))

    def stop(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        return loss(*args)

    example.sharded = kept
    expected = run("undisturbed")
    example.bce_loss = stop
    with pytest.raises(KeyboardInterrupt):
        run("interrupted")
    torch.manual_seed(123 + rank)
    same = [run("interrupted") == expected, calls == 7 + 6]  # from the fourth step on
    first, _, again = ([*model.state_dict().items()] for model in made)
    for (name, x), (_, y) in zip(first, again, strict=True):
        if name.startswith("tables"):
            x, y = (torch.cat([shard.tensor for shard in each.local_shards()]) for each in (x, y))
        same.append(torch.equal(x, y))
    states = [model.fused_optimizer.state_dict()["state"] for model in (made[0], made[2])]
    for one, other in zip(*(each.values() for each in states), strict=True):
        for x, y in zip(one.values(), other.values(), strict=True):
            same += [torch.equal(a.tensor, b.tensor) for a, b in zip(x.local_shards(), y.local_shards(), strict=True)]
    with pytest.raises(ValueError, match=r"checkpoint-10: must be of steps = 11 \(or .*\), got steps = 10$"):
        run("interrupted", 11)
    return [*same, [path.name for path in Path(folder, "interrupted").glob("checkpoint-*")] == ["checkpoint-10"]]


def test_an_interrupted_run_goes_on_exactly(tmp_path: Path) -> None:
    """Weights, rows of tables and what Adagrad knows of them, of each process's own part."""
    pytest.importorskip("torchrec", exc_type=ImportError)
    pq.write_table(generate_log(num_users=20, requests_per_user=60, num_items=1100), tmp_path / "log.parquet")
    (tmp_path / "ranks").mkdir()
    for same in run_ranks(_interrupted, 2, tmp_path / "ranks", str(tmp_path), seconds=200):
        assert all(same), same
        assert len(same) > 40


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
