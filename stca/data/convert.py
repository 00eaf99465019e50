"""Event logs to request-level Parquet, from the command line; `python -m stca.data.convert --help`.

    python -m stca.data.convert ml-25m/ratings.csv requests.parquet
    python -m stca.data.convert log_standard_*.csv requests.parquet          KuaiRand
    python -m stca.data.convert path/to/any/git/clone requests.parquet       commits, authors and files
    python -m stca.data.convert events.csv requests.parquet --column user_id=uid --column item_id=sku

Several logs of one form become one file. A log may be larger than memory.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from stca.data.events import read_events
from stca.data.formats import FORMATS, Names
from stca.data.group import group_log
from stca.data.write import write_requests

Piece = TypeVar("Piece")


def write_events(tables: Iterable[pa.Table], path: Path) -> None:
    """Writes the log as it is, an event a row, as Parquet."""
    writer: pq.ParquetWriter | None = None
    try:
        for table in tables:
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd", write_page_checksum=True)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path, nargs="+", help="CSV (also .gz), Parquet, or a git clone's folder")
    parser.add_argument("out", type=Path, help="the Parquet file to write")
    parser.add_argument("--format", choices=sorted(FORMATS), help="of the logs; told from their columns when not given")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="OURS=THEIRS",
        help="a column of another name, or a further one",
    )
    parser.add_argument("--positive", type=float, help="the least label, or rating, that becomes 1")
    parser.add_argument("--per-history", type=int, help="requests that share a history; all of a user's by default")
    parser.add_argument("--max-length", type=int, help="events that a target sees at most, the latest")
    parser.add_argument("--events", action="store_true", help="write the plain log instead, an event a row")
    args = parser.parse_args(arguments)

    form, names = FORMATS[args.format] if args.format else None, Names()
    if args.column or args.positive is not None:
        form = form or FORMATS["generic"]
        given = dict(column.split("=", 1) for column in args.column)
        needed = {ours: given.pop(ours, theirs) for ours, theirs in form.columns.items()}
        form = replace(form, columns=needed, extra={**form.extra, **given}, positive=args.positive or form.positive)
    events = _with_progress("reading", "event", read_events(args.logs, form, names), len)
    if args.events:
        write_events(events, args.out)
        print(f"written: {args.out}")
    else:
        batches = group_log(events, per_history=args.per_history, max_length=args.max_length)
        batches = _with_progress("writing", "target", batches, lambda batch: batch.T)
        print(f"written: {args.out}, {write_requests(batches, args.out):,} histories")
    for name, numbers in names.known.items():
        if numbers:  # a row is the number's name
            side = args.out.with_suffix(f".{name}.parquet")
            pq.write_table(pa.table({name: list(numbers)}), side)
            print(f"written: {side}")


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
    main()
