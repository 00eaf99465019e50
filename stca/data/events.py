"""Event logs to tables of one form, a piece at a time."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from warnings import warn

import pyarrow as pa
import pyarrow.compute as pc

from stca.data.cells import as_integers, id_cells, label, numbers
from stca.data.detect import detect_format
from stca.data.folders import log_files
from stca.data.formats import FORMATS, IDS, LogFormat, is_label
from stca.data.git import is_clone, read_git
from stca.data.ids import Names
from stca.data.piece import Piece
from stca.data.plan import Plan, Seen, look, look_at_clone, settle
from stca.data.source import is_empty, pieces
from stca.data.times import seconds

_ROOM = 256 << 20  # bytes of a log that is not read a second time


def read_events(
    paths: Path | str | Sequence[Path | str],
    form: LogFormat | Mapping[str, LogFormat] | None = None,
    names: Names | None = None,
) -> Iterator[pa.Table]:
    """Events of one log or of several of one form, as tables of what `LogFormat` describes, in the files' order.

    What a column is, integers or text, and in which unit its times are, is told from all of its values: where the form
    does not say it, a text file is read twice, except for the first 256 MiB. A piece of a file is in memory at a time,
    and of ids of users and items that are no integers, each distinct one.

    Args:
        paths: text files (CSV and the like, packed or not), Parquet, folders of such parts, or git clones, see
            `read_git`.
        form: how the files are laid out, or forms to choose from by the names of columns. None: `stca.data.FORMATS`.
        names: keeps which number each id that is no integer became, and knows those of an earlier run.

    Raises:
        ValueError: a file that cannot be read, a column that is missing, or a value that is empty, malformed or out of
            range, by file, column and row; files that do not go together; or files that hold no event.

    Warns:
        UserWarning: a unit of time that was found and is not seconds; files of a folder, or commits, that are left out;
            texts of `LogFormat.positive` that no label is.

    Example:
        >>> import pathlib, tempfile, stca.data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "ratings.csv")
        ...     _ = path.write_text("userId,movieId,rating,timestamp\\n7,31,2.5,1260759144\\n")
        ...     [table] = stca.data.read_events(path)
        >>> table.drop_columns("request_id").to_pylist()
        [{'user_id': 7, 'item_id': 31, 'timestamp': 1260759144, 'label': 0.0}]
    """
    names, events = names or Names(), 0
    files = log_files(paths)
    parts = [path for path in files if is_clone(path) or not is_empty(path) or len(files) == 1]
    seen, room = [], _ROOM
    for path in parts:
        if is_clone(path):
            seen.append(look_at_clone(path))
            continue
        seen.append(look(path, form if isinstance(form, LogFormat) else detect_format(path, form or FORMATS), room))
        room -= sum(piece.table.nbytes for piece in seen[-1].kept or ())
    plan = settle(seen, names) if seen else Plan({}, 1)
    clones = [path for path in parts if is_clone(path)]
    commits, positive = 0, False  # commits of clones are numbered on, so that no two are one request
    for each in seen:
        if clone := each.path in clones:
            prefix = f"{each.path}/" if len(clones) > 1 else ""
            tables = read_git(each.path, names=names, first=commits, prefix=prefix)
        else:
            tables = read_file(each, plan, names)
        for table in tables:
            if clone:
                commits = max(commits, pc.max(table["request_id"]).as_py() + 1)
                table = table.set_column(4, "request_id", table["request_id"].cast(plan.types["request_id"]))
            events += len(table)
            positive = positive or pc.any(pc.equal(table["label"], 1)).as_py()
            yield table
    if not events:
        raise ValueError(f"{', '.join(map(str, files)) or 'read_events'}: must hold at least one event, got none")
    if not positive and isinstance(seen[0].form.positive, tuple):
        warn(f"{seen[0].where('label')} is never one of {list(seen[0].form.positive)}: all labels are 0", stacklevel=2)


def read_file(seen: Seen, plan: Plan, names: Names) -> Iterator[pa.Table]:
    """The events of a file that has been looked at, so that the files of a log may be read side by side.

    Example:
        >>> import pathlib, tempfile, stca.data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name, time in (("1.csv", 1260759144), ("2.csv", 1260759145)):
        ...         line = f"7,31,{time},1"
        ...         _ = pathlib.Path(folder, name).write_text(f"user_id,item_id,timestamp,label\\n{line}\\n")
        ...     files, names = stca.data.log_files(folder), stca.data.Names()
        ...     seen = [stca.data.look(path, stca.data.detect_format(path)) for path in files]
        ...     plan = stca.data.settle(seen, names)
        ...     times = [t["timestamp"].to_pylist() for file in seen for t in stca.data.read_file(file, plan, names)]
        >>> times
        [[1260759144], [1260759145]]
    """
    other = {seen.columns[ours] for ours in seen.columns if not (seen.whole.get(ours) and plan.keeps_integers(ours))}
    integers = set(seen.columns.values()) - other
    for piece in seen.kept or pieces(seen.path, seen.form, list(seen.columns.values()), integers):
        columns = {ours: _column(piece, seen.form, ours, theirs, plan, names) for ours, theirs in seen.columns.items()}
        if "label" not in columns:
            columns["label"] = pa.repeat(pa.scalar(1, pa.float32()), len(piece.table))
        # Without requests, all events of a user at one time are one.
        columns.setdefault("request_id", pa.nulls(len(piece.table), pa.int64()))
        yield pa.table(columns)


def _column(piece: Piece, form: LogFormat, ours: str, theirs: str, plan: Plan, names: Names) -> pa.Array:
    if ours == "timestamp":
        return seconds(piece, theirs, form, plan.per_second)
    if is_label(ours):
        return label(piece, theirs, form, binary=ours == "label")
    kind = plan.types[ours]
    if ours not in IDS and form.kinds.get(ours) != "id":
        return numbers(piece, theirs, form, kind)
    ids = id_cells(piece, theirs, form)
    if kind == pa.int64():
        if (integers := ids if ids.type == kind else as_integers(ids)) is None:
            wrong = next(at for at in range(len(ids)) if as_integers(ids[at : at + 1]) is None)
            raise piece.error(theirs, "be integers", wrong, ids[wrong].as_py())
        return integers
    text = ids.cast(pa.string()) if ids.type == pa.int64() else ids
    return text.cast(kind) if ours == "request_id" else names.numbers(ours, text)
