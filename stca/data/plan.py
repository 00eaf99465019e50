"""What each column of a log is to become, told from all of its files and values before any event is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stca.data.cells import are_integers, id_cells, is_number
from stca.data.detect import missing_column
from stca.data.formats import FORMATS, IDS, UNITS, LogFormat, is_label
from stca.data.ids import Names
from stca.data.piece import Piece
from stca.data.read import open_file
from stca.data.source import column_names, is_parquet, pieces
from stca.data.times import times

_YEARS = 631_152_000, 4_102_444_800  # seconds of 1990 and 2100


@dataclass
class Seen:
    """What a file holds, by our names of its columns."""

    path: Path
    form: LogFormat
    columns: dict[str, str]
    text: bool  # no Parquet: its cells have no types
    types: dict[str, pa.DataType]  # string where it is text
    whole: dict[str, bool] = field(default_factory=dict)  # whether all values of what is text are integers
    units: dict[str, int] = field(default_factory=dict)  # units of time that a value is plausible in, and which value
    kept: list[Piece] | None = None  # the whole file, where that was to be had

    def where(self, ours: str) -> str:
        """The column, for messages."""
        return f"{self.path}: column {self.columns[ours]}"


@dataclass(frozen=True)
class Plan:
    """What the columns of a log become, by our names, and how many units of its numbers of time are a second."""

    types: Mapping[str, pa.DataType]
    per_second: float

    def keeps_integers(self, ours: str) -> bool:
        """Whether integers of a column stay what they are."""
        return ours == "timestamp" or self.types.get(ours) == pa.int64()


def look(path: Path, form: LogFormat, room: int = 0) -> Seen:
    """What a file holds; of columns that are text, or times of no unit, every value is looked at.

    Args:
        path: the file.
        form: how it is laid out.
        room: bytes of memory in which it may be kept, so that it is read once.

    Raises:
        ValueError: a file that cannot be read, a column that is missing, or a value that none of its column can be.
    """
    form.check_roles(str(path))
    present = column_names(path, form)
    for theirs in form.columns.values():
        if theirs not in present:
            raise ValueError(f"{path}: {missing_column(theirs, '', present)}")
    text = not is_parquet(path)
    seen = Seen(path, form, form.found(present), text, {})
    if not text:
        with open_file(path) as file:
            schema = file.schema_arrow
    for ours, theirs in seen.columns.items():
        kind = pa.string() if text or theirs not in schema.names else schema.field(theirs).type  # not: in a packed cell
        seen.types[ours] = kind.value_type if pa.types.is_dictionary(kind) else kind
    waiting = [ours for ours, kind in seen.types.items() if _must_be_looked_at(ours, kind, form, text)]
    kept: list[Piece] | None = [] if path.stat().st_size < room else None
    wanted = list(seen.columns) if kept is not None else waiting
    for piece in pieces(path, form, [seen.columns[ours] for ours in wanted]) if waiting else ():
        typed = {}
        for ours in list(waiting):
            theirs = seen.columns[ours]
            if ours == "timestamp":
                values, own = times(piece, theirs, form)
                done, typed[theirs] = _note_units(seen, values, own), None if own else pa.array(values)
            elif ours in IDS or form.kinds.get(ours) == "id":
                typed[theirs] = ids = id_cells(piece, theirs, form)
                done = ids.type != pa.int64()
                seen.whole[ours] = not done
            else:
                done = not are_integers(piece, theirs, form)
                seen.whole[ours] = not done
            if done:  # and no other value can change that
                waiting.remove(ours)
        if not waiting:
            return seen
        if kept is not None:
            kept.append(piece.with_columns(typed))
            room -= kept[-1].table.nbytes
            kept = kept if room > 0 else None
    seen.kept = kept
    return seen


def look_at_clone(path: Path) -> Seen:
    """What `read_git` makes of a clone."""
    types = {"user_id": pa.string(), "item_id": pa.string(), "timestamp": pa.int64(), "label": pa.float32()}
    columns = {name: name for name in [*types, "request_id"]}
    return Seen(path, FORMATS["generic"], columns, False, {**types, "request_id": pa.int64()})


def _must_be_looked_at(ours: str, kind: pa.DataType, form: LogFormat, text: bool) -> bool:
    if ours == "timestamp":
        return form.per_second is None and form.time_format is None and not pa.types.is_temporal(kind)
    if is_label(ours) or form.kinds.get(ours, "id") != "id":
        return False
    if ours in IDS or ours in form.kinds:  # text of Parquet says itself that it is text
        return text or pa.types.is_decimal(kind) or kind == pa.uint64()
    return not is_number(kind)


def _note_units(seen: Seen, values: NDArray[Any], own: int | None) -> bool:
    """Keeps in which units the times are plausible; whether the file says the unit itself."""
    seen.whole["timestamp"] = own is None and values.dtype == np.int64 and seen.whole.get("timestamp", True)
    if own is not None:
        return True
    if _are_days(values):
        raise ValueError(f"{seen.where('timestamp')} must be times, got {values[0]} and the like: days as %Y%m%d?")
    for unit, rate in UNITS.items():
        plausible = (values >= _YEARS[0] * rate) & (values < _YEARS[1] * rate)
        if unit not in seen.units and plausible.any():
            seen.units[unit] = values[plausible.argmax()].item()
    return False


def _are_days(values: NDArray[Any]) -> bool:
    """Whether numbers are days, hours or minutes written without a sign between: 20180920, 2018092012, 201809201230."""
    for digits, most in ((0, (0, 0)), (2, (23, 0)), (4, (23, 59))):
        days, rest = values // 10**digits, values % 10**digits
        hours, minutes = (rest // 10 ** (digits - 2), rest % 10 ** (digits - 2)) if digits else (0 * rest, 0 * rest)
        months = days // 100 % 100
        fits = (days // 10_000 >= 1990) & (days // 10_000 < 2100) & (months >= 1) & (months <= 12)
        fits &= (days % 100 >= 1) & (days % 100 <= 31) & (hours <= most[0]) & (minutes <= most[1])
        if fits.all():
            return True
    return False


def settle(files: Sequence[Seen], names: Names) -> Plan:
    """One plan for all files.

    Raises:
        ValueError: files, or values, that do not go together, by both.
    """
    first = files[0]
    for seen in files:
        if set(seen.columns) != set(first.columns):
            odd = min(set(seen.columns) ^ set(first.columns))
            has, lacks = (seen, first) if odd in seen.columns else (first, seen)
            raise ValueError(f"{lacks.path}: column {has.columns[odd]} of {has.path} is missing")
        if seen.columns != first.columns:
            ours = min(ours for ours in seen.columns if seen.columns[ours] != first.columns[ours])
            raise ValueError(f"{seen.where(ours)} must be {first.columns[ours]} as in {first.path}: logs of two forms")
    types = {}
    for ours in first.columns:
        if ours == "request_id":
            types[ours] = _request_type(files)
        elif ours in IDS or first.form.kinds.get(ours) == "id":
            types[ours] = _id_type(ours, files, names)
        elif ours != "timestamp" and not is_label(ours):
            types[ours] = _feature_type(ours, files)
    return Plan(types, _per_second(files))


def _request_type(files: Sequence[Seen]) -> pa.DataType:
    kinds = {_class_of("request_id", seen) for seen in files}
    if not kinds & {"names", "large"}:
        return pa.int64()
    bytes_too = any("binary" in str(seen.types["request_id"]) for seen in files)
    return pa.binary() if bytes_too else pa.string()


def _id_type(ours: str, files: Sequence[Seen], names: Names) -> pa.DataType:
    fixed = None if ours not in names.known else "names" if names.known[ours] else "integers"
    for seen in files:
        kind = _class_of(ours, seen)
        if {kind, fixed} == {"integers", "names"} or (kind == "large" and fixed == "integers" and ours in names.known):
            raise ValueError(f"{seen.where(ours)} must hold {fixed}, as those read before, got {seen.types[ours]}")
        if kind is not None and fixed != "names":
            fixed = kind if fixed != "large" else fixed
    names.known.setdefault(ours, {})
    return pa.string() if fixed in ("names", "large") else pa.int64()


def _class_of(ours: str, seen: Seen) -> str | None:
    """What ids of a file are: integers, names, integers past int64 among them ("large"), or what others are (None)."""
    if (kind := seen.form.kinds.get(ours, "id")) != "id":
        return "integers" if kind == "int" else "names"
    if pa.types.is_integer(seen.types[ours]) or pa.types.is_decimal(seen.types[ours]):
        return "integers" if seen.whole.get(ours, True) else "large"
    return None if seen.whole.get(ours, seen.text) else "names"


def _feature_type(ours: str, files: Sequence[Seen]) -> pa.DataType:
    """The type that holds every value of all files."""
    declared = {"int": pa.int64(), "float": pa.float64()}.get(files[0].form.kinds.get(ours, ""))
    if declared is not None:
        return declared
    kinds = {_number_type(ours, seen) for seen in files}
    if len(kinds) == 1:
        return kinds.pop()
    return pa.from_numpy_dtype(np.result_type(*(kind.to_pandas_dtype() for kind in kinds)))


def _number_type(ours: str, seen: Seen) -> pa.DataType:
    kind = seen.types[ours]
    if is_number(kind):
        return pa.float64() if pa.types.is_decimal(kind) else kind
    return pa.int64() if seen.whole.get(ours, True) else pa.float64()


def _per_second(files: Sequence[Seen]) -> float:
    form = files[0].form
    if form.per_second is not None:
        return form.per_second
    found = {unit: (seen, value) for seen in files for unit, value in seen.units.items()}
    if len(found) > 1:
        each = ", ".join(f"{value} ({unit}, {seen.path})" for unit, (seen, value) in found.items())
        raise ValueError(f"{files[0].where('timestamp')} must be of one unit, got {each}")
    for unit, (seen, value) in found.items():
        if unit != "s":
            warn(f"{seen.where('timestamp')} is taken for {unit} since 1970, as {value} is", stacklevel=4)
        return UNITS[unit]
    return 1
