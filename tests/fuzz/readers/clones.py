"""Git repositories whose files were changed, beside what `git log` tells; and output of git that is cut.

An input is a zip of the files of a bare repository, or "output" and what git would have printed.
"""

import io
import os
import re
import shutil
import subprocess
import warnings
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pyarrow as pa
from logs import git

from readers import refused
from readers.names import packed, unpacked
from readers.values import changed_bytes
from stca.data import Names, git_output, read_git
from stca.data.git import _parsed, _tokens

_OUTPUT = b"output"
_SAFE = re.compile(rb"(?i)(include|command|fsmonitor|hookspath|worktree|alternates)")


def seeds() -> dict[str, bytes]:
    """Commits of two authors, one with a strange file, and a merge."""
    with TemporaryDirectory() as place:
        folder = Path(place, "clone")
        git(Path(place), "init", "--quiet", "--initial-branch", "main", "clone")
        for i in range(4):
            (folder / f"file{i % 3}").write_text(str(i))
            (folder / os.fsdecode(b"\n:\xe9 x")).write_text(str(i // 2))
            git(folder, "add", "--all")
            when = {
                "GIT_AUTHOR_DATE": f"{1700000000 + 60 * i} +0000",
                "GIT_AUTHOR_EMAIL": "bob@x" if i % 2 else "ann@x",
            }
            git(folder, "commit", "--quiet", "--message", "\n:100644 x", **when)
        kept = ("HEAD", "config", "objects", "refs")
        files = [
            path
            for name in kept
            for path in ((folder / ".git" / name).rglob("*") if name in kept[2:] else [folder / ".git" / name])
        ]
        repository = {str(path.relative_to(folder / ".git")): path.read_bytes() for path in files if path.is_file()}
    output = b"".join(
        b"%040x 17000000%02d a%d@x\0\n:100644 100644 0 0 M\0file\0:000000 100644 0 0 A\0:x\0" % (i, i, i % 2)
        for i in range(3)
    )
    return {"repository": packed(repository), "output": _OUTPUT + output}


def mutate(data: bytes, rng: Random) -> bytes:
    """A file of the repository changed, removed or put in the place of another; or bytes of the output."""
    files = {} if data.startswith(_OUTPUT) else unpacked(data)
    if not files:
        return _OUTPUT + changed_bytes(data.removeprefix(_OUTPUT), rng)
    name, other = rng.choice([*files]), rng.choice([*files])
    match rng.randrange(5):
        case 0:
            del files[name]
        case 1:
            files[name] = files[other]
        case 2:
            files["shallow"] = os.path.basename(other).encode()
        case _:
            files[name] = changed_bytes(files[name], rng)
    return packed(files)


def check(data: bytes, folder: Path) -> None:
    """Events are those of `git log`, or git's complaint comes with the clone's name."""
    if data.startswith(_OUTPUT):
        try:
            list(_parsed(folder, _tokens(io.BytesIO(data.removeprefix(_OUTPUT)))))
        except ValueError as error:
            refused(error, folder)
        return
    clone = folder / "clone.git"
    shutil.rmtree(clone, ignore_errors=True)
    for name, content in ({"objects/x": b"", "refs/x": b""} | unpacked(data)).items():
        path = clone / name
        if clone in path.resolve().parents and not _SAFE.search(content) and "\0" not in name:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    names, git_output.WAIT = Names(), 5.0  # seconds; of a commit that is its own tree git never comes to an end
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = pa.concat_tables(read_git(clone, negatives=0, min_commits=1, names=names))
    except (ValueError, TimeoutError) as error:
        refused(error, clone)
        return
    users, items = (list(names.known[name]) for name in ("user_id", "item_id"))
    found = {(row["timestamp"], users[row["user_id"]], items[row["item_id"]]) for row in table.to_pylist()}
    assert found == _told(clone)


def _told(clone: Path) -> set[tuple[int, str, str]]:
    """What `git log` says, by a format of its own."""
    command = ["git", "--git-dir", str(clone), "log", "--no-merges", "--name-only", "--no-renames", "-z"]
    command += ["--format=%x01%x01%H %at %aE%x02%x02"]
    environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_NO_REPLACE_OBJECTS": "1"}
    output = subprocess.run(command, capture_output=True, check=True, env=environment).stdout
    shallow = (clone / "shallow").read_bytes().split() if (clone / "shallow").exists() else []
    told = set()
    for commit in output.split(b"\1\1")[1:]:
        head, _, files = commit.partition(b"\2\2")
        sha, time, author = head.split(b" ", 2)
        names = [name for name in files.removeprefix(b"\0").removeprefix(b"\n").split(b"\0") if name]
        if sha not in shallow and author.strip() and len(names) <= 64:
            told |= {(int(time), os.fsdecode(author.strip().lower()), os.fsdecode(name)) for name in names}
    return told
