"""What the service, its stores and its programs are started with: what they cannot take is refused by its name."""

import asyncio
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import export_served
import pytest
import serve.__main__
from serve import load
from serve.batcher import Batcher
from serve.scorer import Query, Scorer
from serve.store import Event, SQLiteStore, open_store
from service_process import ITEMS, USERS, free_port, write_checkpoint


@pytest.mark.parametrize("where", ["", ":memory:", "folder", "text", "other.sqlite", "no/such/folder/x", "redis"])
def test_what_is_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("text").write_text("no database\n" * 500)
    with sqlite3.connect("other.sqlite") as other:
        other.execute("CREATE TABLE events (name TEXT)")
    where = f"redis://127.0.0.1:{free_port()}" if where == "redis" else where
    with pytest.raises(ValueError, match=f"^{where}: cannot be opened as a store of events: ."):
        open_store(where)
    assert Path("text").read_text().startswith("no database")


def test_a_store_belongs_to_numbers(tmp_path: Path) -> None:
    store, checkpoint = SQLiteStore(tmp_path / "events"), write_checkpoint(tmp_path / "ranker.pt")
    Scorer(checkpoint, store, 64, 40, page_rows=16)
    Scorer(checkpoint, store, 64, 40, page_rows=16)
    other = SQLiteStore(tmp_path / "other")
    assert other.claim("3 items") == "3 items" == other.claim("4 items")
    with pytest.raises(ValueError, match=f"ranker.pt: of {ITEMS} items and {USERS} users, got a store of .* 3 items"):
        Scorer(checkpoint, other, 64, 40, page_rows=16)


def test_a_store_that_lost_its_events_is_read_again(tmp_path: Path) -> None:
    """As Redis's does: places begin again at 1, behind which nothing lies that the cache has."""
    checkpoint = write_checkpoint(tmp_path / "ranker.pt")
    stores = [SQLiteStore(tmp_path / name) for name in ("before", "after")]
    stores[0].append([Event(1, f"{n}", n, 1, n) for n in range(30)])
    stores[1].append([Event(1, f"{n}", 2 * n, 1, n) for n in range(5)])
    scorers = [Scorer(checkpoint, store, 64, 40, page_rows=16) for store in stores]
    query = [Query(1, [1, 2, 3], time=100)]
    before, expected = (scorer(query) for scorer in scorers)
    assert before != expected

    class Lost(SQLiteStore):
        def read(self, users: object, last: int) -> object:  # type: ignore[override]
            return super().read([(1, 0)], last)

    scorers[0].store = Lost(tmp_path / "after")  # type: ignore[assignment]
    assert scorers[0](query) == expected
    assert scorers[0].cache.length(1) == 5


def test_who_gave_up_does_not_wait() -> None:
    async def waiting() -> tuple[int, int]:
        batcher: Batcher[int, int] = Batcher(lambda jobs: jobs, max_wait=60.0)
        late = [asyncio.create_task(batcher(n, 0.05)) for n in range(3)]
        patient = asyncio.create_task(batcher(4, 60.0))
        await asyncio.sleep(0)
        most = len(batcher)
        await asyncio.wait(late)
        left = len(batcher)
        patient.cancel()
        await batcher.close()
        return most, left

    assert asyncio.run(waiting()) == (4, 1)


_LOAD = "rate burst seconds requests connections users items candidates zipf"
_SERVE = "capacity-rows length max-pairs max-jobs connections"
_PROGRAMS: dict[str, tuple[Callable[[], object], str]] = {
    "load": (load.main, _LOAD),
    "serve": (serve.__main__.main, _SERVE),
    "export_served": (export_served.main, "events candidates calls"),
}


@pytest.mark.parametrize("value", ["0", "-3", "nan", "x"])
@pytest.mark.parametrize(
    ("program", "option"), [(name, option) for name, (_, all_) in _PROGRAMS.items() for option in all_.split()]
)
def test_numbers_on_command_lines(
    program: str, option: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = ["--checkpoint", "none.pt"] if program == "serve" else []
    monkeypatch.setattr(sys, "argv", [program, *needed, f"--{option}", value])
    with pytest.raises(SystemExit) as ended:
        _PROGRAMS[program][0]()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"argument --{option}: must be a" in said
    assert f"from {'0.001' if option in ('rate', 'burst', 'seconds') else '1'}" in said
    assert f"on, got {value!r}" in said


def test_a_service_that_is_not_there(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(SystemExit, match=rf"load\.py: {url}: ."):
        load.main(["--url", url, "--seconds", "1"])
    with pytest.raises(SystemExit, match="the folder must exist"):
        load.main(["--url", url, "--out", str(tmp_path / "none" / "x.png")])


def test_serve_says_what_it_does_not_start_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["serve", "--checkpoint", "none.pt", "--store", str(tmp_path / "events")])
    with pytest.raises(SystemExit, match=r"serve: none\.pt: must be a whole checkpoint"):
        serve.__main__.main()
