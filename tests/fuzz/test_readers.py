"""Inputs that were kept, those of every fault that was found among them, read as the fuzzers read them."""

from pathlib import Path
from random import Random

import pytest
from corpus import CORPUS, chosen, executable_lines, kept, lines_of
from planted import PLANTED
from readers import NAMES, reader, refused

INPUTS = [(name, each) for name in NAMES for each in kept(name)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_kept_inputs_are_read_or_refused(name: str, tmp_path: Path) -> None:
    it = reader(name)
    for data in {**it.seeds(), **kept(name)}.values():
        it.check(data, tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_changes_of_seeds(name: str, tmp_path: Path) -> None:
    """A change follows from its number alone, and some of twenty changes of a seed are no seed any more."""
    it, changes = reader(name), set[bytes]()
    for seed in it.seeds().values():
        for number in range(20):
            changes.add(changed := it.mutate(seed, Random(number)))
            assert len(changed) < 1 << 20
    assert len(changes) > 10
    it.check(min(changes, key=len), tmp_path)


def test_the_corpus_is_small() -> None:
    assert {path.stem for path in CORPUS.iterdir()} == set(NAMES)
    assert sum(path.stat().st_size for path in CORPUS.iterdir()) < 1 << 20
    assert len(INPUTS) < 400
    assert all(any(each.startswith("seed-") for each in kept(name)) for name in NAMES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fault", ["wrong type", "wrong ids", "memory"])
def test_a_check_can_fail(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An input that shows a planted fault is kept, and its check fails where the fault is there."""
    import importlib

    where, module, function, plant = PLANTED[fault]
    it, data = reader(where), kept(where)[f"found-planted-{fault.replace(' ', '-')}"]
    it.check(data, tmp_path)
    place = importlib.import_module(module)
    monkeypatch.setattr(place, function, plant(getattr(place, function)))
    if fault == "memory":
        monkeypatch.setattr("numpy.ones", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises((AssertionError, KeyError, MemoryError)):
        it.check(data, tmp_path)


def test_a_refusal_without_a_name_is_a_finding(tmp_path: Path) -> None:
    refused(ValueError(f"{tmp_path}: must be something else"), tmp_path)
    with pytest.raises(AssertionError, match="must be named by the error"):
        refused(ValueError("must be something else"), tmp_path)


def test_inputs_are_chosen_by_the_lines_that_they_reach(tmp_path: Path) -> None:
    it = reader("states")
    seed = it.seeds()["sampler-2"]
    lines = lines_of(it, seed, tmp_path)
    files = {Path(file).name for file, _ in lines}
    assert "token_budget.py" in files
    assert list(chosen(it, [seed, seed + b" "], 5).values()) == [seed]
    file = next(Path(file) for file, _ in lines if file.endswith("token_budget.py"))
    assert {line for each, line in lines if each == str(file)} & executable_lines(file)
