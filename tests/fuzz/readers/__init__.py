"""What reads files of others, a module each: `seeds` are valid inputs, `mutate` changes one, `check` reads one.

`check` returns where the result is what an independent reader makes of the same bytes, or where they were refused as
docs/errors.md says. Whatever else it raises is a finding.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from random import Random
from typing import NamedTuple

NAMES = ("bodies", "snapshots", "text", "tables", "batches", "checkpoints", "states", "names", "clones")


class Reader(NamedTuple):
    """A module of this folder."""

    name: str
    seeds: Callable[[], dict[str, bytes]]
    mutate: Callable[[bytes, Random], bytes]
    check: Callable[[bytes, Path], None]


def reader(name: str) -> Reader:
    """The reader of that name, with what it reads imported only now, so that its imports can be watched."""
    module = import_module(f"readers.{name}")
    return Reader(name, module.seeds, module.mutate, module.check)


def refused(error: Exception, owner: Path | str) -> None:
    """A refusal must name the file, or who speaks."""
    if not str(error).startswith(str(owner)):
        raise AssertionError(f"{owner} must be named by the error, got {error!r}") from error
