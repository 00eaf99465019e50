"""Files and folders that are whole or absent, whatever stops, or meets, the process that writes them."""

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG
_PATIENCE = 5.0  # seconds for another's lock of the folder; held longer, it is not this module's


def check_output(path: Path | str) -> Path:
    """Refuses a path that `whole_file` could not write to, before any work is done; links are followed.

    Raises:
        ValueError: a folder, a device, or a path whose own folder is missing or not writable, by the path.

    Example:
        >>> from stca.files import check_output
        >>> check_output("no/such/folder/report.json")
        Traceback (most recent call last):
        ValueError: no/such/folder/report.json: the folder must exist and be writable, to write there
    """
    real = Path(os.path.realpath(path))
    if real.exists() and not real.is_file():
        raise ValueError(f"{path}: must be a file, or none yet, got {'a folder' if real.is_dir() else 'a device'}")
    return _in_writable_folder(path, real)


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """A temporary path to write to, which takes the place of `path` when the block ends without an error.

    Until then `path` is what it was, so it may be read meanwhile: an output may be an input. An error removes the
    temporary file. A killed process leaves it: it lies beside `path`, is called `.NAME.XXXXXXXX.part`, by hexadecimal
    digits of its own, and may be deleted. Of two that write to one path, the first to end has it, whole, and the other
    is told.

    Args:
        path: the file. What lies there is replaced and hands on its permissions.

    Raises:
        ValueError: what `check_output` refuses, at the start.
        FileExistsError: `path` is no longer what it was at the start: it stays as it is.
        OSError: a disk or a quota that is full, by the path.

    Example:
        >>> import pathlib, tempfile
        >>> from stca.files import whole_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "report.json")
        ...     with whole_file(path) as part:
        ...         _ = part.write_text("{}")
        ...         before = path.exists()
        ...     before, path.read_text(), len(list(path.parent.iterdir()))
        (False, '{}', 1)
    """
    real = check_output(path)
    before, part = _standing(real), _beside(real)
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = stat.S_IMODE((before or part.stat()).st_mode)  # whatever the writer puts in the place of this file
    try:
        try:
            yield part
            with part.open("rb") as written:
                os.fsync(written.fileno())
        except Exception as error:
            full = _full(part, error)
            if full and str(path) not in str(error):
                why = error if isinstance(error, OSError) else f"{os.strerror(full)}: {error}"
                raise OSError(full, f"{path}: cannot be written: {why}") from error
            raise
        with _alone(path, real, before):
            if stat.S_IMODE(part.stat().st_mode) != mode:  # not every file system has permissions to set
                part.chmod(mode)
            part.replace(real)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path | str, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder to write into, which takes the place of `path` when the block ends without an error.

    What lies at `path` stays until then. An error removes the temporary folder. A killed process leaves it, whole or
    not, beside `path`, called `.NAME.XXXXXXXX.part` as by `whole_file`; `path` is then as it was, or, killed between
    two renames of an overwrite, absent, the old folder beside it by such a name too. Any process or machine that shares
    the disk may write into the temporary folder; its files should come from `whole_file`, so that they are on the disk.

    Args:
        path: the folder, with nothing in it, or none yet.
        overwrite: replace a folder with something in it.

    Raises:
        ValueError: a folder with something in it, without `overwrite`; a file; a mount point, which cannot be replaced;
            a folder that does not lie in a writable one.
        FileExistsError: `path` is no longer what it was at the start: it stays as it is.
    """
    real = Path(os.path.realpath(path))
    if real.exists() and (not real.is_dir() or real.is_mount()):
        raise ValueError(f"{path}: must be a folder and no mount point, or none yet")
    if not overwrite and real.exists() and any(real.iterdir()):
        raise ValueError(f"{path}: must be an empty folder, or none yet, got one that holds {min(real.iterdir()).name}")
    _in_writable_folder(path, real)
    before, part, old = _standing(real), _beside(real), _beside(real)
    part.mkdir()
    try:
        yield part
        with _alone(path, real, before):
            _exchange(part, real, old)
    finally:
        if part.exists():
            shutil.rmtree(part)
    if old.exists():
        shutil.rmtree(old)


def check_name(path: Path | str) -> None:
    """Refuses a path that is no UTF-8, which Arrow cannot open and no message can show.

    Raises:
        ValueError: such a path, by its bytes.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{os.fsencode(path)!r}: must be a name in UTF-8") from error


def _exchange(new: Path, real: Path, old: Path) -> None:
    """Puts `new` in the place of `real`, which becomes `old` where there is one; or nothing changes."""
    try:
        if real.exists():
            new.chmod(stat.S_IMODE(real.stat().st_mode))
            real.rename(old)
        new.rename(real)
    except BaseException:
        if old.exists() and not real.exists():
            old.rename(real)
        raise


def _full(part: Path, error: Exception) -> int:
    """The number of the error by which a disk, a quota or a limit refuses more, else 0.

    Writers in Rust say it in their words. Those in C++, torch's among them, know by then only that a write failed: so
    one is tried.
    """
    if said := re.search(r"\(os error (\d+)\)", str(error)):
        return int(said[1]) if int(said[1]) in _FULL else 0
    if isinstance(error, OSError):
        return error.errno if error.errno in _FULL else 0
    if isinstance(error, ValueError | TypeError | LookupError):  # of what was to be written
        return 0
    try:
        with part.open("ab") as more:
            more.write(bytes(1 << 20))
    except OSError as refused:
        return refused.errno if refused.errno in _FULL else 0
    return 0


def _in_writable_folder(path: Path | str, real: Path) -> Path:
    check_name(real)
    if not (real.parent.is_dir() and os.access(real.parent, os.W_OK | os.X_OK)):
        raise ValueError(f"{path}: the folder must exist and be writable, to write there")
    return real


def _beside(path: Path) -> Path:
    """A name of its own, hidden from patterns such as *.parquet, and never too long for a file system."""
    name = path.name.encode()[:200].decode(errors="ignore")
    return path.with_name(f".{name}.{secrets.token_hex(4)}.part")


def _standing(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


@contextmanager
def _alone(path: Path | str, real: Path, before: os.stat_result | None) -> Iterator[None]:
    """Holds a lock of the folder, where its file system has locks, while what stands there is compared and replaced."""
    folder = os.open(real.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(folder)
        now = _standing(real)
        if now is not None and (before is None or _identity(now) != _identity(before)):
            raise FileExistsError(f"{path}: was written by another process meanwhile")
        yield
        with suppress(OSError):  # not every file system can
            os.fsync(folder)
    finally:
        os.close(folder)


def _lock(folder: int) -> None:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                return None
            time.sleep(0.01)
        except OSError:
            return None


def _identity(it: os.stat_result) -> tuple[int, ...]:
    return it.st_dev, it.st_ino, it.st_mtime_ns, it.st_size
