"""Training that is killed, stopped, slowed or refused its disk ends as undisturbed training does, or says why not."""

import os
import re
import signal
import time
from contextlib import suppress
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch.distributed as dist
from killed import checkpoint, ended, same, start
from ranker import ranks
from ranker.generate import generate_log

pytestmark = pytest.mark.slow


class Undisturbed:
    """A run to compare with: its words, checkpoint and seconds."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log.parquet"
        pq.write_table(generate_log(num_users=8, requests_per_user=60, num_items=1100), self.log)
        out = folder / "undisturbed"
        ended(start(self.words(out, steps=1)))  # starts the process that ranks are forked from
        (out / "checkpoint.pt").unlink()
        begin = time.monotonic()
        assert ended(start(self.words(out))) == [0, 0], told(out)
        self.seconds, self.checkpoint = time.monotonic() - begin, checkpoint(out)

    def words(self, out: Path, steps: int = 9, patience: float = 60) -> list[str]:
        """The command line."""
        out.mkdir(exist_ok=True)
        sizes = f"--steps {steps} --every 2 --budget 300 --max-length 128 --average-length 32 --patience {patience}"
        return ["--log", str(self.log), "--out", str(out), *sizes.split()]


def told(out: Path) -> str:
    """What the ranks printed."""
    return "\n".join(path.read_text() for path in sorted(out.glob("rank*.txt")))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("faults"))


def _kill(processes: list[BaseProcess], rank: int) -> None:
    pid = processes[rank].pid
    assert pid is not None
    with suppress(ProcessLookupError):  # it may be done by then
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("moment", [*range(4), *(pytest.param(i, marks=pytest.mark.long) for i in range(4, 20))])
def test_a_rank_killed_at_any_moment_changes_nothing(undisturbed: Undisturbed, tmp_path: Path, moment: int) -> None:
    """Both ranks end by themselves; started again they end with the same weights, moments and batches."""
    rng = np.random.default_rng(moment)
    words = undisturbed.words(tmp_path)
    processes = start(words)
    time.sleep(rng.uniform(0, undisturbed.seconds))
    rank = int(rng.integers(2))
    _kill(processes, rank)
    codes = ended(processes)
    assert codes[rank] in (-signal.SIGKILL, 0)  # it may have ended just before
    assert ended(start(words)) == [0, 0], told(tmp_path)
    assert same(checkpoint(tmp_path), undisturbed.checkpoint)


def test_a_lost_step_would_be_found(undisturbed: Undisturbed, tmp_path: Path, record_property: Any) -> None:
    record_property("planted", 1)
    assert ended(start(undisturbed.words(tmp_path, steps=8))) == [0, 0], told(tmp_path)
    found = checkpoint(tmp_path)
    assert not same(found["model"], undisturbed.checkpoint["model"])
    assert not same(found["datasets"], undisturbed.checkpoint["datasets"])
    record_property("caught", 1)


def test_a_slow_rank_and_a_jumping_clock_change_nothing(undisturbed: Undisturbed, tmp_path: Path) -> None:
    processes = start(undisturbed.words(tmp_path), fault="clock")
    pid = processes[1].pid
    assert pid is not None
    for _ in range(4):
        time.sleep(undisturbed.seconds / 4)
        with suppress(ProcessLookupError):  # it may be done by then
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.5)
            os.kill(pid, signal.SIGCONT)
    assert ended(processes) == [0, 0], told(tmp_path)
    assert same(checkpoint(tmp_path), undisturbed.checkpoint)


def test_a_rank_that_hangs_is_not_waited_for(undisturbed: Undisturbed, tmp_path: Path) -> None:
    words = undisturbed.words(tmp_path, steps=100_000, patience=5)
    processes = start(words)
    end = time.monotonic() + 120
    while not (tmp_path / "checkpoint.pt").exists():
        assert time.monotonic() < end, told(tmp_path)
        time.sleep(0.05)
    pid = processes[1].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        assert ended(processes[:1], 60) == [1]
    finally:
        _kill(processes, 1)
        ended(processes)
    assert "TimeoutError: rank 0 of 2: waited 5 s for another rank: " in told(tmp_path)


@pytest.mark.parametrize(("comes", "message"), [(0, "1/2 clients joined"), (1, "timed out .*127.0.0.1")])
def test_a_rank_that_never_comes(undisturbed: Undisturbed, tmp_path: Path, comes: int, message: str) -> None:
    assert ended(start(undisturbed.words(tmp_path, patience=5), ranks=[comes]), 60) == [1]
    assert re.search(f"TimeoutError: rank {comes} of 2: waited 5 s for another rank: .*{message}", told(tmp_path)), (
        told(tmp_path)
    )


def test_who_does_not_come_to_a_common_store_is_named() -> None:
    """torchrun's processes meet there."""
    with pytest.raises(TimeoutError, match=r"rank 0 of 3: waited 1 s for rank 1, rank 2 to come"):
        ranks._meet(dist.HashStore(), 0, 3, timedelta(seconds=1))  # type: ignore[attr-defined]


def test_a_full_disk_leaves_the_checkpoint_of_before(undisturbed: Undisturbed, tmp_path: Path) -> None:
    assert ended(start(undisturbed.words(tmp_path), fault="full disk"))[0] == 1
    assert re.search(r"OSError: .*checkpoint\.pt: cannot be written: File too large", told(tmp_path)), told(tmp_path)
    assert not [path.name for path in tmp_path.iterdir() if path.suffix in (".pt", ".part")]
    assert ended(start(undisturbed.words(tmp_path))) == [0, 0], told(tmp_path)
    assert same(checkpoint(tmp_path), undisturbed.checkpoint)


def test_a_read_only_folder_is_refused_by_name(undisturbed: Undisturbed, tmp_path: Path) -> None:
    words = undisturbed.words(tmp_path)
    for file in ("rank0.txt", "rank1.txt"):
        (tmp_path / file).touch()
    tmp_path.chmod(0o555)
    assert ended(start(words, fault="read-only"))[0] == 1
    assert "the folder must exist and be writable, to write there" in told(tmp_path), told(tmp_path)
    assert not list(tmp_path.glob("*.p*"))
