"""Event logs and request-level batches on disk: Parquet with every history once. Needs pyarrow."""

from stca.data.dataset import RequestDataset
from stca.data.events import read_events
from stca.data.formats import FORMATS, LogFormat
from stca.data.git import read_git
from stca.data.group import group_events, group_log
from stca.data.ids import Names
from stca.data.write import write_requests

__all__ = [
    "FORMATS",
    "LogFormat",
    "Names",
    "RequestDataset",
    "group_events",
    "group_log",
    "read_events",
    "read_git",
    "write_requests",
]
