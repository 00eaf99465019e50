"""The processes that torchrun started, or the only one."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")


@contextmanager
def joined(seconds: float = 1800) -> Iterator[None]:
    """Talks with the other processes, if there are any, until the end of the block.

    Args:
        seconds: that this process waits for another at most, whatever for.

    Raises:
        TimeoutError: longer than that, by what was waited for.
    """
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    wait = timedelta(seconds=seconds)
    who = f"rank {os.environ.get('RANK')} of {os.environ['WORLD_SIZE']}"
    try:
        # A name for every restart: in torch 2.13 processes of torchrun find the addresses of those before them.
        store, number, processes = next(dist.rendezvous("env://", timeout=wait))  # type: ignore[attr-defined]
        own = dist.distributed_c10d.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        _meet(own, number, processes, wait)
        dist.init_process_group(store=own, rank=number, world_size=processes, timeout=wait)
        yield
        dist.barrier()  # nobody leaves while another still works
        dist.destroy_process_group()
    except RuntimeError as error:  # of gloo and of stores, which have no type for it
        if re.search("timed? ?out", str(error), re.IGNORECASE):
            raise TimeoutError(f"{who}: waited {seconds:g} s for another rank: {error}") from error
        raise


def _meet(store: Any, number: int, processes: int, wait: timedelta) -> None:
    """Waits until every rank has come, and says who has not."""
    names = [f"rank {i}" for i in range(processes)]
    store.set(names[number], "here")
    try:
        store.wait(names, wait)
    except RuntimeError as error:
        missing = [name for name in names if not store.check([name])]
        raise TimeoutError(
            f"{names[number]} of {processes}: waited {wait.total_seconds():g} s for {', '.join(missing)} to come"
        ) from error


def device() -> torch.device:
    """This process's GPU, or the CPU where there is none."""
    number = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", number) if torch.cuda.is_available() else torch.device("cpu")


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def replicated(model: nn.Module) -> nn.Module:
    """The model, with gradients that are the mean over all processes."""
    return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False) if world_size() > 1 else model


def total(*counts: int) -> list[int]:
    """Sums over all processes."""
    summed = torch.tensor(counts)
    if world_size() > 1:
        dist.all_reduce(summed)
    return summed.tolist()


def gathered(x: T) -> list[T]:
    """What each process has, by rank."""
    if world_size() == 1:
        return [x]
    parts = [x] * world_size()
    dist.all_gather_object(parts, x)
    return parts
