"""Event logs and request-level batches on disk: Parquet with every history once. Needs pyarrow."""

from stca.data.dataset import RequestDataset
from stca.data.detect import detect_format
from stca.data.events import read_events, read_file
from stca.data.folders import log_files
from stca.data.formats import FORMATS, LogFormat
from stca.data.git import read_git
from stca.data.group import group_events, group_log, part_of_user
from stca.data.ids import Names
from stca.data.plan import Plan, Seen, look, settle
from stca.data.source import is_empty
from stca.data.write import write_requests

__all__ = [
    "FORMATS",
    "LogFormat",
    "Names",
    "Plan",
    "RequestDataset",
    "Seen",
    "detect_format",
    "group_events",
    "group_log",
    "is_empty",
    "log_files",
    "look",
    "part_of_user",
    "read_events",
    "read_file",
    "read_git",
    "settle",
    "write_requests",
]
