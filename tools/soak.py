"""Trains and scores in one process for a long time, and says whether anything grew, was lost or changed.

    python tools/soak.py --minutes 60 --report build/soak.json

In rounds of a few seconds one thread trains on random shapes and writes a `HistoryCache` that is too small, two threads
score from it, all change the number of threads, and workers of a DataLoader, started in each way there is, score beside
them. After every round, when all is quiet, resident memory, open files and threads are counted. Before the rounds come
`soak_extremes.EXTREMES`, before and after everything one fixed piece of work, whose bits must agree. At last a leak is
planted, which the same judgement must find. Exits with 1 where anything was found, or the leak was not.
"""

import argparse
import ctypes
import gc
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from soak_extremes import EXTREMES
from soak_work import DIM, Scored, Serving, model_of, train_step
from torch import Tensor
from torch.utils.data import DataLoader

from stca.files import whole_file

STEPS = 4  # of a round
START_METHODS = ("fork", "spawn", "forkserver")
# Bytes a step that resident memory may grow by; `docs/reliability/figures.md` says what was measured.
BOUND = 2048
LEAK = 4 * BOUND  # that is planted
LIMIT = 300.0  # seconds that a worker or a thread may take; then it hangs


@dataclass
class Life:
    """What was counted after each round, and what went wrong."""

    memory: list[int] = field(default_factory=list)  # bytes
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    cases: int = 0
    findings: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, cases: int) -> None:
        """Of any thread."""
        with self.lock:
            self.cases += cases


@dataclass(frozen=True)
class Slope:
    """Bytes a round, with the ends of its interval of 95 %."""

    low: float
    middle: float
    high: float


def slope(memory: list[int]) -> Slope:
    """The line through the means of 20 spans of the rounds, of which the first quarter fills caches and does not count.

    Rounds next to each other are alike, the means of spans hardly: so the interval is not too narrow.
    """
    settled = np.array(memory[len(memory) // 4 :], dtype=np.float64)
    if len(settled) < 40:
        raise ValueError(f"slope: must have at least 54 rounds, got {len(memory)}")
    y = np.array([span.mean() for span in np.array_split(settled, 20)])
    x = np.array([span.mean() for span in np.array_split(np.arange(len(settled)), 20)])
    x -= x.mean()
    middle = float(x @ y / (x @ x))
    residual = y - y.mean() - middle * x
    error = float(np.sqrt(residual @ residual / 18 / (x @ x)))
    return Slope(middle - 2.101 * error, middle, middle + 2.101 * error)  # 2.101: Student's t, 18 degrees of freedom


def judge(life: Life) -> list[str]:
    """What grew."""
    findings, per_step = [], slope(life.memory).high / STEPS
    if per_step > BOUND:
        findings.append(f"memory: may grow by at most {BOUND} bytes a step, got up to {per_step:.0f}")
    for name, counts in (("open files", life.files), ("threads", life.threads)):
        first, _, last = np.array_split(np.array(counts[len(counts) // 4 :]), 3)
        if last.min() > first.max():
            findings.append(f"{name}: must not grow, got at most {first.max()} and later at least {last.min()}")
    return findings


def scorer(serving: Serving, seed: int, stop: threading.Event, life: Life) -> None:
    """Scores until it is told to stop, with another number of threads now and then."""
    generator = np.random.default_rng(seed)
    try:
        while not stop.is_set():
            if generator.random() < 0.1:
                torch.set_num_threads(int(generator.integers(1, 4)))
            life.count(serving.score(generator))
    except Exception as error:  # whatever a thread raises is a finding, which would else be printed and forgotten
        life.findings.append(f"scorer of seed {seed}: {error!r}")


def workers(method: str, expected: Sequence[tuple[Tensor, ...]], life: Life) -> None:
    """Workers of a DataLoader, which have one thread each, score requests as this process did with one."""
    loader = DataLoader(Scored(), batch_size=None, num_workers=2, timeout=LIMIT, multiprocessing_context=method)
    for i, (found, own) in enumerate(zip(loader, expected, strict=True)):
        life.count(1)
        if not all(map(torch.equal, found, own)):
            life.findings.append(f"workers by {method}: request {i} must be as in this process, got another")


def rounds(seconds: float, seed: int, leak: int, say: Callable[[str], None]) -> Life:
    """Lives for so long, and at least for as many rounds as `slope` needs; `leak`: bytes a step that are kept."""
    life, serving, kept = Life(), Serving(), list[bytes]()
    generator, model = np.random.default_rng(seed), model_of(1)
    optimizer = torch.optim.AdamW(model.parameters())
    torch.set_num_threads(1)
    expected = [Scored()[i] for i in range(len(Scored()))]
    # The same two threads for all rounds, as a server has them: of one that multiplies and ends torch keeps up to 1 KB.
    scorers = ThreadPoolExecutor(2)
    trim, begin = ctypes.CDLL(None).malloc_trim, time.monotonic()
    while time.monotonic() < begin + seconds or len(life.memory) < 60:
        count, stop = len(life.memory), threading.Event()
        others = [scorers.submit(scorer, serving, 2 * count + i, stop, life) for i in range(2)]
        if count < 3 or count % 100 == 0:
            workers(START_METHODS[count if count < 3 else count // 100 % 3], expected, life)
        for _ in range(STEPS):
            torch.set_num_threads(int(generator.integers(1, 4)))
            train_step(model, optimizer, generator)
            serving.write(generator)
            kept.append(os.urandom(leak))
        life.count(STEPS)
        stop.set()
        if wait(others, LIMIT).not_done:
            say(f"FOUND a scorer of round {count}: must be done within {LIMIT:.0f} s")
            os._exit(1)  # any other end would wait for it
        gc.collect()
        trim(0)  # what is free goes back, so that what is left is held
        life.memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE"))
        life.files.append(len(os.listdir("/proc/self/fd")))
        life.threads.append(len(os.listdir("/proc/self/task")))
        if count % 50 == 0:
            at = f"{life.memory[-1] / 2**20:.1f} MiB, {life.files[-1]} files, {life.threads[-1]} threads"
            say(f"{time.monotonic() - begin:.0f} s: round {count}, {life.cases} cases, {at}")
    scorers.shutdown()
    return life


def fixed_work() -> str:
    """A digest of outputs and gradients of one piece of work in every dtype, with two threads."""
    torch.set_num_threads(2)
    digest = hashlib.sha256()
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        model, generator = model_of(2).to(dtype), torch.Generator().manual_seed(3)
        x, history = (torch.randn(n, DIM, generator=generator).to(dtype).requires_grad_() for n in (90, 2000))
        z = model(x, history, torch.tensor([0, 40, 90]), torch.tensor([0, 1500, 2000]))
        for tensor in (z, *torch.autograd.grad(z.float().square().sum(), [x, history, *model.parameters()])):
            digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Lives, judges and reports; 1 where anything was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="of the life in which no leak is planted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="write a JSON object here")
    args = parser.parse_args(arguments)
    begin = time.monotonic()

    def say(line: str) -> None:
        print(line, flush=True)

    first, findings, cases = fixed_work(), list[str](), 0
    for extreme in EXTREMES:
        start = time.monotonic()
        cases += extreme()
        say(f"{extreme.__name__}: {extreme.__doc__} {time.monotonic() - start:.1f} s")
    start = time.monotonic()
    life = rounds(60 * args.minutes, args.seed, 0, say)
    hours = (time.monotonic() - start) / 3600
    findings += life.findings + judge(life)
    if fixed_work() != first:
        findings.append("fixed work: must give the same bits at the start and at the end")
    planted = rounds(6 * args.minutes, args.seed + 1, LEAK, say)
    found, grown = (slope(each.memory) for each in (planted, life))
    caught = int(found.low - grown.high > STEPS * LEAK / 2)  # two lives that grew alike would be no proof
    text = "{0.low:+.0f} to {0.high:+.0f} bytes"
    per_step = {"memory": grown, "memory with the planted leak": found}
    lines = {name: text.format(Slope(*(x / STEPS for x in vars(each).values()))) for name, each in per_step.items()}
    for name, line in lines.items():
        say(f"{name}: {line} a step, 95 %")
    for finding in findings:
        say(f"FOUND {finding}")
    say(f"planted: {LEAK} bytes a step, {'caught' if caught else 'NOT CAUGHT'}")
    report = {"name": "soak", "cases": cases + life.cases, "planted": 1, "caught": caught, "findings": findings}
    report |= {"seconds": round(time.monotonic() - begin, 1), "hours": round(hours, 3), "rounds": len(life.memory)}
    report |= {"bytes a step, 95 %": lines, "bound": BOUND, "leak": LEAK}
    if args.report is not None:
        args.report.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(args.report) as part:
            part.write_text(json.dumps(report, indent=1) + "\n")
    return int(bool(findings) or caught != 1)


if __name__ == "__main__":
    sys.exit(main())
