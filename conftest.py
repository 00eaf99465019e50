"""Names that the doctests use without importing them (`pytest --doctest-modules stca`)."""

from typing import Any

import pytest
import torch

import stca


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace.update(torch=torch, stca=stca)
    torch.manual_seed(0)
