"""What doctests (`pytest --doctest-modules stca`) use without importing it, and the code blocks of docs/ and README."""

import importlib.util
from typing import Any

import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

import stca

pytest_collect_file = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()], pattern="*.md").pytest()


@pytest.fixture(autouse=True)
def _doctest_names(request: pytest.FixtureRequest, doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace.update(torch=torch, stca=stca)
    torch.manual_seed(0)
    if isinstance(request.node, pytest.DoctestItem):
        needed = any("torchrec" in example.source for example in request.node.dtest.examples)
        if needed and importlib.util.find_spec("torchrec") is None:
            pytest.skip("torchrec is not installed")
