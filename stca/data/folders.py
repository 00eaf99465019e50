"""The files and git clones of an event log, in folders or not."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from warnings import warn

from stca.data.git import is_clone
from stca.data.ids import log_of_table
from stca.files import check_name

_PART = re.compile(
    r"\.(csv|tsv|txt|dat|data|inter|parquet|parq|pq)(\.(gz|gzip|bz2|zst|lz4|br|xz|zip))?$|^part-|^\d+_\d+$",
    re.IGNORECASE,
)


def log_files(paths: Path | str | Sequence[Path | str]) -> list[Path]:
    """Files and git clones, in their order; in the place of any other folder the files in it, by name.

    Of a folder's files those count that are named as logs are (`.csv`, `.parquet`, ..., packed or not), or as parts are
    (`part-...`, `000000_0`). What begins with a dot or an underscore is left out, as by Spark and Hive, and tables of
    ids are. Folders in it are looked into, but clones.

    Raises:
        ValueError: a path that does not exist, a name that is no UTF-8, a link that leads nowhere, a file twice, or a
            folder without a log.

    Warns:
        UserWarning: other files and clones in a folder, which are left out.
    """
    found: list[Path] = []
    for path in map(Path, [paths] if isinstance(paths, Path | str) else paths):
        if not path.exists():
            raise ValueError(f"{path}: must exist, got no such file or folder")
        if is_clone(path) or path.is_file():
            found.append(path)
        elif path.is_dir():
            found += _parts(path)
        else:
            raise ValueError(f"{path}: must be a file or a folder, which can be read twice")
    first: dict[tuple[int, int], Path] = {}
    for path in found:
        check_name(path)
        about = path.stat()
        other = first.setdefault((about.st_dev, about.st_ino), path)
        if other is not path:
            raise ValueError(f"{path}: must be read once, got it as {other} too")
    return found


def _parts(folder: Path) -> list[Path]:
    """The files in a folder that are parts of a log."""
    parts, others, entered = list[Path](), list[Path](), set[tuple[int, int]]()
    for place, folders, files in os.walk(folder, followlinks=True):
        about = Path(place).stat()
        again = (about.st_dev, about.st_ino) in entered  # a link in a circle
        entered.add((about.st_dev, about.st_ino))
        inside = [] if again else [Path(place, name) for name in folders if not name.startswith((".", "_"))]
        others += [path for path in inside if is_clone(path)]
        folders[:] = [path.name for path in inside if not is_clone(path)]
        for path in [] if again else [Path(place, name) for name in files if not name.startswith((".", "_"))]:
            if not path.exists():
                raise ValueError(f"{path}: must lead to a file, got a link that does not")
            is_part = path.is_file() and _PART.search(path.name) and log_of_table(path) is None
            (parts if is_part else others).append(path)
    if not parts:
        raise ValueError(f"{folder}: must be a git repository with commits, at its top, or hold CSV or Parquet files")
    if others := [path for path in others if not path.is_file() or log_of_table(path) is None]:
        warn(f"{folder}: {len(others)} other files or clones are left out, {min(others)} first", stacklevel=2)
    return sorted(parts)
