"""examples/train_ranker.py in several processes: the training of one process, whatever happens to one of them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import run_ranks
from ranker.generate import generate_log
from ranker.model import Ranker
from ranker.requests import make_requests, split_by_time
from ranker.train import Config, Training
from torch import Tensor

from stca.lengths import TokenBudgetSampler

CONFIG = Config(epochs=1, budget=600, max_length=300, average_length=100, min_length=8, learning_rate=0.1, warmup=1)
ROOT = Path(__file__).resolve().parents[2]


def _train(rank: int = 0, kind: type[Training] = Training) -> dict[str, Tensor]:
    requests = make_requests(generate_log(num_users=2, requests_per_user=60, num_items=1200))
    torch.manual_seed(0)
    model = Ranker(requests.num_items, requests.num_users, dim=16, dropout=0.0)
    training = kind(model, requests, split_by_time(requests), CONFIG, None)
    training.optimizer = torch.optim.SGD(model.parameters())  # type: ignore[assignment]  # follows the gradients' sizes
    training.run("test")
    assert training.state["epoch"] == CONFIG.epochs
    return dict(model.state_dict())


class _Joined(TokenBudgetSampler):
    """Of one process: what the two ranks of the same arguments get, together."""

    def _batches(self) -> list[list[int]]:
        ranks = [TokenBudgetSampler(self.lengths, self.budget, seed=self.seed, rank=r, world_size=2) for r in range(2)]
        for sampler in ranks:
            sampler.set_epoch(self.epoch)
        return [first + second for first, second in zip(*ranks, strict=True)]


class _OneProcess(Training):
    def _batches(self) -> Any:
        sampler, drawn = super()._batches()
        joined = _Joined(sampler.lengths, sampler.budget, seed=sampler.seed)
        joined.load_state_dict(sampler.state_dict())
        return joined, drawn


def test_two_processes_train_as_one_on_the_joined_batches(tmp_path: Path) -> None:
    expected = _train(kind=_OneProcess)
    first, second = run_ranks(_train, 2, tmp_path)
    for name, x in expected.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], x, rtol=1e-4, atol=1e-5)


def _start(log: Path, out: Path) -> subprocess.Popen[bytes]:
    sizes = "--epochs 2 --dim 16 --layers 1 --budget 500 --average-length 64 --max-length 256 --save-every 2"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"]
    script = ["--", str(ROOT / "examples" / "train_ranker.py"), "--log", str(log), "--out", str(out), *sizes.split()]
    with Path(f"{out}.txt").open("wb") as file:
        return subprocess.Popen(torchrun + script, stdout=file, stderr=file, env=os.environ | {"OMP_NUM_THREADS": "1"})


def _process_of_rank_1(torchrun: int) -> int | None:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == torchrun and b"\0RANK=1\0" in (folder / "environ").read_bytes():
                return int(folder.name)
        except (OSError, IndexError):  # gone by now
            pass
    return None


def _kill_rank_1_in_mid_epoch(torchrun: subprocess.Popen[bytes], checkpoint: Path) -> int:
    """Waits for a moment between two checkpoints of an epoch; the process that was killed."""
    while torchrun.poll() is None:
        time.sleep(0.02)
        process = _process_of_rank_1(torchrun.pid)
        if process is None or not checkpoint.exists():
            continue
        os.kill(process, signal.SIGSTOP)  # rank 0 waits for it from the next step on
        time.sleep(0.5)
        state = torch.load(checkpoint, weights_only=True)["state"]
        if state["step"] > 0 and state["epoch"] < 2:
            os.kill(process, signal.SIGKILL)
            return process
        os.kill(process, signal.SIGCONT)
    raise AssertionError("torchrun ended before a process could be killed")


@pytest.mark.slow
def test_a_killed_process_changes_nothing(tmp_path: Path) -> None:
    rng, events = np.random.default_rng(0), 6000
    log = tmp_path / "log.csv"
    rows = zip(*(rng.integers(0, high, events) for high in (6, 50, 10**6, 2)), strict=True)
    log.write_text("user_id,item_id,timestamp,label\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    name = "log.csv-STCA.pt"
    runs = {}
    for disturbed in (False, True):
        out = tmp_path / str(disturbed)
        torchrun = _start(log, out)
        try:
            if disturbed:
                killed = _kill_rank_1_in_mid_epoch(torchrun, out / name)
                while (other := _process_of_rank_1(torchrun.pid)) in (None, killed):
                    assert torchrun.poll() is None, Path(f"{out}.txt").read_text()
                    time.sleep(0.1)
                assert other != killed  # torchrun has started another in its place
            assert torchrun.wait(timeout=200) == 0, Path(f"{out}.txt").read_text()
        finally:
            torchrun.terminate()
            torchrun.wait()
        report = json.loads((out / "report.json").read_text())
        weights = torch.load(out / name, weights_only=True)["model"]
        runs[disturbed] = {"served": report["served"], "baselines": report["baselines"]}, weights
    assert runs[True][0] == runs[False][0]  # AUC and loss, to the last digit
    for key, x in runs[False][1].items():
        assert torch.equal(runs[True][1][key], x)
