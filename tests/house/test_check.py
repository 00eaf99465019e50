"""`python -m stca.check`: what a user runs first."""

import re

import pytest
import torch
from cases import ISAS

import stca
from stca import check


def test_all_is_right_here(capsys: pytest.CaptureFixture[str]) -> None:
    before = stca.cpu_isa()
    assert check.main() == 0
    printed = capsys.readouterr().out
    assert f"torch {torch.__version__}" in printed
    assert str(stca.native.LIBRARY) in printed
    for isa in ISAS:
        assert len(re.findall(rf"^CPU, {isa} +\w+ +{len(check.CASES)} cases", printed, re.MULTILINE)) == 4
    assert re.search(r"^all right, [\d.]+ s$", printed, re.MULTILINE)
    assert stca.cpu_isa() == before


def test_every_operator_has_a_case() -> None:
    assert {name.partition(",")[0] for name in check.CASES} == set(stca.ops.__all__)


@pytest.mark.parametrize("name", stca.ops.__all__)
def test_an_operator_that_is_off_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A result that is right and a gradient that is a tenth too large are found in float32."""
    oracle = getattr(stca.reference, name)

    def wrong(*args: object, recompute: bool = True) -> object:
        found = oracle(*args)
        first = found[0] if isinstance(found, tuple) else found
        first = 1.1 * first - 0.1 * first.detach()
        return (first, *found[1:]) if isinstance(found, tuple) else first

    monkeypatch.setattr(stca.ops, name, wrong)
    monkeypatch.setattr(check, "places", lambda: [("CPU", torch.device("cpu"), [torch.float32])])
    cases = sum(case.partition(",")[0] == name for case in check.CASES)
    assert check.main() == cases
    printed = capsys.readouterr().out
    assert printed.count(f"  OFF: {name}") == cases
    assert f"{cases} OFF" in printed
