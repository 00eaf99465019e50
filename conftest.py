"""What doctests (`pytest --doctest-modules stca`) use without importing it, and a torchrec where there is none."""

import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import stca


class KeyedJaggedTensor:
    """As much of torchrec's as `stca.batch` uses; tests marked `peers` hold the package against the real one."""

    def __init__(self, keys: Sequence[str], values: Tensor, lengths: Tensor) -> None:
        self._keys, self._values, self._lengths = list(keys), values, lengths

    def keys(self) -> list[str]:
        """Names of the features."""
        return self._keys

    def values(self) -> Tensor:
        """Values of all keys, one key behind the other."""
        return self._values

    def lengths(self) -> Tensor:
        """Of every key's lists."""
        return self._lengths

    def offsets(self) -> Tensor:
        """Where each list begins, and the end."""
        return torch.cat([self._lengths.new_zeros(1), self._lengths.cumsum(0)])


@pytest.fixture(autouse=True)
def _doctest_names(
    request: pytest.FixtureRequest, doctest_namespace: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    doctest_namespace.update(torch=torch, stca=stca)
    torch.manual_seed(0)
    if isinstance(request.node, pytest.DoctestItem) and importlib.util.find_spec("torchrec") is None:
        module: Any = ModuleType("torchrec.sparse.jagged_tensor")
        module.KeyedJaggedTensor = KeyedJaggedTensor
        for name in ("torchrec", "torchrec.sparse"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.setitem(sys.modules, module.__name__, module)
