"""examples/prepare_on_ray.py: what write_requests writes, of a log that no process of it could hold."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from test_data_group import make_events

from stca.data import group_log, read_events, write_requests

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "prepare_on_ray.py"
MIB, FILES, EVENTS = 850, 6, 1_000_000  # of a file
NAIVE = """
import pathlib, sys, pandas, stca.data
pandas.read_parquet(pathlib.Path(sys.argv[1])).sort_values(["user_id", "timestamp", "request_id"])
"""


def _by_user(paths: list[Path]) -> pa.Table:
    table = pa.concat_tables([pq.read_table(path) for path in paths])
    return table.take(pc.sort_indices(pc.list_element(table["target_user"], 0))).combine_chunks()


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
    assert np.sum(pc.list_value_length(got["target_item"]).to_numpy()) == FILES * EVENTS
    assert got.equals(expected)
