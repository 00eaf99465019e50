"""One test in several processes that talk by gloo, and that end whatever happens to one of them."""

import faulthandler
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

Worker = Callable[..., Any]


def run_ranks(worker: Worker, world_size: int, folder: Path, *args: Any, seconds: float = 120) -> list[Any]:
    """What worker(rank, *args) returns in each of `world_size` processes; `folder` is empty.

    A rank that raises, or that is not done in time, ends them all and fails the test; one that hangs prints where.
    """
    context: Any = torch.multiprocessing.spawn(  # type: ignore[attr-defined,no-untyped-call]
        _rank, (worker, world_size, str(folder), seconds, args), nprocs=world_size, join=False, daemon=True
    )
    end = time.monotonic() + seconds
    while not context.join(timeout=max(0.0, end - time.monotonic())):
        if time.monotonic() >= end:
            late = [rank for rank, process in enumerate(context.processes) if process.is_alive()]
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"{worker.__name__}: ranks {late} of {world_size} were not done after {seconds} s")
    return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]


def _rank(rank: int, worker: Worker, world_size: int, folder: str, seconds: float, args: tuple[Any, ...]) -> None:
    faulthandler.dump_traceback_later(0.9 * seconds)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=seconds),
    )
    torch.save(worker(rank, *args), Path(folder, f"{rank}.pt"))  # the worker's own objects are gone by now
    dist.barrier()  # nobody leaves while another still talks
    dist.destroy_process_group()
