"""Event logs as others publish them: which of their columns is what, and the one form that all are read into."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class LogFormat:
    """Where a log keeps what an event is.

    Read, every log has the columns user_id, item_id, timestamp (s) and request_id (all int64), label (float32), and
    whatever else was asked for: a name that begins with `label` is what came of an event, known only afterwards; any
    other is a feature of the event, known before.

    Args:
        columns: name of ours to name of theirs: user_id, item_id, timestamp and label.
        extra: the same, of columns that are taken where the file has them: request_id, other labels, features.
        delimiter: of CSV files.
        header: names of the columns of a CSV file that does not begin with them.
        per_second: units of their timestamp in a second.
        positive: the least value that becomes label 1, others 0. None: labels are 0 and 1 already.
    """

    columns: Mapping[str, str]
    extra: Mapping[str, str] = field(default_factory=dict)
    delimiter: str = ","
    header: tuple[str, ...] | None = None
    per_second: int = 1
    positive: float | None = None

    def read(self, table: pa.Table, where: str, names: "Names") -> pa.Table:
        """Events of a table with their columns, in ours."""
        taken = {ours: theirs for ours, theirs in self.extra.items() if theirs in table.column_names}
        columns = {
            ours: self._column(table, where, ours, theirs, names) for ours, theirs in {**self.columns, **taken}.items()
        }
        # Without requests, all events of a user at one time are one.
        columns.setdefault("request_id", pa.array([0] * table.num_rows, pa.int64()))
        return pa.table(columns)

    def _column(self, table: pa.Table, where: str, ours: str, theirs: str, names: "Names") -> pa.ChunkedArray:
        if theirs not in table.column_names:
            raise ValueError(f"{where}: column {theirs} is missing, got {table.column_names}")
        column = table[theirs]
        if column.null_count:
            raise ValueError(f"{where}: column {theirs} must not have empty values, got {column.null_count}")
        if ours in ("user_id", "item_id", "request_id"):
            return names.numbers(ours, column, f"{where}: column {theirs}")
        if pa.types.is_timestamp(column.type):
            column = pc.cast(column, pa.timestamp("us")).cast(pa.int64())
            per_second = 1_000_000
        else:
            per_second = self.per_second
        try:
            numbers = pc.cast(column, pa.float64())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(f"{where}: column {theirs} must be numbers: {error}") from error
        if ours == "timestamp":
            return pc.cast(pc.floor(pc.divide(numbers, per_second)), pa.int64())
        if ours == "label" and self.positive is not None:
            numbers = pc.cast(pc.greater_equal(numbers, self.positive), pa.float64())
        if ours == "label" and not pc.all(pc.is_in(numbers, pa.array([0.0, 1.0]))).as_py():
            wrong = numbers.filter(pc.invert(pc.is_in(numbers, pa.array([0.0, 1.0]))))[0]
            raise ValueError(f"{where}: column {theirs} must be 0 or 1, got {wrong}")
        return pc.cast(numbers, pa.float32()) if ours.startswith("label") else column


class Names:
    """Numbers in the place of ids: an integer is its own, anything else is counted in order of first appearance."""

    def __init__(self) -> None:
        self.known: dict[str, dict[str, int]] = {}

    def numbers(self, name: str, column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
        """The ids of a column as int64; the same id is the same number in every call for `name`."""
        if pa.types.is_integer(column.type):
            if self.known.get(name):
                raise ValueError(f"{where} must hold names, as those read before, got {column.type}")
            self.known[name] = {}
            return column.cast(pa.int64())
        if name in self.known and not self.known[name]:
            raise ValueError(f"{where} must hold integers, as those read before, got {column.type}")
        known = self.known.setdefault(name, {})
        try:
            strings = column.cast(pa.string())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(f"{where} must be integers or names, got {column.type}: {error}") from error
        encoded = pa.concat_arrays(strings.chunks).dictionary_encode()
        own = pa.array([known.setdefault(each, len(known)) for each in encoded.dictionary.to_pylist()], pa.int64())
        return pa.chunked_array([own.take(encoded.indices)])


GENERIC = {"user_id": "user_id", "item_id": "item_id", "timestamp": "timestamp", "label": "label"}
_REQUEST = {"request_id": "request_id"}
_RATED = {**GENERIC, "label": "rating"}
_KUAIRAND_LABELS = ("is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view", "play_time_ms")

FORMATS = {
    "generic": LogFormat(GENERIC, _REQUEST),
    "ratings": LogFormat(_RATED, _REQUEST, positive=4),
    # RecBole's: the header carries types, user_id:token.
    "inter": LogFormat(
        {name: f"{name}:{kind}" for name, kind in (("user_id", "token"), ("item_id", "token"), ("timestamp", "float"))}
        | {"label": "rating:float"},
        delimiter="\t",
        positive=4,
    ),
    "movielens": LogFormat({**_RATED, "user_id": "userId", "item_id": "movieId"}, positive=4),
    "movielens-100k": LogFormat(
        _RATED, delimiter="\t", header=("user_id", "item_id", "rating", "timestamp"), positive=4
    ),
    # 1::1193::5::978300760, that is, an empty column between any two.
    "movielens-1m": LogFormat(
        _RATED, delimiter=":", header=("user_id", "", "item_id", "", "rating", "", "timestamp"), positive=4
    ),
    "kuairand": LogFormat(
        {"user_id": "user_id", "item_id": "video_id", "timestamp": "time_ms", "label": "is_click"},
        {f"label_{name.removeprefix('is_')}": name for name in _KUAIRAND_LABELS}
        | {"duration_ms": "duration_ms", "tab": "tab"},
        per_second=1000,
    ),
}
