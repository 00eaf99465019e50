"""Groups an event log that is too large for one machine into requests, with Ray Data (`pip install 'ray[data]'`).

    python examples/prepare_on_ray.py events/*.parquet requests/
    python examples/prepare_on_ray.py events/*.csv requests/ --parts 1000 --per-history 40 --max-length 10000

Does what `python -m stca.data.convert` does, on as many machines as the Ray cluster has (RAY_ADDRESS), or on this one
alone. Files are read side by side, so a log should be many. Each file that is written has the histories of a part of
the users; give them all to `stca.data.RequestDataset`. Memory is bounded by a part: take more of them for a larger log.
Ids of users and items must be integers, and the folders such that all machines share them. The folder appears when all
of it is written, beside it until then; one that holds something is refused, or replaced with --overwrite.
"""

import argparse
import resource
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from stca.data import (
    FORMATS,
    LogFormat,
    Names,
    Plan,
    Seen,
    detect_format,
    group_events,
    is_empty,
    log_files,
    look,
    part_of_user,
    read_file,
    settle,
    write_requests,
)
from stca.files import whole_folder


def prepare(
    paths: list[Path],
    out: Path,
    *,
    form: LogFormat | None = None,
    parts: int = 64,
    per_history: int | None = None,
    max_length: int | None = None,
    overwrite: bool = False,
) -> int:
    """Writes part-00000.parquet and so on; the number of histories.

    Raises:
        ValueError: an option that is too small, a log that is missing or lies in the folder, a folder that is not
            empty, or, with `overwrite`, holds other files than this program's: all before work begins; or what
            `stca.data.read_events` refuses.
    """
    for name, value, least in (("parts", parts, 1), ("per_history", per_history, 1), ("max_length", max_length, 0)):
        if value is not None and value < least:
            raise ValueError(f"prepare: {name} must be at least {least}, got {value}")
    paths, out = [path.resolve() for path in paths], out.resolve()
    for path in paths:
        if not path.exists() or path.is_relative_to(out):
            raise ValueError(f"{path}: must exist, and not lie in {out}, which is written")
    others = [path.name for path in out.glob("*") if not path.match("part-*.parquet")]
    if overwrite and others:
        raise ValueError(f"{out}: must hold part-*.parquet alone to be replaced, got {min(others)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(out, overwrite) as folder:
        seen, plan = _planned(paths, form)
        files = ray.data.from_items(list(seen), override_num_blocks=len(seen))
        read = partial(_read, seen=seen, plan=plan, parts=parts)
        write = partial(_write_part, out=folder, per_history=per_history, max_length=max_length)
        events = files.map_batches(read, batch_size=1, batch_format="numpy")
        written = events.groupby("part", num_partitions=parts).map_groups(write, batch_format="pyarrow")
        return sum(row["histories"] for row in written.take_all())


def _planned(paths: list[Path], form: LogFormat | None) -> tuple[dict[str, Seen], Plan]:
    """What the files hold that hold anything, each looked at where there is room, and what their columns become."""
    looks = ray.get([_look.remote(path, form) for path in log_files(paths)])
    seen = {str(each.path): each for each in looks if each is not None}
    if not seen:
        raise ValueError(f"{', '.join(map(str, paths))}: must hold at least one event, got none")
    plan = settle(list(seen.values()), Names())
    for ours in ("user_id", "item_id"):
        if plan.types[ours] != pa.int64():  # numbers would have to be agreed on by all machines
            raise ValueError(f"{', '.join(seen)}: {ours} must be integers in every file, got text")
    return seen, plan


@ray.remote
def _look(path: Path, form: LogFormat | None) -> Seen | None:
    return None if is_empty(path) else look(path, form or detect_format(path))


def _read(files: dict[str, Any], seen: dict[str, Seen], plan: Plan, parts: int) -> Iterator[pa.Table]:
    for path in files["item"].tolist():
        for events in read_file(seen[path], plan, Names()):
            yield events.append_column("part", pa.array(part_of_user(events, parts)))


def _write_part(events: pa.Table, out: Path, per_history: int | None, max_length: int | None) -> pa.Table:
    part = events["part"][0].as_py()
    batches = group_events(events.drop_columns("part"), per_history=per_history, max_length=max_length)
    return pa.table({"histories": [write_requests(batches, out / f"part-{part:05}.parquet")]})


def limit_memory(size: int) -> None:
    """Starts Ray here with workers that may allocate `size` bytes each; what it passes between them has an eighth."""
    ray.init(
        object_store_memory=size // 8,
        runtime_env={
            "worker_process_setup_hook": lambda: resource.setrlimit(resource.RLIMIT_DATA, (size, size)),
            # Arrow's and glibc's own pools reserve a gigabyte and more, which would count.
            "env_vars": {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2"},
        },
    )
    ray.data.DataContext.get_current().target_max_block_size = size // 64


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path, nargs="+", help="CSV (also .gz) or Parquet files")
    parser.add_argument("out", type=Path, help="the folder to write to")
    parser.add_argument("--format", choices=sorted(FORMATS), help="of the logs; told from their columns when not given")
    parser.add_argument("--parts", type=int, default=64, help="files to write, each of a part of the users")
    parser.add_argument("--per-history", type=int, help="requests that share a history; all of a user's by default")
    parser.add_argument("--max-length", type=int, help="events that a target sees at most, the latest")
    parser.add_argument("--memory", type=int, help="MiB of a worker here; Ray itself has an eighth of it and the disk")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder of an earlier run")
    args = parser.parse_args()
    if args.memory:
        limit_memory(args.memory << 20)
    form = FORMATS[args.format] if args.format else None
    options = {"parts": args.parts, "per_history": args.per_history, "max_length": args.max_length}
    options["overwrite"] = args.overwrite
    print(f"written: {args.out}, {prepare(args.logs, args.out, form=form, **options):,} histories")


if __name__ == "__main__":
    main()
