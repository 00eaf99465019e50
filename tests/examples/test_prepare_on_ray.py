"""examples/prepare_on_ray.py: what write_requests writes, of a log that no process of it could hold."""

import importlib
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from logs import make_events

from stca.data import group_log, read_events, write_requests

pytestmark = pytest.mark.peers
SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "prepare_on_ray.py"
MIB, FILES, EVENTS = 850, 6, 1_000_000  # of a file
NAIVE = """
import pathlib, sys, pandas, stca.data
pandas.read_parquet(pathlib.Path(sys.argv[1])).sort_values(["user_id", "timestamp", "request_id"])
"""


def _by_user(paths: list[Path]) -> pa.Table:
    table = pa.concat_tables([pq.read_table(path) for path in paths])
    return table.take(pc.sort_indices(pc.list_element(table["target_user_id"], 0))).combine_chunks()


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's own function."""
    pytest.importorskip("ray")
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("prepare_on_ray").prepare


def test_what_cannot_be_written_is_refused_before_work(tmp_path: Path, prepare: Any) -> None:
    log, out = tmp_path / "log.parquet", tmp_path / "out"
    pq.write_table(make_events(10, 2), log)
    for options, message in (
        ({"parts": 0}, "parts must be at least 1, got 0"),
        ({"per_history": 0}, "per_history must be at least 1, got 0"),
        ({"max_length": -1}, "max_length must be at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match=f"prepare: {message}"):
            prepare([log], out, **options)
    with pytest.raises(ValueError, match=r"none\.parquet: must exist"):
        prepare([tmp_path / "none.parquet"], out)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"log\.parquet: must exist, and not lie in .*, which is written"):
            prepare([log], tmp_path, overwrite=overwrite)
    out.mkdir()
    (out / "notes.txt").write_text("of somebody")
    with pytest.raises(ValueError, match="out: must be an empty folder, or none yet, got one that holds notes"):
        prepare([log], out)
    with pytest.raises(ValueError, match=r"out: must hold part-\*.parquet alone to be replaced, got notes"):
        prepare([log], out, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_second_run_replaces_or_refuses(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    log, out = tmp_path / "log.parquet", tmp_path / "deep" / "out"
    pq.write_table(make_events(120, 20), log)
    runs = []
    for options in (["--parts", "8"], ["--parts", "4"], ["--parts", "4", "--overwrite"]):
        command = list(map(str, [sys.executable, SCRIPT, log, out, *options]))
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert out.exists(), done.stderr[-5000:]
        paths = sorted(out.iterdir())
        targets = sum(len(row) for path in paths for row in pq.read_table(path)["target_item_id"].to_pylist())
        runs.append((done.returncode, targets, len(paths)))
    assert runs[0][:2] == (0, 120)
    assert runs[1] == (1, *runs[0][1:])
    assert runs[2][:2] == (0, 120)
    assert runs[2][2] <= 4
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_log_that_does_not_fit_the_memory(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    logs = [tmp_path / "log" / f"{i}.parquet" for i in range(FILES)]
    logs[0].parent.mkdir()
    for i, path in enumerate(logs):
        pq.write_table(make_events(EVENTS, 2000, seed=i), path, row_group_size=100_000)
    limited = subprocess.run(
        [sys.executable, "-c", NAIVE, logs[0].parent],
        env=os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2"},  # as the workers have it
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (MIB << 20, MIB << 20)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "MemoryError" in limited.stderr

    options = ["--parts", "32", "--memory", str(MIB)]
    command = list(map(str, [sys.executable, SCRIPT, *logs, tmp_path / "out", *options]))
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    assert "2,000 histories" in done.stdout
    written = sorted((tmp_path / "out").iterdir())
    assert len(written) == 32
    write_requests(group_log(read_events(logs)), tmp_path / "expected.parquet")
    expected, got = _by_user([tmp_path / "expected.parquet"]), _by_user(written)
    assert np.sum(pc.list_value_length(got["target_item_id"]).to_numpy()) == FILES * EVENTS
    assert got.equals(expected)
