"""Numbers in the place of ids: an integer is its own, any other id is counted; and the tables that keep them."""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stca.data.columns import REQUESTS
from stca.data.read import UNREADABLE, open_file
from stca.files import check_output, whole_file

_LOG, _TABLE = "stca.log", "stca.ids"  # in the metadata of logs, and of the tables of their ids


class Names:
    """Which number each id that is no integer became: by column, id to number, in order of first appearance.

    An id of bytes that are no UTF-8 is here as `os.fsdecode` has it. A column of integers has an empty dictionary.

    Example:
        >>> import pyarrow as pa, stca.data
        >>> names = stca.data.Names()
        >>> names.numbers("item_id", pa.array(["b", "a", "b"])).to_pylist(), names.known["item_id"]
        ([0, 1, 0], {'b': 0, 'a': 1})
    """

    def __init__(self) -> None:
        self.known: dict[str, dict[str, int]] = {}

    def numbers(self, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Array:
        """Ids that are string or binary as int64; the same id is the same number in every call for `name`."""
        known = self.known.setdefault(name, {})
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        encoded = column.cast(pa.binary()).dictionary_encode()
        ids = [each.decode("utf-8", "surrogateescape") for each in encoded.dictionary.to_pylist()]
        return pa.array([known.setdefault(each, len(known)) for each in ids], pa.int64()).take(encoded.indices)

    def table(self, name: str, log: Path) -> pa.Table:
        """The ids of a column of a log, in the order of their numbers, which are their rows."""
        column = pa.array(self._bytes(name), pa.binary())
        with suppress(pa.ArrowInvalid):  # names of files may be any bytes
            column = column.cast(pa.string())
        table = pa.table({name: column, "number": pa.array(range(len(column)), pa.int64())})
        return table.replace_schema_metadata({_TABLE: log.name})

    def mark(self) -> dict[str, str]:
        """What the log itself keeps of its ids: by column a digest of their table, or null where they are integers."""
        return {_LOG: json.dumps({name: self._digest(name) if ids else None for name, ids in self.known.items()})}

    @classmethod
    def load(cls, log: Path) -> "Names":
        """The names of a log that was written before, so that its ids keep their numbers in a later one.

        Raises:
            ValueError: a log without what `mark` keeps, or tables that are missing or not those of this log.
        """
        with open_file(log) as file:
            kept = (file.metadata.metadata or {}).get(_LOG.encode())
        if kept is None:
            raise ValueError(f"{log}: must be a log that stca.data.convert wrote, to tell what its ids are")
        names = cls()
        for name, digest in _kept(kept, log).items():
            names.known[name] = {}
            if digest is not None:
                try:
                    with open_file(path := table_path(log, name)) as file:
                        table = file.read()
                    if table.column_names[:1] == [name] and not table[0].null_count:
                        names.numbers(name, table[0])
                except UNREADABLE as error:
                    raise ValueError(
                        f"{path}: must be the ids of {log}, got a file that is damaged: {error}"
                    ) from error
                if names._digest(name) != digest:
                    raise ValueError(f"{path}: must be the ids of {log}, as they were written with it, got others")
        return names

    def _bytes(self, name: str) -> list[bytes]:
        return [each.encode("utf-8", "surrogateescape") for each in self.known[name]]

    def _digest(self, name: str) -> str:
        digest = hashlib.sha256()
        for each in self._bytes(name):
            digest.update(len(each).to_bytes(8, "little") + each)
        return digest.hexdigest()


def _kept(kept: bytes, log: Path) -> dict[str, str | None]:
    """What `Names.mark` kept in a log, by column."""
    with suppress(ValueError, RecursionError):
        columns = json.loads(kept)
        # A name is part of a file's.
        if isinstance(columns, dict) and all(name and not {"/", "\0"} & set(name) for name in columns):
            "".join(columns).encode()  # a ValueError where half of a surrogate pair is in a name
            return columns
    raise ValueError(f"{log}: must keep the names of its columns and digests of their ids, got {kept[:100]!r}")


def log_of_table(path: Path) -> str | None:
    """The name of the log whose ids a file holds, or None if it is no table of ids."""
    with suppress(pa.ArrowException, OSError):
        owner = (pq.read_schema(path).metadata or {}).get(_TABLE.encode())
        return owner and os.fsdecode(owner)
    return None


def is_log(path: Path) -> bool:
    """Whether a file is a log, or request-level batches, that this package wrote."""
    with suppress(pa.ArrowException, OSError):
        return _LOG.encode() in (pq.read_metadata(path).metadata or {}) or REQUESTS in pq.read_schema(path).names
    return False


def table_path(out: Path, name: str) -> Path:
    """Where the ids of a column of the log `out` are kept: `log.parquet` has `log.user_id.parquet`."""
    stem = out.stem if out.suffix.lower() == ".parquet" else f"{out.name}-"
    return out.with_name(f"{stem}.{name}.parquet")


def check_tables(out: Path, names: Iterable[str]) -> None:
    """Refuses a log where the ids of its columns could not be kept beside it, before any work is done.

    Raises:
        ValueError: something else where a table must go, the ids of another log among it.
    """
    for path in (table_path(out, name) for name in names):
        check_output(path)
        if path.exists() and log_of_table(path) != out.name:
            raise ValueError(f"{path}: must be free for the ids of {out}, got a file of another kind or log")


def stage_tables(names: Names, out: Path, stack: ExitStack) -> list[Path]:
    """Writes the table of each column that has ids; they take their places beside `out` when the stack is closed.

    Those of an earlier run for columns that have none now are removed then.
    """
    check_tables(out, (name for name, ids in names.known.items() if ids))
    kept = {table_path(out, name): name for name, ids in names.known.items() if ids}
    for path in set(out.parent.glob("*.parquet")).difference(kept):
        if log_of_table(path) == out.name:
            stack.push(lambda kind, *_, path=path: kind is None and path.unlink())
    for path, name in kept.items():
        part = stack.enter_context(whole_file(path))
        pq.write_table(names.table(name, out), part, compression="zstd", write_page_checksum=True)
    return list(kept)
