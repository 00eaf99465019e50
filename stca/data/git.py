"""The history of a git clone as an event log: who works on which file, among those that others work on."""

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from warnings import warn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stca.data.git_output import git_output
from stca.data.ids import Names

_TABLE = 100_000  # events of a table
YEAR_1, YEAR_10000 = -62_135_596_800, 253_402_300_800  # seconds


def read_git(
    clone: Path | str,
    *,
    negatives: int = 3,
    window_days: float = 730,
    max_files: int = 64,
    min_commits: int = 20,
    seed: int = 0,
    names: Names | None = None,
    first: int = 0,
    prefix: str = "",
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
        first: number of the first commit as a request.
        prefix: of the names of files, so that those of several repositories differ.

    Raises:
        ValueError: a folder that is no git repository, or one without commits to take; negatives or days that are no
            number of them.
        TimeoutError: git that says nothing for ten minutes.

    Warns:
        UserWarning: commits that are left out, since their author has no address, or their parent is not there.
    """
    if negatives < 0 or not window_days >= 0:
        raise ValueError(f"read_git: negatives and window_days must be at least 0, got {negatives} and {window_days}")
    names = names or Names()
    time, author, commits, files = _touches(Path(clone), max_files, names, prefix)
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
            yield _table(rows, time, author, first)
            rows, waiting = [], 0
    if rows:
        yield _table(rows, time, author, first)


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
    rows: list[tuple[NDArray[np.int64], int, NDArray[np.bool_]]],
    time: NDArray[np.int64],
    author: NDArray[np.int64],
    first: int,
) -> pa.Table:
    commit = np.repeat([i for _, i, _ in rows], [len(items) for items, *_ in rows])
    label = np.concatenate([touched for *_, touched in rows])
    columns = {"user_id": author[commit], "item_id": np.concatenate([items for items, *_ in rows])}
    return pa.table(
        columns | {"timestamp": time[commit], "label": label.astype(np.float32), "request_id": first + commit}
    )


def _touches(
    clone: Path, max_files: int, names: Names, prefix: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Time, author and number of files of each commit [commits], and the files of all, in order of time."""
    commits = [each for each in _commits(clone) if 0 < len(each[2]) <= max_files]
    commits.sort(key=lambda commit: commit[0])

    def numbers(name: str, ids: list[bytes]) -> NDArray[np.int64]:
        return np.asarray(names.numbers(name, pa.array(ids, pa.binary())), dtype=np.int64)

    return (
        np.array([time for time, *_ in commits], dtype=np.int64),
        numbers("user_id", [author for _, author, _ in commits]),
        np.array([len(paths) for *_, paths in commits], dtype=np.int64),
        numbers("item_id", [os.fsencode(prefix) + path for *_, paths in commits for path in paths]),
    )


def is_clone(folder: Path) -> bool:
    """Whether a folder is the top of a git repository, with a working tree or a bare one."""
    return (folder / ".git").exists() or all((folder / name).exists() for name in ("HEAD", "objects", "refs"))


def _commits(clone: Path) -> Iterator[tuple[int, bytes, list[bytes]]]:
    """Time, author and files of every commit that is no merge and whose parent is there, newest first."""
    with git_output(clone, "rev-parse", "--absolute-git-dir") as output:
        place = os.fsdecode(output.read().rstrip(b"\n"))
    with git_output(clone, "rev-parse", "--git-path", "shallow", place=place) as output:
        shallow = Path(place, os.fsdecode(output.read().rstrip(b"\n")))
    # Where a shallow clone ends, what a commit touched cannot be told: its parent is not there.
    ends = set(shallow.read_bytes().split()) if shallow.exists() else set()
    if ends:
        warn(f"{clone}: a shallow clone, of whose commits the oldest, {len(ends)}, cannot be read", stacklevel=2)
    with tempfile.TemporaryFile() as commits:
        with git_output(clone, "rev-list", "--no-merges", "HEAD", "--", place=place) as output:
            commits.writelines(each for each in output if each.strip() not in ends)
        commits.seek(0)
        # Raw output: no setting of the user's changes it, and no name of a file can be taken for a commit.
        options = ["--stdin", "--root", "-r", "-z", "--raw", "--no-renames", "--encoding=UTF-8", "--format=%H %at %aE"]
        with git_output(clone, "diff-tree", *options, stdin=commits, place=place) as output:
            yield from _parsed(clone, _tokens(output))


def _tokens(output: IO[bytes]) -> Iterator[bytes]:
    """What stands between zero bytes."""
    rest = b""
    while piece := output.read(1 << 20):
        *whole, rest = (rest + piece).split(b"\0")
        yield from whole


def _parsed(clone: Path, tokens: Iterator[bytes]) -> Iterator[tuple[int, bytes, list[bytes]]]:
    commit: tuple[int, bytes, list[bytes]] | None = None
    nameless = 0
    for token in tokens:
        if token.lstrip(b"\n").startswith(b":"):  # modes and object names; the file's name comes next
            if commit is None or (file := next(tokens, None)) is None:
                raise ValueError(f"{clone}: git must tell each commit and its files, got output that is cut")
            commit[2].append(file)
            continue
        if commit is not None and commit[1]:
            yield commit
        sha, time, author = (*token.split(b" ", 2), b"", b"")[:3]
        if not re.fullmatch(rb"-?\d{1,18}", time) or not YEAR_1 <= int(time) < YEAR_10000:
            name = sha.decode(errors="replace")
            raise ValueError(f"{clone}: commit {name} must have a time in the years 1 to 9999, got {time!r}")
        commit = int(time), author.strip().lower(), []
        nameless += not commit[1]
    if commit is not None and commit[1]:
        yield commit
    if nameless:  # all of them would be one user
        warn(f"{clone}: {nameless} commits are left out, whose author has no address", stacklevel=2)
