"""The processes that torchrun started, or the only one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")


@contextmanager
def joined() -> Iterator[None]:
    """Talks with the other processes, if there are any, until the end of the block."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    # A name of its own for every restart: in torch 2.13 processes of torchrun find the addresses of those before them.
    store, number, processes = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    own = dist.distributed_c10d.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(store=own, rank=number, world_size=processes)
    yield
    dist.barrier()  # nobody leaves while another still works
    dist.destroy_process_group()


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
