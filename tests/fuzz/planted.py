"""Faults that are put into what reads, at run time: a fuzzer that does not find each of them finds nothing."""

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def _abort(real: Callable[..., Any]) -> Callable[..., Any]:
    def read(body: bytes) -> Any:
        found = real(body)
        if any(x.ndim == 2 and len(x) == 1 for x in found.values()):
            os.abort()
        return found

    return read


def _wrong_type(real: Callable[..., Any]) -> Callable[..., Any]:
    def checked(tensors: Any, pool: Any) -> Any:
        users = real(tensors, pool)
        if len(users) > 3:
            raise KeyError(users[3])
        return users

    return checked


def _leading_zeros(_: Callable[..., Any]) -> Callable[..., Any]:
    """What Arrow takes for integers, 007 among them, is taken."""
    import pyarrow as pa

    def integers(column: pa.Array) -> pa.Array | None:
        try:
            return column.cast(pa.int64())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return None

    return integers


def _rounded(real: Callable[..., Any]) -> Callable[..., Any]:
    """Targets see their histories from the start where a feature is missing."""

    def read(path: Any, number: int, widths: Any) -> Any:
        batch = real(path, number, widths)
        if batch.visible is not None and "new" not in batch.history:
            batch.visible[:, 0] = 0
        return batch

    return read


def _hang(real: Callable[..., Any]) -> Callable[..., Any]:
    def checked(op: str, state: Any, own: Any, place: Any = ()) -> None:
        real(op, state, own, place)
        while state.get("epoch", 0) > 2:
            time.sleep(0.01)

    return checked


def _memory(real: Callable[..., Any]) -> Callable[..., Any]:
    """A length that a file states is believed."""

    def kept(text: bytes, log: Any) -> Any:
        found = real(text, log)
        if len(found) != 2:
            np.ones(1 << 33, dtype=np.int64)
        return found

    return kept


# By name: the reader, the module and what of it is replaced.
PLANTED: dict[str, tuple[str, str, str, Callable[[Callable[..., Any]], Callable[..., Any]]]] = {
    "abort": ("bodies", "serve.bodies", "load", _abort),
    "wrong type": ("snapshots", "stca.serving.snapshots", "_checked", _wrong_type),
    "wrong ids": ("text", "stca.data.cells", "as_integers", _leading_zeros),
    "wrong range": ("batches", "stca.data.dataset", "read_row_group", _rounded),
    "hang": ("states", "stca.token_budget", "check_state", _hang),
    "memory": ("names", "stca.data.ids", "_kept", _memory),
}


def plant(name: str) -> None:
    """Replaces the function."""
    import importlib

    _, module, function, fault = PLANTED[name]
    place = importlib.import_module(module)
    setattr(place, function, fault(getattr(place, function)))
