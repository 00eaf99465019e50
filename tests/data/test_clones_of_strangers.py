"""Clones that others made: none runs a command, none fetches, and what git cannot read is an error that git words."""

import io
from pathlib import Path

import pytest
from logs import events, git

from stca.data import read_events
from stca.data.git import _parsed, _tokens


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """40 commits of a file each."""
    (folder := tmp_path / "clone").mkdir()
    git(folder, "init", "--quiet")
    for i in range(40):
        (folder / f"file{i}").write_text(str(i))
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message", "x")
    return folder


COMMANDS = (
    "core.fsmonitor",
    "core.sshCommand",
    "core.gitProxy",
    "core.pager",
    "core.alternateRefsCommand",
    "diff.external",
)


def _with_commands(clone: Path, ran: Path) -> None:
    """The clone's own settings name a command wherever git takes one, and a hook is there for each name."""
    for name in (
        *COMMANDS,
        "gpg.program",
        "pager.diff-tree",
        "diff.all.command",
        "diff.all.textconv",
        "alias.rev-list",
    ):
        git(clone, "config", name, f"touch {ran}/{name} #")
    git(clone, "config", "log.showSignature", "true")
    git(clone, "config", "core.hooksPath", str(ran.parent / "hooks"))
    (ran.parent / "hooks").mkdir()
    for name in ("post-index-change", "fsmonitor-watchman", "reference-transaction", "pre-auto-gc"):
        hook = ran.parent / "hooks" / name
        hook.write_text(f"#!/bin/sh\ntouch {ran}/hook-{name}\n")
        hook.chmod(0o755)
    (clone / ".git/info").mkdir(exist_ok=True)
    (clone / ".git/info/attributes").write_text("* diff=all\n")


def test_settings_of_a_clone_run_nothing(clone: Path, tmp_path: Path) -> None:
    expected = events(clone)
    (ran := tmp_path / "ran").mkdir()
    _with_commands(clone, ran)
    assert events(clone) == expected
    assert not list(ran.iterdir())


def test_what_is_missing_is_not_fetched(clone: Path, tmp_path: Path) -> None:
    """A partial clone would fetch, by a remote helper that the clone itself allows."""
    tree = git(clone, "rev-parse", "HEAD~5^{tree}").strip()
    (clone / ".git/objects" / tree[:2] / tree[2:]).unlink()
    settings = {
        "core.repositoryFormatVersion": "1",
        "extensions.partialClone": "far",
        "remote.far.url": f"ext::touch {tmp_path}/ran",
        "remote.far.promisor": "true",
        "protocol.allow": "always",
        "protocol.ext.allow": "always",
    }
    for name, value in settings.items():
        git(clone, "config", name, value)
    with pytest.raises(ValueError, match=rf"(?s)^{clone}: must be a git repository with commits: .*{tree}"):
        list(read_events(clone))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kept", [0, 30])
def test_damaged_objects_are_what_git_says(clone: Path, kept: int) -> None:
    commit = git(clone, "rev-parse", "HEAD~20").strip()
    path = clone / ".git/objects" / commit[:2] / commit[2:]
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"(?s)^{clone}: must be a git repository with commits: .*{commit}"):
        list(read_events(clone))


COMMIT = b"ab12 1700000000 ann@example.org\0\n:100644 100644 0 0 M\0file\0"


@pytest.mark.parametrize(
    "output",
    [
        COMMIT[:-5],
        COMMIT[COMMIT.index(b"\n") :],
        COMMIT.replace(b" ann@example.org", b"")[5:],
        COMMIT.replace(b"17", b"--17"),
        COMMIT.replace(b"17", 5000 * b"9"),
        b"\0" + COMMIT,
    ],
)
def test_output_that_is_cut_is_an_error_that_names_the_clone(tmp_path: Path, output: bytes) -> None:
    assert list(_parsed(tmp_path, _tokens(io.BytesIO(COMMIT)))) == [(1700000000, b"ann@example.org", [b"file"])]
    with pytest.raises(ValueError, match=f"^{tmp_path}: "):
        list(_parsed(tmp_path, _tokens(io.BytesIO(output))))
