"""Event logs to tables of one form, a piece at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from stca.data.formats import FORMATS, LogFormat, Names
from stca.data.git import read_git
from stca.data.read import UNREADABLE, broken_part, open_file


def read_events(
    paths: Path | str | Sequence[Path | str], form: LogFormat | None = None, names: Names | None = None
) -> Iterator[pa.Table]:
    """Events of one log or of several of one form, as tables of what `LogFormat` describes, in the files' order.

    A piece of a file is in memory at a time, and of ids that are no integers, each distinct one.

    Args:
        paths: CSV (also .gz), Parquet, or the folder of a git clone, see `read_git`.
        form: how the files are laid out. None: the one of `stca.data.FORMATS` that their name or columns tell.
        names: keeps which number each id that is no integer became.

    Raises:
        ValueError: a file that cannot be read, a column that is missing, or one with empty or malformed values, by
            file and column; or files that hold no event.

    Example:
        >>> import pathlib, tempfile, stca.data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "ratings.csv")
        ...     _ = path.write_text("userId,movieId,rating,timestamp\\n7,31,2.5,1260759144\\n")
        ...     [table] = stca.data.read_events(path)
        >>> table.drop_columns("request_id").to_pylist()
        [{'user_id': 7, 'item_id': 31, 'timestamp': 1260759144, 'label': 0.0}]
    """
    files = [Path(path) for path in ([paths] if isinstance(paths, Path | str) else paths)]
    names, events = names or Names(), 0
    for path in files:
        for table in read_git(path, names=names) if path.is_dir() else _read_file(path, form, names):
            events += len(table)
            yield table
    if not events:
        raise ValueError(f"{', '.join(map(str, files))}: must hold at least one event, got none")


def detect_format(path: Path) -> LogFormat:
    """The published form of a log: by name where a file has no header, else the first that has all columns there."""
    by_name = {"u.data": "movielens-100k", "ratings.dat": "movielens-1m"}
    if path.name in by_name:
        return FORMATS[by_name[path.name]]
    try:
        if path.suffix == ".parquet":
            present = pq.read_schema(path).names
        else:
            with pa.input_stream(str(path), compression="detect") as stream:
                line = stream.read(65_536).decode(errors="replace").splitlines()[:1]
            present = [name.strip('"') for name in "".join(line).split("\t" if path.suffix == ".inter" else ",")]
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from error
    missing = {}
    for name, form in FORMATS.items():
        missing[name] = [theirs for theirs in form.columns.values() if theirs not in present]
        if form.header is None and not missing[name]:
            return form
    fewest = min((name for name in missing if FORMATS[name].header is None), key=lambda name: len(missing[name]))
    raise ValueError(f"{path}: column {missing[fewest][0]} of a {fewest} log is missing, got {present}")


def _read_file(path: Path, form: LogFormat | None, names: Names) -> Iterator[pa.Table]:
    form = form or detect_format(path)
    try:
        for batch in _batches(path, form):
            if batch.num_rows:
                yield form.read(pa.Table.from_batches([batch]), str(path), names)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from error


def _batches(path: Path, form: LogFormat) -> Iterator[pa.RecordBatch]:
    if path.suffix == ".parquet":
        with open_file(path) as file:
            try:
                yield from file.iter_batches()
            except UNREADABLE as error:
                part = broken_part(file, range(file.num_row_groups))
                raise ValueError(f"{path}: {part} cannot be read: {error}") from error
        return
    header = None if form.header is None else [name or f"empty{i}" for i, name in enumerate(form.header)]
    with pa.input_stream(str(path), compression="detect") as stream:
        yield from pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(column_names=header),
            parse_options=pyarrow.csv.ParseOptions(delimiter=form.delimiter),
        )


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: must be a whole CSV or Parquet file: {error}")
