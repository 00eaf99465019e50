"""A cache's file: what comes back, what is refused by its path, and what is left by who was killed."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from caches import selected
from safetensors import safe_open
from safetensors.torch import save_file

from stca.serving import HistoryCache


def _cache(storage: torch.dtype | None = None, capacity: int = 400, encoder: str = "one") -> HistoryCache:
    return HistoryCache(2, 8, capacity, storage=storage, page_rows=16, encoder=encoder)


def _filled(storage: torch.dtype | None = None) -> HistoryCache:
    cache = _cache(storage)
    for user, n in (("b\ud800", 50), (3, 0), ("3", 90), ("b\ud800", 7)):
        cache.append(user, [torch.randn(n, 8) for _ in range(2)], range(n) if user == "3" else None)
    cache.keep("3", 60)
    return cache


def _rows(cache: HistoryCache, user: int | str, until: int | None = None) -> list[torch.Tensor]:
    with cache.select([user], until=until) as chosen:
        return selected(chosen)


@pytest.mark.parametrize("storage", [None, torch.bfloat16, torch.int8])
def test_what_comes_back(tmp_path: Path, storage: torch.dtype | None) -> None:
    cache, again = _filled(storage), _cache(storage, capacity=320)
    cache.snapshot(tmp_path / "cache")
    again.load(tmp_path / "cache")
    for user, until in (("b\ud800", None), (3, None), ("3", None), ("3", 70)):
        before, after = _rows(cache, user, until), _rows(again, user, until)
        assert all(map(torch.equal, before, after))
    assert again.last_time("3") == 89
    statistics = again.statistics()
    again.load(tmp_path / "cache")  # who is there has what the file holds, or more
    assert again.statistics() == statistics
    small = _cache(storage, capacity=64)  # for who was used last
    small.load(tmp_path / "cache")
    assert ["3" in small, "b\ud800" in small] == [True, False]


def test_who_has_no_rows_left_and_who_has_too_many(tmp_path: Path) -> None:
    """Nothing that was forgotten on purpose is to come again, and one who finds no room keeps no other out."""
    cache, again = HistoryCache(1, 1, 40, page_rows=1), HistoryCache(1, 1, 8, page_rows=1)
    for user, count in (("kept", 3), ("large", 20), ("small", 2)):
        cache.append(user, [torch.zeros(count, 1)], range(count))
    cache.keep("kept", 0)
    cache.snapshot(tmp_path / "cache")
    again.load(tmp_path / "cache")
    assert ["kept" in again, "large" in again, "small" in again] == [True, False, True]
    assert [again.last_time("kept"), again.last_time("small")] == [2, 1]


def test_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    _filled().snapshot(path)
    whole = path.read_bytes()
    for wrong in (whole[:-1], whole[: len(whole) // 2], b"", b"PAR1", whole[:9]):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=f"^{path}: must be a whole snapshot of a HistoryCache"):
            _cache().load(path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=rf"^{path}: must be a snapshot of .*, got one of \{{\}}"):
        _cache().load(path)
    path.write_bytes(whole)
    pairs = HistoryCache(2, 8, 400, keep="keys_values", encoder="one")
    for other in (_cache(torch.int8), _cache(encoder="two"), HistoryCache(2, 9, 400, encoder="one"), pairs):
        with pytest.raises(ValueError, match=f"^{path}: must be a snapshot of .*'encoder': 'one'"):
            other.load(path)
        assert other.statistics().users == 0
    with pytest.raises(ValueError, match=r"no/cache: must be a whole snapshot"):
        _cache().load(tmp_path / "no/cache")


INT = torch.int64
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"users": None}, "tensor users must be JSON"),
    ({"users": b"[1, 2"}, "tensor users must be JSON"),
    ({"users": b"[" * 100_000}, "tensor users must be JSON"),
    ({"users": b'{"1": 2}'}, "tensor users must be a list of integers and texts"),
    ({"users": b'["b", 3, true]'}, "tensor users must be a list of integers and texts"),
    ({"users": b'["b", 3, 3]'}, "tensor users must differ, got 3 of whom 2 differ"),
    ({"users": torch.tensor([91, 93])}, r"tensor users must be torch.uint8 \[2\], got torch.int64 \[2\]"),
    ({"users": b'["b", 3]'}, r"tensor offsets must be torch.int64 \[3\], got torch.int64 \[4\]"),
    ({"offsets": torch.tensor([0, 57, 58, 116])}, "tensor offsets must go from 0 to the 117 rows"),
    ({"offsets": torch.tensor([0, 58, 57, 117])}, "tensor offsets must go from 0 to the 117 rows"),
    ({"offsets": torch.tensor([-1, 57, 57, 117])}, "tensor offsets must go from 0 to the 117 rows"),
    ({"times": torch.arange(117, 0, -1)}, "tensors times and last_times must never fall"),
    ({"last_times": torch.tensor([0, 0, 88])}, "tensors times and last_times must never fall"),
    ({"times": torch.zeros(9, 13, dtype=INT)}, r"tensor times must be torch.int64 \[117\], got torch.int64 \[9, 13\]"),
    ({"last_times": None}, r"tensor last_times must be torch.int64 \[3\], got None"),
    (
        {"layer1.0": torch.zeros(117, 1)},
        r"tensor layer1.0 must be torch.float32 \[117, 8\], got torch.float32 \[117, 1\]",
    ),
    ({"layer1.0": torch.zeros(116, 8)}, r"tensor layer1.0 must be torch.float32 \[117, 8\]"),
    ({"layer1.0": torch.zeros(117, 8, dtype=torch.float64)}, "tensor layer1.0 must be .*, got torch.float64"),
    ({"layer2.0": torch.zeros(117, 8)}, "tensor layer2.0 must be None, got"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_files_that_are_whole_and_wrong(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Nobody comes in from a file of which a part does not fit: its rows could be another user's."""
    _filled().snapshot(path := tmp_path / "cache")
    with safe_open(path, framework="pt") as file:
        label, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, x in changes.items():
        tensors.pop(name, None)
        if x is not None:
            tensors[name] = torch.tensor(list(x), dtype=torch.uint8) if isinstance(x, bytes) else x
    save_file(tensors, path, metadata=label)
    cache = _cache()
    with pytest.raises(ValueError, match=f"^{path}: {message}"):
        cache.load(path)
    assert cache.statistics().users == 0


KILLED = """
import os, signal, sys, torch, safetensors.torch
from stca.serving import HistoryCache
cache = HistoryCache(2, 8, 400, page_rows=16, encoder="one")
cache.append("new", [torch.ones(300, 8)] * 2)
save = safetensors.torch.save_file
def half(tensors, path, metadata):
    save(tensors, path, metadata=metadata)
    os.truncate(path, os.path.getsize(path) // 2)
    open(os.path.join(os.path.dirname(path), ".tmpABCDEF"), "w").close()  # as safetensors leaves one, killed in it
    os.kill(os.getpid(), signal.SIGKILL)
safetensors.torch.save_file = half
cache.snapshot(sys.argv[1])
"""


def test_who_is_killed_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    _filled().snapshot(path)
    done = subprocess.run([sys.executable, "-c", KILLED, path], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    cache = _cache()
    cache.load(path)
    assert cache.statistics().users == 3
    assert "new" not in cache
    left = {each.name for each in tmp_path.iterdir()} - {"cache"}
    assert left
    assert all(name.startswith(".cache.") and name.endswith(".part") for name in left)
