"""Numbers on command lines, refused by their option before any work is done."""

import math
from argparse import ArgumentTypeError
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

Number = TypeVar("Number", int, float)


def at_least(least: Number) -> Callable[[str], Number]:
    """What argparse calls `type`: a finite number of the kind of `least`, and at least that."""
    kind = type(least)

    def number(text: str) -> Number:
        with suppress(ValueError):
            value = kind(text)
            if least <= value < math.inf:
                return value
        raise ArgumentTypeError(f"must be {'an integer' if kind is int else 'a number'} from {least} on, got {text!r}")

    return number
