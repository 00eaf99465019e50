"""What git says of a clone: nothing but the clone decides what that is, and no wait for it is without a limit."""

import io
import os
import select
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

WAIT = 600.0  # seconds without a byte of output, or without an end, of which git makes a commit in milliseconds


class _Output(io.RawIOBase):
    """A pipe from which each read waits no longer than `WAIT`."""

    def __init__(self, pipe: IO[bytes], late: TimeoutError) -> None:
        self._pipe, self._late, self._poll = pipe, late, select.poll()
        self._poll.register(pipe)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._poll.poll(1000 * WAIT):
            raise self._late
        return os.readv(self._pipe.fileno(), [buffer])


@contextmanager
def git_output(clone: Path, *arguments: str, stdin: IO[bytes] | None = None, place: str = "") -> Iterator[IO[bytes]]:
    """The output of git, run such that nothing but the repository decides what it is.

    In its own folder `place`, once that is known: there no file of the working tree counts, such as a .mailmap that was
    not committed.

    Raises:
        ValueError: no git, or what it complains of.
        TimeoutError: git that says nothing for so long, or does not end; it is killed.
    """
    # No settings of the user or the machine, no replaced or grafted commits, and no fetch, whatever the clone allows.
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C",
        "HOME": os.devnull,
        "GIT_CEILING_DIRECTORIES": str(clone.absolute().parent),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_GRAFT_FILE": os.devnull,
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_ALLOW_PROTOCOL": "",
        "GIT_NO_LAZY_FETCH": "1",
    }
    settings = {
        "core.bare": "true",
        "core.fsmonitor": "false",  # else a command of the clone's choice
        "core.hooksPath": os.devnull,
        "advice.graftFileDeprecated": "false",
        "mailmap.file": os.devnull,
        "mailmap.blob": "HEAD:.mailmap",
        "safe.directory": str(clone.resolve()),
    }
    if place:
        environment["GIT_DIR"] = place
    command = ["git", "-C", place or str(clone), *arguments]
    command[1:1] = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    late = TimeoutError(f"{clone}: git {arguments[0]} must go on within {WAIT:g} s, got neither output nor its end")
    with tempfile.TemporaryFile() as complaints:
        try:
            process = subprocess.Popen(
                command, stdin=stdin or subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, env=environment
            )
        except FileNotFoundError as error:
            raise ValueError(f"{clone}: git must be installed to read a git repository: {error}") from error
        assert process.stdout is not None
        output = io.BufferedReader(_Output(process.stdout, late))
        unread: ValueError | None = None
        try:
            try:
                yield output
            except ValueError as error:  # git may say why its output is no better
                unread = error
            while unread is None and output.read(1 << 20):
                pass
            process.stdout.close()
            process.wait(WAIT)
        except subprocess.TimeoutExpired:
            raise late from None
        finally:
            process.stdout.close()
            process.kill()
            process.wait(WAIT)
        if process.returncode > 0 or (process.returncode and unread is None):
            complaints.seek(0)
            complaint = complaints.read().decode(errors="replace").strip()
            raise ValueError(f"{clone}: must be a git repository with commits: {complaint}") from unread
        if unread is not None:
            raise unread
