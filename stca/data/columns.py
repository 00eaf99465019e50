"""The columns of a file of request-level batches: a row is one history with all that looks at it, in lists."""

KINDS = {"history": "history_", "targets": "target_", "labels": "label_"}
VISIBLE, REQUESTS = ("visible_begin", "visible_end"), "request_targets"


def is_ours(column: str) -> bool:
    """Whether a column is one of these."""
    return column.startswith(tuple(KINDS.values())) or column in (*VISIBLE, REQUESTS)
