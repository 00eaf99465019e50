"""What longer histories are worth to models that were trained on short ones, and what training them costs.

    python examples/scaling.py                             a generated log
    python examples/scaling.py --log touches-git.csv.gz    your own, as in train_ranker.py
    python examples/scaling.py --quick                     one seed, small models: a few minutes

Trains the ranker of train_ranker.py on windows of a fixed length, of Beta lengths of the same average, and of the full
length; on the most recent events, on a random window, on the oldest; in three sizes; several seeds of each. Serves
every model at growing lengths and writes a report with a picture: AUC of the last tenth of time against served length
and against training cost. Goes on where it was interrupted when started again with the same arguments; --seeds 1 first
and more later makes no run twice. Small steps: OMP_NUM_THREADS=1 costs least.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ranker.checkpoint import check_settings
from ranker.generate import generate_log
from ranker.model import Ranker
from ranker.report import make_ready, write_json
from ranker.requests import Integers, Requests, Split, make_requests, read_requests, split_by_time
from ranker.scaling_report import Report, write_report
from ranker.train import Config, Training, evaluate
from tqdm import tqdm

import stca

LONGEST_TRAINED = 4096
SHARE = 8  # the longest trained length is so many times the average one
CAPACITIES = {"S": (16, 1), "M": (32, 2), "L": (64, 2)}  # D, M


@dataclass(frozen=True)
class Scheme:
    """One way to train: history rows on average and at most, how they vary, which they are, and the model's size."""

    average: int
    maximum: int
    alpha: float = 0.3
    window: str = "suffix"
    capacity: str = "M"


def make_schemes(average: int, maximum: int, longest: int, capacity: str) -> dict[str, Scheme]:
    """Every scheme of the grid by its name, for a log with histories of `longest` events at most."""
    schemes = {"fixed": Scheme(average, average, capacity=capacity)}
    for alpha in (0.1, 0.3, 1.0):
        schemes[f"Beta {alpha:g}"] = Scheme(average, maximum, alpha, capacity=capacity)
    if longest > 2 * maximum:
        schemes["Beta 0.3 wide"] = Scheme(2 * average, 4 * maximum, capacity=capacity)
    schemes["full"] = Scheme(maximum, maximum, capacity=capacity)
    for window in ("random", "prefix"):
        schemes[f"{window} window"] = Scheme(average, maximum, window=window, capacity=capacity)
    for size in CAPACITIES:
        if size != capacity:
            schemes[f"size {size}"] = Scheme(average, maximum, capacity=size)
    return schemes


def train_and_serve(
    requests: Requests,
    split: Split,
    size: tuple[int, int],
    config: Config,
    lengths: Sequence[int],
    checkpoint: Path,
    name: str,
) -> dict[str, Any]:
    """One run of the grid: what training cost, and AUC and log loss at every served length."""
    torch.manual_seed(config.seed)
    model = Ranker(requests.num_items, requests.num_users, *size)
    training = Training(model, requests, split, config, checkpoint)
    training.run(name)
    served = {
        str(length): evaluate(model, requests, split.test, length, config, f"{name}, {length}") for length in lengths
    }
    dense = (model.stca, model.mixer, model.logit)
    return {
        "tokens": training.state["tokens"],
        "seconds": training.state["seconds"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "dense_parameters": sum(p.numel() for part in dense for p in part.parameters()),
        "served": served,
    }


def made_or_make(path: Path, settings: dict[str, Any], make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The result that lies at `path`, made with the checkpoint beside it where it does not.

    Raises:
        ValueError: a result of other settings, or a file that is none.
    """
    if path.exists():
        try:
            saved: dict[str, Any] = json.loads(path.read_text())
            own, _ = saved["settings"], saved["result"]
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{path}: must be a whole result of a run (--restart forgets it): {error!r}") from error
        check_settings(path, settings, own, " (--restart forgets it)")
        return saved
    checkpoint = path.with_suffix(".pt")
    saved = {"settings": settings, "result": make(checkpoint)}
    write_json(saved, path)
    checkpoint.unlink(missing_ok=True)
    return saved


def latest(requests: Requests, chosen: Integers, targets: int) -> Integers:
    """The latest of these requests, by time, with at most so many targets."""
    order = chosen[np.argsort(-requests.time[chosen], kind="stable")]
    count = np.cumsum((requests.end - requests.begin)[order])
    return np.sort(order[count <= targets])


def run_grid(
    requests: Requests, name: str, schemes: dict[str, Scheme], lengths: Sequence[int], args: argparse.Namespace
) -> Report:
    """Every scheme with every seed, seed by seed, with a report after each seed."""
    split = split_by_time(requests)
    split = replace(split, train=latest(requests, split.train, args.targets))
    epochs = args.epochs or (2 if args.log is None else 1)
    targets = requests.end - requests.begin
    report: Report = {
        "log": name,
        "command": " ".join(["python examples/scaling.py", *args.shown]),
        "machine": f"{torch.get_num_threads()} thread(s), {stca.cpu_isa()}, torch {torch.__version__}",
        "events": requests.batch.T,
        "train_targets": int(targets[split.train].sum()),
        "test_targets": int(targets[split.test].sum()),
        "longest_history": int(requests.seen[split.test].max()),
        "average": schemes["fixed"].average,
        "maximum": schemes["full"].maximum,
        "epochs": epochs,
        "schemes": {scheme: asdict(how) for scheme, how in schemes.items()},
        "runs": [],
    }
    for seed, scheme in tqdm([*product(range(args.seeds), schemes)], desc=f"{name}, runs", unit="run"):
        how = schemes[scheme]
        config = Config(
            epochs=epochs,
            patience=epochs,
            min_length=schemes["fixed"].average // SHARE,
            average_length=how.average,
            max_length=how.maximum,
            alpha=how.alpha,
            window=how.window,
            runs_per_step=args.runs_per_step,
            seed=seed,
        )
        size = CAPACITIES[how.capacity]
        settings = {
            **asdict(config),
            "capacity": list(size),
            "lengths": list(lengths),
            "targets": report["train_targets"],
            "checksums": [requests.checksum, split.checksum],
        }
        make = partial(train_and_serve, requests, split, size, config, lengths, name=f"{scheme}, seed {seed}")
        path = args.out / name / f"{scheme.replace(' ', '-')}-{seed}.json"
        if args.restart:
            for old in (path, path.with_suffix(".pt")):
                old.unlink(missing_ok=True)
        made = made_or_make(path, settings, make)
        report["runs"].append({"scheme": scheme, "seed": seed, **made["result"]})
        if len(report["runs"]) % len(schemes) == 0:
            write_report(report, args.report)
    return report


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, help="CSV (.gz too), Parquet or .inter; generated when not given")
    parser.add_argument("--out", type=Path, help="folder of finished runs and checkpoints; build/scaling")
    parser.add_argument("--report", type=Path, help="folder of Markdown, picture and JSON; that of --out")
    parser.add_argument("--quick", action="store_true", help="one seed and small models")
    parser.add_argument("--seeds", type=int, help="3; 1 with --quick")
    parser.add_argument("--epochs", type=int, help="1; 2 for the generated log")
    parser.add_argument("--targets", type=int, default=100_000, help="training targets at most, the latest")
    parser.add_argument("--average", type=int, help="history rows in training; an eighth of --maximum")
    parser.add_argument(
        "--maximum", type=int, help=f"history rows in training at most; {LONGEST_TRAINED}, less for a log of short ones"
    )
    parser.add_argument("--runs-per-step", type=int, default=2, help="histories in a batch, each of up to 32 requests")
    parser.add_argument("--restart", action="store_true", help="forget the runs that are there")
    args = parser.parse_args(arguments)
    log = str(args.log)
    args.shown = [Path(a).name if a == log or Path(a).is_absolute() else a for a in arguments if a != "--restart"]
    args.out = args.out or Path("build/scaling-quick" if args.quick else "build/scaling")
    args.report = args.report or args.out
    args.seeds = args.seeds or (1 if args.quick else 3)
    return args


def main(arguments: Sequence[str]) -> Report:
    """Makes the grid, or the rest of it, and the report."""
    args = parse(arguments)
    # Without the endings that a log's file has, but with all else: two logs have two names.
    name = "generated" if args.log is None else re.sub(r"(\.(csv|inter|parquet|gz|bz2|zst))+$", "", args.log.name)
    reports = [args.report / f"{name}.{ending}" for ending in ("md", "png", "json")]
    make_ready([args.out / name / "run.json", *reports], args.log)
    requests = make_requests(generate_log()) if args.log is None else read_requests(args.log)
    longest = int(requests.seen.max())
    maximum = args.maximum or min(LONGEST_TRAINED, 2 ** int(np.log2(max(SHARE, longest))))
    average = args.average or maximum // SHARE
    schemes = make_schemes(average, maximum, longest, "S" if args.quick else "M")
    # From a 64th of what is trained on to 4 times as much, or to the longest history that there is.
    growing = [maximum * 4**power // 64 for power in range(0, 5, 2 if args.quick else 1)]
    useful = {length for length in growing if 0 < length < 2 * longest}
    report = run_grid(requests, name, schemes, sorted(useful | {average, maximum}), args)
    print(f"written: {args.report / name}.md, .png and .json")
    return report


if __name__ == "__main__":
    main(sys.argv[1:])
