"""What writes a file leaves the file of before or a whole new one: killed, out of disk, or without the right to."""

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import make_requests
from killed import limit_files, obey_permissions
from logs import make_events, write
from ranker.report import write_json
from serve.load import draw

from stca.data import RequestDataset, convert, write_requests
from stca.files import whole_file
from stca.serving import HistoryCache


def _snapshot(path: Path, seed: int) -> None:
    cache = HistoryCache(2, 64, 4096)
    for user in range(3):
        cache.append(user, [torch.full((500, 64), float(seed))] * 2)
    cache.snapshot(path)


def _checkpoint(path: Path, seed: int) -> None:
    with whole_file(path) as part:
        torch.save({"seed": seed, "model": {str(i): torch.randn(200, 200) for i in range(5)}}, part)


def _converted(path: Path, seed: int) -> None:
    convert.main([str(path.with_name("log.csv")), str(path)])


def _write_log(folder: Path) -> None:
    """What `_converted` reads."""
    events = make_events(20_000, 50).to_pylist()
    lines = (",".join(str(event[name]) for name in ("user_id", "item_id", "timestamp", "label")) for event in events)
    write(folder / "log.csv", *lines)


def _picture(path: Path, seed: int) -> None:
    draw(np.random.default_rng(seed).exponential(size=1000).tolist(), path)


def _read_requests(path: Path) -> None:
    assert sum(batch.T for batch in RequestDataset(path, 10**9)) > 1000


def _read_snapshot(path: Path) -> None:
    cache = HistoryCache(2, 64, 4096)
    cache.load(path)
    assert cache.statistics().rows == 1500


WRITERS: dict[str, tuple[Callable[[Path, int], object], Callable[[Path], object]]] = {
    "requests.parquet": (
        lambda path, seed: write_requests(make_requests(2000, seed), path, tokens=9000),
        _read_requests,
    ),
    "converted.parquet": (_converted, _read_requests),
    "cache.safetensors": (_snapshot, _read_snapshot),
    "checkpoint.pt": (_checkpoint, lambda path: torch.load(path, weights_only=True)["model"]["4"]),
    "report.json": (lambda path, seed: write_json({"n": list(range(50_000))}, path), lambda path: path.read_text()),
    "picture.png": (_picture, lambda path: path.read_bytes().index(b"IEND")),
}
every_writer = pytest.mark.parametrize("name", WRITERS)
pytestmark = pytest.mark.slow


def _run(
    name: str, path: Path, seed: int, before: Callable[[], object] = lambda: None, kill_after: float | None = None
) -> tuple[int | None, str]:
    """Writes in a process of its own, in which something comes before; its exit code, and the error."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def child() -> None:
        torch.set_num_threads(1)
        before()
        try:
            WRITERS[name][0](path, seed)
        except Exception as error:
            sender.send(f"{type(error).__name__}: {error}")
            sys.exit(1)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    if kill_after is not None:
        time.sleep(kill_after)
        process.kill()
    process.join(120)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode, receiver.recv() if receiver.poll() else ""


def _others(path: Path) -> list[str]:
    """Files beside an output that nobody wants."""
    return [each.name for each in path.parent.iterdir() if each.name not in (path.name, "log.csv")]


@every_writer
def test_a_full_disk_is_named_and_leaves_the_file_of_before(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    _write_log(tmp_path)
    assert _run(name, path, 1) == (0, "")
    WRITERS[name][1](path)
    before = path.read_bytes()
    for share in np.random.default_rng(0).uniform(0, 0.95, 3):
        code, said = _run(name, path, 2, partial(limit_files, int(share * len(before))))
        assert code == 1
        assert said.startswith(f"OSError: [Errno 27] {path}: cannot be written: ")
        assert path.read_bytes() == before
        assert not _others(path)


@every_writer
def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    _write_log(tmp_path)
    begin = time.monotonic()
    assert _run(name, path, 1) == (0, "")
    seconds = time.monotonic() - begin
    for seed in range(4):
        moment = np.random.default_rng(seed).uniform(0, seconds)
        assert _run(name, path, 2 + seed, kill_after=moment) in ((0, ""), (-signal.SIGKILL, ""))
        WRITERS[name][1](path)
        assert all(
            each.lstrip(".").startswith(f"{name}.") and each.startswith(".") and each.endswith(".part")
            for each in _others(path)
        )


@every_writer
def test_a_read_only_folder_is_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    _write_log(folder)
    folder.chmod(0o555)
    code, said = _run(name, folder / name, 1, obey_permissions)
    assert code == 1
    assert said == f"ValueError: {folder / name}: the folder must exist and be writable, to write there"
    assert not _others(folder / name)
