"""Git clones, and folders that are none (faults F2, F9, F10, F15, W22)."""

import gzip
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from logs import HEADER, events, git, parquet, write

from stca.data import Names, read_events
from stca.data.convert import main


def _items(path: Any, **options: Any) -> list[int]:
    return [row["item_id"] for row in events(path, **options)]


def _commit(clone: Path, *files: str | bytes, **environment: str) -> None:
    for name in files:
        path = os.path.join(os.fsencode(clone), os.fsencode(name))
        with open(path, "ab") as file:
            file.write(b"x\n")
    git(clone, "add", "--all")
    git(
        clone, "commit", "--quiet", "--allow-empty", "--message", "\n:100644 100644 0 0 M\0no file\n".replace("\0", " ")
    )


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """60 commits of one file each, after one of 30."""
    folder = tmp_path / "clone"
    folder.mkdir()
    git(folder, "init", "--quiet")
    _commit(folder, *(f"first{i}" for i in range(30)))
    for i in range(60):
        _commit(folder, f"file{i % 7}")
    return folder


def test_f2_a_folder_inside_a_clone_is_its_parts(clone: Path) -> None:
    folder = clone / "data"
    folder.mkdir()
    parquet(folder / "part-0.parquet", item_id=[77])
    assert _items(folder) == [77]
    (folder / "day=1").mkdir()
    parquet(folder / "day=1" / "part-1.snappy.PARQUET", item_id=[78])
    (folder / "_SUCCESS").touch()
    (folder / ".part-0.parquet.crc").write_bytes(b"crc")
    (folder / "notes.md").write_text("no log")
    (folder / "_temporary").mkdir()
    parquet(folder / "_temporary" / "part-0.parquet", item_id=[79])
    assert _items(folder) == [78, 77]
    csv = clone / "csv"
    csv.mkdir()
    write(csv / "part-00001", "1,2,3,1")
    write(csv / "part-00000", "1,1,3,1")
    (csv / "part-00002.gz").write_bytes(gzip.compress(f"{HEADER}1,3,3,1\n".encode()))
    assert _items(csv) == [1, 2, 3]
    (clone / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: must be a git repository with commits, at its top, or hold"):
        events(clone / "empty")
    with pytest.raises(ValueError, match="nowhere: must exist"):
        events(clone / "nowhere")


def _touched(clone: Path) -> list[list[str]]:
    names = Names()
    rows = [row for row in pa.concat_tables(read_events(clone, names=names)).to_pylist() if row["label"] == 1]
    item = {number: name for name, number in names.known["item_id"].items()}
    requests: dict[int, list[str]] = {}
    for row in rows:
        requests.setdefault(row["request_id"], []).append(item[row["item_id"]])
    return [sorted(files) for files in requests.values()]


def test_f9_a_shallow_clone_has_no_files_that_were_not_touched(clone: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--depth", "50", f"file://{clone}", "shallow")
    with pytest.warns(UserWarning, match="shallow: a shallow clone, of whose commits the oldest, 1, cannot be read"):
        assert [len(files) for files in _touched(tmp_path / "shallow")] == [1] * 49
    assert sorted(map(len, _touched(clone))) == [1] * 60 + [30]


def test_f10_no_setting_of_the_user_changes_what_is_read(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _touched(clone)
    settings = {
        "log.showSignature": "true", "log.follow": "true", "log.date": "iso", "log.mailmap": "false",
        "diff.renames": "copies", "diff.noprefix": "true", "diff.relative": "true", "core.quotePath": "true",
        "diff.external": "false", "color.ui": "always", "format.pretty": "oneline", "i18n.logOutputEncoding": "UTF-16",
        "diff.orderFile": "/nowhere", "alias.rev-list": "!false",
    }  # fmt: skip
    user = tmp_path / "gitconfig"
    for name, value in settings.items():
        git(clone, "config", name, value)
        git(clone, "config", "--file", str(user), name, value)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(user))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "false")
    git_replace = git(clone, "rev-parse", "HEAD", "HEAD~1", GIT_DIR=str(clone / ".git")).split()
    git(clone, "replace", *git_replace, GIT_DIR=str(clone / ".git"))
    assert _touched(clone) == expected
    bare = tmp_path / "bare.git"
    monkeypatch.delenv("GIT_DIR")
    git(tmp_path, "clone", "--quiet", "--bare", f"file://{clone}", str(bare))
    assert _touched(bare) == expected


def test_f15_names_of_files_are_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "clone"
    folder.mkdir()
    git(folder, "init", "--quiet")
    odd = [b"caf\xe9.txt", b"caf\xe8.txt", b"two\nlines", b":100644 ", "\ufffd".encode(), b" "]
    for _ in range(20):
        _commit(folder, *odd)
    names = Names()
    rows = pa.concat_tables(read_events(folder, names=names)).to_pylist()
    assert sorted(map(os.fsencode, names.known["item_id"])) == sorted(odd)
    assert sum(row["label"] for row in rows) == 20 * len(odd)
    main([str(folder), str(tmp_path / "log.parquet"), "--events"])
    assert sorted(pq.read_table(tmp_path / "log.item_id.parquet")["item_id"].to_pylist()) == sorted(odd)


def test_commits_of_two_clones_are_different_requests(clone: Path) -> None:
    both = pa.concat_tables(read_events([clone, clone])).to_pylist()
    assert len({row["request_id"] for row in both}) == 2 * 61


def test_w22_without_git(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="clone: git must be installed"):
        events(clone)
