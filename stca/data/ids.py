"""Numbers in the place of ids: an integer is its own, any other id is counted; and the tables that keep them."""

from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stca.data.read import open_file
from stca.files import whole_file

_MARK = {b"stca.ids": b"1"}  # in the file, so that no other is taken for a table of ids


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

    def table(self, name: str) -> pa.Table:
        """The ids of a column, in the order of their numbers, which are their rows."""
        ids = [each.encode("utf-8", "surrogateescape") for each in self.known[name]]
        column = pa.array(ids, pa.binary())
        with suppress(pa.ArrowInvalid):  # names of files may be any bytes
            column = column.cast(pa.string())
        return pa.table({name: column, "number": pa.array(range(len(ids)), pa.int64())}).replace_schema_metadata(_MARK)

    @classmethod
    def load(cls, paths: Iterable[Path]) -> "Names":
        """The names of an earlier run, from the tables that it wrote, so that its ids keep their numbers.

        Raises:
            ValueError: a file that is no table of ids.
        """
        names = cls()
        for path in paths:
            with open_file(path) as file:
                table = file.read()
            if not is_table(path):
                raise ValueError(f"{path}: must be a table of ids that an earlier run wrote, got {table.column_names}")
            rows = list(range(len(table)))
            if (
                table["number"].to_pylist() != rows
                or names.numbers(table.column_names[0], table[0]).to_pylist() != rows
            ):
                raise ValueError(
                    f"{path}: must hold each id once, in the order of their numbers, and none that is empty"
                )
        return names


def is_table(path: Path) -> bool:
    """Whether `write_tables` wrote this file."""
    try:
        return b"stca.ids" in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):
        return False


def table_path(out: Path, name: str) -> Path:
    """Where the ids of a column of the log `out` are kept: `log.parquet` has `log.user_id.parquet`."""
    stem = out.stem if out.suffix.lower() == ".parquet" else f"{out.name}-"
    return out.with_name(f"{stem}.{name}.parquet")


def tables_beside(out: Path) -> list[Path]:
    """The tables of ids that lie beside a log."""
    tables = filter(is_table, sorted(out.parent.glob("*.parquet")))
    return [path for path in tables if path == table_path(out, pq.read_schema(path).names[0])]


def stage_tables(names: Names, out: Path, stack: ExitStack) -> list[Path]:
    """Writes the table of each column that has ids; they take their places beside `out` when the stack is closed.

    Those of an earlier run for columns that have none now are removed then.

    Raises:
        ValueError: a file of another kind where a table must go.
    """
    kept = {table_path(out, name): name for name, ids in names.known.items() if ids}
    for path in set(tables_beside(out)).difference(kept):
        stack.push(lambda kind, *_, path=path: kind is None and path.unlink())
    for path, name in kept.items():
        if path.exists() and not is_table(path):
            raise ValueError(f"{path}: must be free for the ids of {out}, got a file of another kind")
        part = stack.enter_context(whole_file(path))
        pq.write_table(names.table(name), part, compression="zstd", write_page_checksum=True)
    return list(kept)
