"""Event logs for tests: written as others write them, read back as rows."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stca.data import read_events

HEADER = "user_id,item_id,timestamp,label\n"


def events(path: Any, **options: Any) -> list[dict[str, Any]]:
    """The events of a log, a dictionary each."""
    rows: list[dict[str, Any]] = pa.concat_tables(read_events(path, **options)).to_pylist()
    return rows


def write(path: Path, *lines: str, header: str = HEADER) -> Path:
    """A text file of these lines."""
    path.write_text(header + "".join(f"{line}\n" for line in lines))
    return path


def parquet(path: Path, **columns: Any) -> Path:
    """A Parquet file; columns that are not given count from 0, labels are 1."""
    rows = max(len(column) for column in columns.values())
    defaults: dict[str, Any] = {name: list(range(rows)) for name in ("user_id", "item_id", "timestamp")}
    pq.write_table(pa.table(defaults | {"label": [1] * rows} | columns), path)
    return path


def make_events(count: int, users: int, seed: int = 0) -> pa.Table:
    """Events in no order; few moments, so that requests of a user meet at one time."""
    rng = np.random.default_rng(seed)
    user, time = rng.integers(0, users, count) * 1001, rng.integers(0, 1 + 2 * count // users, count)
    return pa.table(
        {
            "user_id": user,
            "item_id": np.arange(count),
            "timestamp": time,
            "request_id": 2 * time + rng.integers(0, 2, count),
            "label": rng.integers(0, 2, count).astype(np.float32),
            "label_like": rng.random(count).astype(np.float32),
            "price": rng.random(count),
        }
    )


def groups(values: list[Any]) -> list[int]:
    """Which values are the same: the place of the first of its kind, of each."""
    return [values.index(value) for value in values]


def git(folder: Path, *arguments: str, **environment: str) -> str:
    """Runs git in a folder, as an author of no settings."""
    import os

    who = {f"GIT_{role}_{part}": "ann@example.org" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
    env = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull} | who | environment
    done = subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, env=env)
    return done.stdout.decode(errors="replace")
