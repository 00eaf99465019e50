"""examples/train.py in two ranks that are forked from a process which has imported it: quick to start, and to kill."""

import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from service_process import free_port

EXAMPLES = Path(__file__).parents[2] / "examples"
HELPERS = Path(__file__).parent
CAP_DAC_OVERRIDE = 1


def _jumping_time(seed: int) -> None:
    """time.time() of this process jumps by up to a year, there and back."""
    rng, real = np.random.default_rng(seed), time.time
    time.time = lambda: real() + float(rng.uniform(-3e7, 3e7))


def obey_permissions() -> None:
    """Takes from root, if this process is root's, the right to write to what is read-only."""
    if os.getuid() != 0:
        return
    libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    for which in range(3):  # effective, permitted, inheritable
        sets[which] &= ~(1 << CAP_DAC_OVERRIDE)
    assert libc.capset(header, sets) == 0


def limit_files(size: int) -> None:
    """Refuses files of more than so many bytes, as a full disk would."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _rank(rank: int, world_size: int, port: int, words: list[str], fault: str) -> None:
    """One rank, with what it prints in a file; `fault` is what befalls it."""
    with (Path(words[words.index("--out") + 1]) / f"rank{rank}.txt").open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    settings = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in settings.items()} | {"MASTER_ADDR": "127.0.0.1"}
    import train
    from ranker.ranks import joined

    torch.set_num_threads(1)
    if fault == "clock":
        _jumping_time(rank)
    if fault == "full disk":
        limit_files(400_000)
    if fault == "read-only":
        obey_permissions()
    args = train.parse(words)
    with joined(args.patience):
        train.train(args)


def start(words: list[str], world_size: int = 2, ranks: Sequence[int] = (0, 1), fault: str = "") -> list[BaseProcess]:
    """Starts these ranks."""
    paths = [str(EXAMPLES), str(HELPERS)]
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    sys.path += [path for path in paths if path not in sys.path]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train", "killed"])
    port = free_port()
    processes: list[BaseProcess] = [
        context.Process(target=_rank, args=(rank, world_size, port, words, fault)) for rank in ranks
    ]
    for process in processes:
        process.start()
    return processes


def ended(processes: Sequence[BaseProcess], seconds: float = 150) -> list[int | None]:
    """Exit codes, once all have ended; who has not in time is killed, and the test fails."""
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    late = [i for i, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        with suppress(ProcessLookupError):
            process.kill()
        process.join(10)
    assert not late, f"ranks {late} were not done after {seconds} s"
    return [process.exitcode for process in processes]


def checkpoint(folder: Path) -> Any:
    """What the run left."""
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def same(a: Any, b: Any) -> bool:
    """Whether two checkpoints agree to the bit: weights, moments, and which batches were taken."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)
