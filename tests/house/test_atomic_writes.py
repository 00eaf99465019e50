"""stca.files: what is written is whole or absent, also when two writers meet or one is killed; others are told."""

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stca.files import check_output, whole_file, whole_folder


def test_a_file_is_there_when_the_block_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with whole_file(path) as part:
        assert part.parent == tmp_path
        assert part.name.startswith(".report.json.")
        part.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    path.chmod(0o600)  # a private file stays private
    with whole_file(path) as part:
        part.write_text(path.read_text() + "er")  # an output that is an input
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("newer", 0o600)


def test_a_writer_with_a_temporary_file_of_its_own_changes_no_permissions(tmp_path: Path) -> None:
    path, private = tmp_path / "rows", tmp_path / "private"
    with whole_file(path) as part:
        private.touch(0o600)
        private.replace(part)
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("I/O error: No space left on device (os error 28)")]
)
def test_a_full_disk_is_told_by_the_file(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(OSError, match=r"report.json: cannot be written: .*No space left on device") as told:
        _broken(path, error)
    assert told.value.errno == 28
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"r\\xe9.json': must be a name in UTF-8"):
        check_output(tmp_path / os.fsdecode(b"r\xe9.json"))


def _broken(path: Path, error: Exception | None = None) -> None:
    with whole_file(path) as part:
        part.write_text("half")
        raise error or OSError(28, "No space left on device")


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(OSError, match="No space left"):
        _broken(path)
    assert list(tmp_path.iterdir()) == []
    path.write_text("old")
    with pytest.raises(OSError, match="No space left"):
        _broken(path)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_what_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    for path, message in (
        (tmp_path, "must be a file, or none yet, got a folder"),
        (tmp_path / "no" / "x", "the folder must exist and be writable"),
        (tmp_path / "file" / "x", "the folder must exist and be writable"),
        (Path(os.devnull), "must be a file, or none yet, got a device"),
    ):
        with pytest.raises(ValueError, match=f"^{path}: {message}"):
            check_output(path)
        with pytest.raises(ValueError, match=f"^{path}: {message}"), whole_file(path):
            pytest.fail("the block began")
    assert check_output(tmp_path / "file") == tmp_path / "file"


def test_a_link_is_followed_and_a_long_name_fits(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "x")
    for _ in range(2):  # a link to nothing, to a file
        with whole_file(tmp_path / "link") as part:
            part.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "x").read_text() == "new"
    with whole_file(tmp_path / ("é" * 127)) as part:
        part.write_text("new")
    assert (tmp_path / ("é" * 127)).read_text() == "new"


def _overtaken(path: Path) -> None:
    with whole_file(path) as slow:
        slow.write_text("slow")
        with whole_file(path) as fast:
            fast.write_text("fast")


@pytest.mark.parametrize("old", [None, "old"])
def test_of_two_writers_the_second_to_end_is_told(tmp_path: Path, old: str | None) -> None:
    path = tmp_path / "x"
    if old is not None:
        path.write_text(old)
    with pytest.raises(FileExistsError, match=f"^{path}: was written by another process meanwhile"):
        _overtaken(path)
    assert path.read_text() == "fast"
    assert list(tmp_path.iterdir()) == [path]


def _write(path: Path, letter: str, start: float) -> None:
    time.sleep(max(0.0, start - time.time()))
    with whole_file(path) as part:
        part.write_text(letter * 1_000_000)


def test_many_writers_meet(tmp_path: Path) -> None:
    path, context = tmp_path / "x", multiprocessing.get_context("fork")
    start = time.time() + 0.2
    writers = [context.Process(target=_write, args=(path, letter, start)) for letter in "abcdefgh"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    winners = [letter for letter, writer in zip("abcdefgh", writers, strict=True) if writer.exitcode == 0]
    assert winners
    assert {path.read_text()} <= {letter * 1_000_000 for letter in winners}
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import importlib.util, os, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("files", "stca/files.py")  # without torch: quick
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
with files.{kind}(Path(sys.argv[1]) / "x") as part:
    (part if part.is_file() else part / "y").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["whole_file", "whole_folder"])
def test_a_killed_writer_leaves_a_temporary_name_only(tmp_path: Path, kind: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED.format(kind=kind), tmp_path])
    assert done.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".x.")
    assert left.suffix == ".part"


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with whole_folder(path) as part:
        (part / "a").write_text("1")
        assert not path.exists()
    with (
        pytest.raises(ValueError, match=f"^{path}: must be an empty folder, or none yet, got one that holds a$"),
        whole_folder(path),
    ):
        pytest.fail("the block began")
    with pytest.raises(OSError, match="full"), whole_folder(path, overwrite=True):
        raise OSError("full")
    assert [p.name for p in path.iterdir()] == ["a"]
    with whole_folder(path, overwrite=True) as part:
        (part / "b").write_text((path / "a").read_text())
    assert {p.name: p.read_text() for p in path.iterdir()} == {"b": "1"}
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileExistsError, match="was written by another"), whole_folder(path, overwrite=True):
        (path / "c").write_text("of somebody else")
    assert sorted(p.name for p in path.iterdir()) == ["b", "c"]
    (tmp_path / "empty").mkdir()
    with whole_folder(tmp_path / "empty") as part:
        (part / "a").write_text("1")
    assert [p.name for p in (tmp_path / "empty").iterdir()] == ["a"]
    for wrong in (path / "b", Path("/proc")):
        with pytest.raises(ValueError, match=f"^{wrong}: must be a folder and no mount point"), whole_folder(wrong):
            pytest.fail("the block began")
