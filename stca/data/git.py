"""The history of a git clone as an event log: who works on which file, among those that others work on."""

import codecs
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stca.data.formats import Names

_COMMIT = "\x1e"  # begins every commit in git's output
_TABLE = 100_000  # events of a table


def read_git(
    clone: Path | str,
    *,
    negatives: int = 3,
    window_days: float = 730,
    max_files: int = 64,
    min_commits: int = 20,
    seed: int = 0,
    names: Names | None = None,
) -> Iterator[pa.Table]:
    """A request for each commit, merges left out: user = its author (by address), item = a file, time = the author's.

    Label 1 is a file that the commit touched; label 0 are files that others touched in the time before and this
    commit did not, drawn as often as they were touched. Tables are as `read_events` gives them, in order of time.

    Args:
        clone: a git repository, with or without a working tree.
        negatives: files of label 0 for each of label 1, or as many as there are.
        window_days: how long before the commit others may have touched them.
        max_files: commits that touch more are left out: they move, rename or reformat.
        min_commits: authors with fewer are left out as users; what they touch counts as touched.
        seed: of the draw.
        names: keeps which number each author and file became.

    Raises:
        ValueError: a folder that is no git repository, or one without commits to take.
    """
    names = names or Names()
    time, author, commits, files = _touches(Path(clone), max_files, names)
    enough = np.bincount(author, minlength=1)[author] >= min_commits
    if not enough.any():
        raise ValueError(f"{clone}: must have an author of {min_commits} commits, got {len(time)} commits of others")
    ends = np.concatenate([[0], np.cumsum(commits)])
    touched_by = np.repeat(author, commits)
    oldest = ends[np.searchsorted(time, time - window_days * 86400)]
    newest = ends[np.searchsorted(time, time)]  # touched strictly before
    rng = np.random.default_rng(seed)
    rows: list[tuple[NDArray[np.int64], int, NDArray[np.bool_]]] = []
    waiting = 0
    for i in np.flatnonzero(enough).tolist():
        own = files[ends[i] : ends[i + 1]]
        lately = slice(oldest[i], newest[i])
        drawn = _others(files[lately], touched_by[lately] != author[i], own, negatives * len(own), rng)
        items = np.concatenate([own, drawn])
        order = rng.permutation(len(items))
        rows.append((items[order], i, order < len(own)))
        waiting += len(own) + len(drawn)
        if waiting >= _TABLE:
            yield _table(rows, time, author)
            rows, waiting = [], 0
    if rows:
        yield _table(rows, time, author)


def _others(
    files: NDArray[np.int64], by_others: NDArray[np.bool_], own: NDArray[np.int64], count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """`count` distinct files that others touched and `own` lacks, or all; a file is the likelier the more touches."""
    drawn: dict[int, None] = {}
    mine = set(own.tolist())
    for _ in range(4):  # mostly the first draws enough
        if len(files):
            places = rng.integers(0, len(files), 4 * count)
            chosen = files[places][by_others[places]].tolist()
            drawn |= dict.fromkeys(file for file in chosen if file not in mine)
        if len(drawn) >= count:
            return np.array(list(drawn)[:count], dtype=np.int64)
    left = rng.permutation(np.setdiff1d(files[by_others], [*mine, *drawn]))[: count - len(drawn)]
    return np.concatenate([np.array(list(drawn), dtype=np.int64), left])


def _table(
    rows: list[tuple[NDArray[np.int64], int, NDArray[np.bool_]]], time: NDArray[np.int64], author: NDArray[np.int64]
) -> pa.Table:
    commit = np.repeat([i for _, i, _ in rows], [len(items) for items, *_ in rows])
    label = np.concatenate([touched for *_, touched in rows])
    columns = {"user_id": author[commit], "item_id": np.concatenate([items for items, *_ in rows])}
    return pa.table(columns | {"timestamp": time[commit], "label": label.astype(np.float32), "request_id": commit})


def _touches(
    clone: Path, max_files: int, names: Names
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Time, author and number of files of each commit [commits], and the files of all, in order of time."""
    commits = [each for each in _commits(clone) if 0 < len(each[2]) <= max_files]
    commits.sort(key=lambda commit: commit[0])

    def numbers(name: str, ids: list[str]) -> NDArray[np.int64]:
        return np.asarray(names.numbers(name, pa.chunked_array([ids], pa.string()), str(clone)), dtype=np.int64)

    return (
        np.array([time for time, *_ in commits], dtype=np.int64),
        numbers("user_id", [author for _, author, _ in commits]),
        np.array([len(paths) for *_, paths in commits], dtype=np.int64),
        numbers("item_id", [path for *_, paths in commits for path in paths]),
    )


def _commits(clone: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Time, author and files of every commit that is no merge, newest first."""
    options = ["--no-merges", "--no-renames", "--name-only", "-z", f"--format=tformat:{_COMMIT}%at %aE"]
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(["git", "-C", clone, "log", *options], stdout=subprocess.PIPE, stderr=complaints) as process,
    ):
        assert process.stdout is not None
        text = ""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        while piece := process.stdout.read(1 << 20):
            *whole, text = (text + decoder.decode(piece)).split(_COMMIT)
            yield from map(_commit, filter(None, whole))
        yield from map(_commit, filter(None, [text]))
        if process.wait():
            complaints.seek(0)
            raise ValueError(f"{clone}: must be a git repository with commits: {complaints.read().decode().strip()}")


def _commit(text: str) -> tuple[int, str, list[str]]:
    head, *paths = text.split("\0")
    time, _, author = head.partition(" ")
    return int(time), author.lower(), [path.lstrip("\n") for path in paths if path.strip("\n")]
