"""Git that says nothing more: the wait ends, names the clone and the command, and leaves no process."""

import os
import shutil
from pathlib import Path

import pytest
from logs import git

from stca.data import git_output, read_git


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A commit of a file."""
    (folder := tmp_path / "clone").mkdir()
    git(folder, "init", "--quiet")
    (folder / "file").write_text("x")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "x")
    return folder


def _hang(monkeypatch: pytest.MonkeyPatch, folder: Path, where: str, begin: str = "") -> Path:
    """Puts a git before the others that sleeps at such a command; where it writes its process."""
    fake, process = folder / "git", folder / "process"
    fake.write_text(
        f'#!/bin/sh\ncase "$*" in *"{where}"*)\necho $$ > {process}\n{begin}\nexec sleep 600;; esac\n'
        f'exec {shutil.which("git")} "$@"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr(git_output, "WAIT", 1.0)
    return process


def _has_ended(process: Path) -> bool:
    try:
        os.kill(int(process.read_text()), 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("where", ["rev-parse --absolute-git-dir", "rev-parse --git-path", "rev-list", "diff-tree"])
@pytest.mark.parametrize("begin", ["", "printf half", f'{shutil.which("git")} "$@"; exec >&-'])
def test_a_hang_ends(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, begin: str) -> None:
    """At once, amid the output, and with all of it, its pipe closed."""
    assert len(list(read_git(clone, min_commits=1))) == 1
    process = _hang(monkeypatch, tmp_path, where, begin)
    with pytest.raises(TimeoutError, match=rf"^{clone}: git {where.split()[0]} must go on within 1 s"):
        list(read_git(clone, min_commits=1))
    assert _has_ended(process)


def test_a_reader_that_fails_leaves_no_process(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = _hang(monkeypatch, tmp_path, "rev-list", "echo begun")
    with pytest.raises(KeyError), git_output.git_output(clone, "rev-list", "HEAD") as output:
        raise KeyError(output.readline())
    assert _has_ended(process)
