"""Which events of a log are one request, and where the history of a request ends."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Integers = NDArray[np.int64]
LASTING = ("first", "refuse")


@dataclass(frozen=True)
class Requests:
    """Requests of a table of events; all arrays but two are [requests], by user, time and request.

    A request is what belongs to one user and one request id, or where there are none to one moment: its targets, rows
    begin:end of the events sorted by `targets`. Its time is that of its first event, and its history is what the user
    did strictly before: rows user_begin:history_end of the events sorted by `order`.
    """

    order: Integers  # [E], sorts the events by user and time
    targets: Integers  # [E], sorts them by user, time of the request, and request; mostly the same
    user: Integers
    time: Integers
    begin: Integers  # first target
    end: Integers
    user_begin: Integers  # the user's first event
    history_end: Integers  # the user's first event that is not strictly earlier


def find_requests(user: Integers, time: Integers, request: Integers | None = None, lasting: str = "first") -> Requests:
    """Requests of events given as arrays [E] in any order.

    Args:
        user: of each event.
        time: of each event.
        request: which request of the user an event belongs to. None: all events of a user at one time are one.
        lasting: what of a request with events at several times: "first", its time is the first, or "refuse".

    Raises:
        ValueError: a request that lasts, where such are refused.
    """
    start = time
    if request is None:
        order = targets = np.lexsort((time, user))
        request = np.zeros_like(user)
    else:
        order = np.lexsort((request, time, user))
        start = _first_times(user, time, request)
        later = np.flatnonzero(start != time)
        if len(later) and lasting == "refuse":
            at = later[0]
            raise ValueError(
                f"group_events: requests must have one time, got one of user {user[at]} from {start[at]} to {time[at]}"
            )
        targets = np.lexsort((time, request, start, user)) if len(later) else order
    owner, when, name = user[targets], start[targets], request[targets]
    begin = np.flatnonzero(_changes(owner) | _changes(when) | _changes(name))
    # Times by rank, so that a user and a time are one number however large they are.
    user_rank, moments = np.cumsum(_changes(user[order])) - 1, np.unique(time)
    place = user_rank * (len(moments) + 1)
    keys = place + np.searchsorted(moments, time[order])
    first = np.flatnonzero(_changes(user[order]))
    own_rank = np.cumsum(_changes(owner))[begin] - 1
    return Requests(
        order=order,
        targets=targets,
        user=owner[begin],
        time=when[begin],
        begin=begin,
        end=np.append(begin[1:], len(user)),
        user_begin=first[own_rank],
        history_end=np.searchsorted(keys, own_rank * (len(moments) + 1) + np.searchsorted(moments, when[begin])),
    )


def _changes(values: Integers) -> NDArray[np.bool_]:
    """Whether each value differs from the one before; the first does."""
    return np.concatenate([np.ones(min(1, len(values)), bool), values[1:] != values[:-1]])


def _first_times(user: Integers, time: Integers, request: Integers) -> Integers:
    """The time of the first event of each event's request, [E]."""
    order = np.lexsort((time, request, user))
    first = np.flatnonzero(_changes(user[order]) | _changes(request[order]))
    start = np.empty_like(time)
    start[order] = np.repeat(time[order][first], np.diff(np.append(first, len(time))))
    return start


def request_numbers(events: pa.Table) -> Integers | None:
    """A number for each request id of a table, or None where it has none: they need only differ within a user.

    Raises:
        ValueError: ids of which some are empty.
    """
    if "request_id" not in events.column_names or events["request_id"].null_count == len(events):
        return None
    column = events["request_id"]
    if column.null_count:
        raise ValueError(f"group_events: column request_id must not have empty values, got {column.null_count}")
    if pa.types.is_nested(column.type) or pa.types.is_floating(column.type):
        raise ValueError(f"group_events: column request_id must be integers or text, got {column.type}")
    if pa.types.is_integer(column.type):
        return np.asarray(column.to_numpy())
    return np.asarray(column.combine_chunks().dictionary_encode().indices.to_numpy())
