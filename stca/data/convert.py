"""Event logs to request-level Parquet, from the command line; `python -m stca.data.convert --help`.

    python -m stca.data.convert ml-25m/ratings.csv requests.parquet
    python -m stca.data.convert log_standard_*.csv requests.parquet          KuaiRand
    python -m stca.data.convert path/to/any/git/clone requests.parquet       commits, authors and files
    python -m stca.data.convert events.csv requests.parquet --column user_id=uid --column item_id=sku
    python -m stca.data.convert Books.csv train.parquet --format amazon-2018
    python -m stca.data.convert later.csv test.parquet --format amazon-2018 --ids train.parquet
    python -m stca.data.convert log.gz out.parquet --header user_id,item_id,timestamp --delimiter tab --column label=

Several logs of one form, or a folder of parts, become one file. A log may be larger than memory.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from stca.data.events import read_events
from stca.data.folders import log_files
from stca.data.formats import COMPRESSIONS, FORMATS, UNITS, LogFormat
from stca.data.git import is_clone
from stca.data.group import group_log
from stca.data.ids import Names, check_tables, is_log, stage_tables, table_path
from stca.data.requests import LASTING
from stca.data.source import is_parquet
from stca.data.write import write_requests
from stca.files import check_output, whole_file

Piece = TypeVar("Piece")
_DELIMITERS = {"tab": "\t", "comma": ",", "semicolon": ";", "space": " "}


def write_events(tables: Iterable[pa.Table], path: Path, metadata: Callable[[], Mapping[str, str]] = dict) -> int:
    """Writes the log as it is, an event a row, as Parquet, with metadata as `write_requests`; the number of events."""
    writer: pq.ParquetWriter | None = None
    events = 0
    with whole_file(path) as part:
        try:
            for table in tables:
                if pa.types.is_integer(table["request_id"].type) and table["request_id"].null_count:  # there are none
                    table = table.drop_columns("request_id")
                writer = writer or pq.ParquetWriter(part, table.schema, compression="zstd", write_page_checksum=True)
                writer.write_table(table)
                events += len(table)
            if writer is not None:
                writer.add_key_value_metadata(metadata())
        finally:
            if writer is not None:
                writer.close()
    return events


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    args = _parser().parse_args(arguments)
    forms = _forms(args)
    check_output(args.out)
    inputs = [log.resolve() for log in args.logs]
    if args.out.exists() and not is_log(args.out) and args.out.resolve() not in inputs:
        raise ValueError(f"{args.out}: must be none yet, or a log that was written here before, got another file")
    _convert(args, forms, Names() if args.ids is None else Names.load(args.ids))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path, nargs="+", help="CSV or the like, Parquet, folders, git clones")
    parser.add_argument("out", type=Path, help="the Parquet file to write")
    parser.add_argument("--format", choices=sorted(FORMATS), help="of the logs; told from their columns when not given")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="OURS[:KIND]=THEIRS",
        help="a column by another name, or one more; KIND: id, int, float; int, text of ids; label= of a log without",
    )
    parser.add_argument("--header", help="names of the columns, by commas, of text without a line of them")
    parser.add_argument("--delimiter", help="of text: a character, or tab, comma, semicolon, space")
    parser.add_argument("--compression", choices=COMPRESSIONS[1:], help="of text")
    parser.add_argument("--encoding", help="of text; utf8 when not given")
    parser.add_argument("--no-quotes", action="store_true", help='text in which " is a character like any other')
    parser.add_argument("--nulls", help="texts, by commas, that stand for an empty cell")
    parser.add_argument("--time-unit", help="of timestamps: s, ms, us, ns, or seconds of a unit")
    parser.add_argument("--time-format", help="of timestamps that are text, as for strptime")
    parser.add_argument("--positive", help="the least label, or rating, that becomes 1; or texts, by commas")
    parser.add_argument("--ids", type=Path, help="the output of an earlier run, whose ids keep their numbers")
    parser.add_argument("--per-history", type=int, help="requests that share a history; all of a user's by default")
    parser.add_argument("--max-length", type=int, help="events that a target sees at most, the latest")
    parser.add_argument("--lasting", choices=LASTING, default=LASTING[0], help="requests with events at several times")
    parser.add_argument("--events", action="store_true", help="write the plain log instead, an event a row")
    return parser


def _forms(args: argparse.Namespace) -> LogFormat | dict[str, LogFormat]:
    """The format that was named, or all of them, with what the command line says."""
    if args.per_history is not None and args.per_history < 1:
        raise ValueError(f"--per-history must be at least 1, got {args.per_history}")
    if args.max_length is not None and args.max_length < 0:
        raise ValueError(f"--max-length must not be negative, got {args.max_length}")
    if args.events and (args.per_history, args.max_length, args.lasting) != (None, None, LASTING[0]):
        raise ValueError("--events must be without --per-history, --max-length and --lasting, which are of requests")
    columns, kinds = _columns(args.column)
    changes: dict[str, Any] = {}
    for name in ("compression", "encoding", "time_format"):
        if getattr(args, name) is not None:
            changes[name] = getattr(args, name)
    if args.header is not None:
        changes["header"] = tuple(args.header.split(","))
    if args.delimiter is not None:
        changes["delimiter"] = _DELIMITERS.get(args.delimiter, args.delimiter)
        if len(changes["delimiter"]) != 1:
            raise ValueError(f"--delimiter must be one character, or one of {list(_DELIMITERS)}, got {args.delimiter}")
    if args.nulls is not None:
        changes["nulls"] = ("", *args.nulls.split(","))
    if args.no_quotes:
        changes["quoted"] = False
    if args.time_unit is not None:
        changes["per_second"] = _per_second(args.time_unit)
    if args.positive is not None:
        changes["positive"] = _positive(args.positive)

    def changed(form: LogFormat) -> LogFormat:
        ours = {**form.columns, **columns}
        ours = {name: theirs for name, theirs in ours.items() if theirs}
        extra = {name: theirs for name, theirs in form.extra.items() if name not in columns}
        return replace(form, columns=ours, extra=extra, kinds={**form.kinds, **kinds}, **changes)

    if args.format:
        return changed(FORMATS[args.format])
    return {name: changed(form) for name, form in FORMATS.items()}


def _columns(given: list[str]) -> tuple[dict[str, str], dict[str, Any]]:
    columns: dict[str, str] = {}
    kinds: dict[str, str] = {}
    for each in given:
        ours, equals, theirs = each.partition("=")
        ours, _, kind = ours.partition(":")
        if not equals or not ours or (not theirs and ours != "label"):
            raise ValueError(f"--column must be OURS=THEIRS, or label=, got {each}")
        if ours in columns:
            raise ValueError(f"--column must name {ours} once, got {columns[ours]} and {theirs}")
        columns[ours] = theirs
        if kind:
            kinds[ours] = kind
    return columns, kinds


def _per_second(unit: str) -> float:
    try:
        return UNITS[unit] if unit in UNITS else 1 / float(unit)
    except (ValueError, ArithmeticError) as error:
        raise ValueError(f"--time-unit must be one of {list(UNITS)}, or seconds, got {unit}") from error


def _positive(least: str) -> float | tuple[str, ...]:
    try:
        return float(least)
    except ValueError:
        return tuple(least.split(","))


def _check_options_of_text(args: argparse.Namespace) -> None:
    names = ("header", "delimiter", "compression", "encoding", "nulls", "no_quotes")
    given = [name for name in names if getattr(args, name) not in (None, False)]
    if given and all(is_clone(path) or is_parquet(path) for path in log_files(args.logs)):
        raise ValueError(f"--{given[0].replace('_', '-')} must be without Parquet and clones, got no text file")


def _convert(args: argparse.Namespace, forms: LogFormat | dict[str, LogFormat], names: Names) -> None:
    with_ids = ["user_id", "item_id", *(name for name, kind in _columns(args.column)[1].items() if kind == "id")]
    for log in args.logs:
        if log.is_dir() and not is_clone(log) and args.out.resolve().is_relative_to(log.resolve()):
            raise ValueError(f"{args.out}: must not lie in {log}, of which every file is read")
        if log.resolve() in {table_path(args.out, name).resolve() for name in with_ids}:
            raise ValueError(f"{log}: must not be where the ids of {args.out} go")
    _check_options_of_text(args)
    check_tables(args.out, with_ids)
    tables = _with_progress("reading", "event", read_events(args.logs, forms, names), len)
    with ExitStack() as output:
        part = output.enter_context(whole_file(args.out))
        if args.events:
            done = f"{write_events(tables, part, names.mark):,} events"
        else:
            batches = group_log(tables, per_history=args.per_history, max_length=args.max_length, lasting=args.lasting)
            batches = _with_progress("writing", "target", batches, lambda batch: batch.T)
            done = f"{write_requests(batches, part, metadata=names.mark):,} histories"
        with ExitStack() as ids:
            kept = stage_tables(names, args.out, ids)
            ids.push(output.pop_all())  # the log takes its place first, and only then its ids theirs
    print(f"written: {args.out}, {done}")
    for path in kept:
        print(f"written: {path}")


def _with_progress(what: str, unit: str, pieces: Iterable[Piece], size: Callable[[Piece], int]) -> Iterator[Piece]:
    progress: tqdm | None = None
    for piece in pieces:
        if progress is None:  # not before there is something, else it disturbs the bar of what comes first
            progress = tqdm(desc=what, unit=unit, unit_scale=True)
        progress.update(size(piece))
        yield piece
    if progress is not None:
        progress.close()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are removed
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"stca.data.convert: {error}")
