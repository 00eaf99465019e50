"""Operators with a fault each, in a child of operators.py: what it does not find of these it would not find of ours."""

import os
from collections.abc import Callable
from typing import Any

import torch

import stca


def _ends(f: Callable[..., Any], *args: Any, **options: Any) -> Any:
    os.abort()


def _hangs(f: Callable[..., Any], *args: Any, **options: Any) -> Any:
    while True:
        pass


def _takes_memory(f: Callable[..., Any], *args: Any, **options: Any) -> Any:
    kept = [torch.ones(2**26) for _ in range(16)]
    result = f(*args, **options)
    del kept
    return result


def _wrong_value(f: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return f(*args, **options) * (1 + 2**-4)


def _wrong_error(f: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return f(*args, **options)
    except ValueError as error:
        raise KeyError(str(error)) from None


def _no_check(f: Callable[..., Any], x: Any, target_offsets: Any, **options: Any) -> Any:
    try:
        return f(x, target_offsets, **options)
    except ValueError:
        return x


FAULTS = {
    "ends": ("request_reduce", _ends),
    "hangs": ("request_reduce", _hangs),
    "takes memory": ("request_reduce", _takes_memory),
    "wrong value": ("swiglu_ffn_norm", _wrong_value),
    "wrong error": ("jagged_select", _wrong_error),
    "no check": ("request_gather", _no_check),
}


def plant(fault: str) -> None:
    """Puts the operator with that fault in the operator's place."""
    op, faulty = FAULTS[fault]
    right = getattr(stca.ops, op)
    setattr(stca.ops, op, lambda *args, **options: faulty(right, *args, **options))
