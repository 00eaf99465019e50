"""Git clones, and folders that are none."""

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
    message = "\n:100644 100644 0 0 M no file\n"
    git(clone, "commit", "--quiet", "--allow-empty", "--message", message, **environment)


FILES = [*(f"first{i}" for i in range(30)), *(f"file{i}" for i in range(7))]


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


def test_a_folder_inside_a_clone_is_its_parts(clone: Path) -> None:
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


def test_a_shallow_clone_has_no_files_that_were_not_touched(clone: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--depth", "50", f"file://{clone}", "shallow")
    with pytest.warns(UserWarning, match="shallow: a shallow clone, of whose commits the oldest, 1, cannot be read"):
        assert [len(files) for files in _touched(tmp_path / "shallow")] == [1] * 49
    assert sorted(map(len, _touched(clone))) == [1] * 60 + [30]


def test_no_setting_of_the_user_changes_what_is_read(
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


def test_names_of_files_are_bytes(tmp_path: Path) -> None:
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


def test_two_clones_have_their_own_requests_and_files(clone: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", f"file://{clone}", "other")
    names = Names()
    both = pa.concat_tables(read_events([clone, tmp_path / "other"], names=names)).to_pylist()
    assert len({row["request_id"] for row in both}) == 2 * 61
    assert len(names.known["user_id"]) == 1
    assert sorted(names.known["item_id"]) == sorted(
        f"{folder}/{name}" for folder in (clone, tmp_path / "other") for name in FILES
    )
    with pytest.raises(ValueError, match="clone: must be read once, got it as"):
        events([clone, clone])


def test_authors_without_an_address_and_times_that_are_none(clone: Path) -> None:
    _commit(clone, "more", GIT_AUTHOR_EMAIL="<>", GIT_AUTHOR_NAME="bob")
    with pytest.warns(UserWarning, match="clone: 1 commits are left out, whose author has no address"):
        assert len(_touched(clone)) == 61
    _commit(clone, "more", GIT_AUTHOR_DATE="@9999999999999 +0000")
    with pytest.raises(ValueError, match=r"clone: commit [0-9a-f]{40} must have a time in the years 1 to 9999, got"):
        events(clone)


def test_a_mailmap_counts_once_it_is_committed(clone: Path) -> None:
    (clone / ".mailmap").write_text("Ann <other@example.org> <ann@example.org>\n")
    names = Names()
    list(read_events(clone, names=names))
    assert list(names.known["user_id"]) == ["ann@example.org"]
    _commit(clone)
    names = Names()
    list(read_events(clone, names=names))
    assert list(names.known["user_id"]) == ["other@example.org"]


def test_what_a_folder_holds_beside_a_log_is_said(clone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    (folder / "below").mkdir(parents=True)
    for name in ("000001_0", "b.csv.gzip", "below/c.csv"):
        text = f"{HEADER}1,{len(name)},3,1\n".encode()
        (folder / name).write_bytes(gzip.compress(text) if name.endswith("gzip") else text)
    main([str(write(tmp_path / "named.csv", "ann,7,1,1")), str(folder / "d.parquet"), "--events"])
    (folder / "d.parquet").unlink()
    os.symlink(folder / "below", folder / "link")
    os.symlink(folder, folder / "below" / "circle")
    assert sorted(_items(folder)) == [8, 10, 11]
    clone.rename(folder / "clone")
    (folder / "notes.md").write_text("no log")
    with pytest.warns(UserWarning, match=r"parts: 2 other files or clones are left out, .*clone first"):
        assert sorted(_items(folder)) == [8, 10, 11]
    os.symlink(folder / "nowhere", folder / "e.csv")
    with pytest.raises(ValueError, match=r"e.csv: must lead to a file, got a link that does not"):
        events(folder)


def test_without_git(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="clone: git must be installed"):
        events(clone)
