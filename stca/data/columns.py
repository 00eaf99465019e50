"""The columns of event logs and of files of request-level batches, and which names are whose."""

from collections.abc import Iterable

KINDS = {"history": "history_", "targets": "target_", "labels": "label_"}
VISIBLE, REQUESTS = ("visible_begin", "visible_end"), "request_targets"
_OWN = {"user_id": "user", "item_id": "item", "timestamp": "time", "label": "label"}  # in logs: in batches


def is_ours(column: str) -> bool:
    """Whether a column of a file of batches, where a row is one history with all that looks at it, is one of these."""
    return column.startswith(tuple(KINDS.values())) or column in (*VISIBLE, REQUESTS)


def feature_names(op: str, columns: Iterable[str]) -> dict[str, str]:
    """Columns of a log to names in its batches, `label_like` to `like`; request_id has none.

    Raises:
        ValueError: two columns of one name, by both, since one would overwrite the other.
    """
    taken = {name: column for column, name in _OWN.items()}
    names: dict[str, str] = {}
    for column in columns:
        if column == "request_id":
            continue
        name = _OWN.get(column) or column.removeprefix("label_")
        holder = taken.setdefault(name, column)
        if not name or holder != column:
            raise ValueError(f"{op}: column {column} must have another name, since in batches {name!r} is {holder}")
        names[column] = name
    return names
