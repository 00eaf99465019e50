"""Checkpoints: read whole, or refused by their name."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@contextmanager
def whole_checkpoint(path: Path, hint: str = "") -> Iterator[None]:
    """A block that reads a checkpoint, or puts it into a model: what fails there is the file's fault, and names it."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # as many kinds as there are broken files; torch.distributed's are no Exception
        raise ValueError(f"{path}: must be a whole checkpoint{hint}: {error!r}") from error


def load_checkpoint(path: Path, needed: Iterable[str], hint: str = "", device: torch.device | None = None) -> Any:
    """What `torch.save` wrote: a dictionary of tensors and plain values, no code.

    Args:
        path: of the file.
        needed: what it must hold.
        hint: what else a message is to say.
        device: where its tensors go; None: the CPU.

    Raises:
        ValueError: a file that is no whole checkpoint, lacks something, or holds fewer elements than its tensors claim.
    """
    with whole_checkpoint(path, hint):
        saved = torch.load(path, map_location=device or "cpu", weights_only=True)
        if lacks := [name for name in needed if name not in saved]:
            raise LookupError(f"{lacks[0]} is missing, got {[*saved]}")
        for x in _tensors(saved):
            # Strides of 0 claim more memory than the file has bytes, and other layouts check nothing.
            if x.layout != torch.strided or x.is_meta or x.nbytes > x.untyped_storage().nbytes():
                raise ValueError(f"tensors must hold each of their elements, got one of {list(x.shape)}")
        return saved


def check_settings(path: Path, needed: dict[str, Any], found: Any, hint: str) -> None:
    """Raises ValueError that names what differs, unless what a run left was made with the settings of this run."""
    if not isinstance(found, dict):
        raise ValueError(f"{path}: must hold settings{hint}, got {found!r}")
    # As text, for a stranger's file may hold tensors, which do not compare to a truth value.
    ours, theirs = ({str(name): str(value) for name, value in each.items()} for each in (needed, found))
    if differ := [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]:
        wanted, got = (", ".join(f"{name} = {each.get(name, 'missing')}" for name in differ) for each in (ours, theirs))
        raise ValueError(f"{path}: must be of {wanted}{hint}, got {got}")


def _tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, dict | list | tuple):
        for each in x.values() if isinstance(x, dict) else x:
            yield from _tensors(each)
