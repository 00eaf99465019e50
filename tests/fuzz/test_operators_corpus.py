"""Calls that once went wrong, and the first of the random ones; faults are seen by the judge."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

import operators_planted
from operators_calls import random_call
from operators_judge import judge

import stca

CORPUS = sorted((Path(__file__).parent / "operators_corpus").glob("*.json"))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_corpus(path: Path) -> None:
    recipe = json.loads(path.read_text())
    assert judge(recipe) in ("equal", "refused", "huge")


def test_first_calls() -> None:
    outcomes = [judge(random_call(seed)) for seed in range(60)]
    assert {"equal", "refused"} <= {*outcomes}


@pytest.mark.parametrize(("fault", "says"), [("wrong value", "error"), ("no check", "wrong"), ("wrong error", "must")])
def test_faults_are_seen(fault: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for op in stca.ops.__all__:  # as they are, afterwards
        monkeypatch.setattr(stca.ops, op, getattr(stca.ops, op))
    operators_planted.plant(fault)
    with pytest.raises((AssertionError, KeyError), match=says):
        list(map(judge, map(random_call, range(300))))
