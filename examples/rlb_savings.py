"""What request-level batching saves: the same targets point-wise, each with a copy of its history, and request-level.

    python examples/rlb_savings.py             about three minutes
    python examples/rlb_savings.py --quick     the smaller cases only

For m targets a request and histories of L rows: bytes on disk (Parquet, zstd; point-wise samples shuffled, as their
logs are), bytes of a batch on its way to the model, history rows encoded, training targets/s and peak memory of a step,
and the longest history that trains in 4 GB. Both forms hold the same targets and give the same gradients; the model is
two layers of STCA with an item, an action and a time embedding. Prints a Markdown table and writes it with a JSON.
"""

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ranker.measure import status_kb
from ranker.report import make_ready, write_json, write_text
from torch import Tensor, nn
from tqdm import tqdm

import stca
from stca.batch import RequestBatch, bce_loss, to_pointwise
from stca.data import write_requests

TARGETS, LENGTHS = (1, 2, 8, 40), (512, 2_000, 10_000)
ITEMS, BUCKETS, DIM = 100_000, 64, 64
MEMORY_MB = 4096
DISK_ROWS = 2_000_000  # history rows of the point-wise file, about
STEP_REQUESTS = 4  # requests of the batch whose bytes and rows are counted


class Model(nn.Module):
    """Embeddings -> STCA -> logit."""

    def __init__(self) -> None:
        super().__init__()
        self.item = nn.Embedding(ITEMS, DIM, sparse=True)
        self.action, self.age = nn.Embedding(4, DIM), nn.Embedding(BUCKETS, DIM)
        self.stca, self.logit = stca.nn.STCA(DIM, 2, 4), nn.Linear(DIM, 1)

    def forward(self, batch: RequestBatch) -> Tensor:
        """Logits [T]."""
        h = batch.history
        rows = self.item(h["item_id"]) + self.action(h["action"].long()) + self.age(h["age"].long())
        targets = self.item(batch.targets["item_id"])
        z = self.stca(targets, rows, batch.target_offsets, batch.history_offsets, visible=batch.visible)
        logits: Tensor = self.logit(z).squeeze(1)
        return logits


def make_requests(requests: int, targets: int, length: int, seed: int = 0) -> RequestBatch:
    """Requests of as many targets, with histories of that length; items as unevenly popular as in real logs."""
    generator = torch.Generator().manual_seed(seed)
    N, T = requests * length, requests * targets

    def items(count: int) -> Tensor:
        return (ITEMS ** torch.rand(count, generator=generator)).long() - 1

    return RequestBatch(
        history={
            "item_id": items(N),
            "action": torch.randint(4, (N,), generator=generator, dtype=torch.int8),
            "age": torch.randint(BUCKETS, (N,), generator=generator, dtype=torch.int8),
        },
        history_offsets=torch.arange(requests + 1) * length,
        targets={"item_id": items(T)},
        target_offsets=torch.arange(requests + 1) * targets,
        labels={"label": torch.randint(2, (T,), generator=generator).float()},
    )


def in_form(batch: RequestBatch, pointwise: bool) -> RequestBatch:
    """The batch, or its point-wise copy."""
    return to_pointwise(batch) if pointwise else batch


def bytes_on_disk(batch: RequestBatch, pointwise: bool) -> int:
    """Of a Parquet file with the batch."""
    batch = in_form(batch, pointwise)
    if pointwise:
        batch = batch.select(torch.randperm(batch.R, generator=torch.Generator().manual_seed(0)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.parquet"
        write_requests(batch, path)
        return path.stat().st_size


def train_steps(targets: int, length: int, pointwise: bool, threads: int, steps: int) -> dict[str, float]:
    """In a child process: training steps on one request; targets/s and peak memory above the model's."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, seconds = status_kb("VmRSS"), []
    for step in range(steps + 1):
        batch = in_form(make_requests(1, targets, length, seed=step), pointwise)
        start = time.perf_counter()
        optimizer.zero_grad()
        bce_loss(model(batch), batch.labels["label"], batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    median = sorted(seconds[1:])[(steps - 1) // 2]
    return {"targets_per_s": targets / median, "peak_memory_mb": (status_kb("VmHWM") - before) / 1024}


def measure(targets: int, length: int) -> dict[str, Any]:
    """One case, both forms."""
    case: dict[str, Any] = {"targets": targets, "length": length}
    for form in ("point-wise", "request-level"):
        pointwise = form == "point-wise"
        log = make_requests(max(4, DISK_ROWS // (targets * length)), targets, length)
        sent = in_form(make_requests(STEP_REQUESTS, targets, length), pointwise)
        case[form] = {"disk_bytes": bytes_on_disk(log, pointwise), "batch_bytes": sent.nbytes(), "rows": sent.N}
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            arguments = targets, length, pointwise, torch.get_num_threads(), 5
            case[form] |= pool.apply(train_steps, arguments)
    return case


def longest_histories(cases: list[dict[str, Any]]) -> dict[int, dict[str, int]]:
    """Rows of a request's history that train in 4 GB, by m and form: from what more rows add to the measured peak."""
    longest: dict[int, dict[str, int]] = {}
    for m in sorted({case["targets"] for case in cases}):
        own = sorted((case for case in cases if case["targets"] == m), key=lambda case: int(case["length"]))
        for form in ("point-wise", "request-level"):
            short, long = own[0], own[-1]
            grown = long[form]["peak_memory_mb"] - short[form]["peak_memory_mb"]
            per_row = grown / (long["length"] - short["length"])
            base = long[form]["peak_memory_mb"] - per_row * long["length"]
            longest.setdefault(m, {})[form] = int((MEMORY_MB - base) / per_row) if per_row > 0 else 0
    return longest


def change(a: float, b: float) -> str:
    """From one to the other, and by how many percent."""
    return f"{a:,.{1 if a < 100 else 0}f} -> {b:,.{1 if b < 100 else 0}f} ({b / a - 1:+.0%})"


def table(cases: list[dict[str, Any]]) -> str:
    """Markdown: point-wise -> request-level, what each case measured."""
    lines = [
        "| m | L | MB on disk | KB to the model, a step | history rows encoded, a step | targets/s | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        a, b = case["point-wise"], case["request-level"]
        faster = b["targets_per_s"] / a["targets_per_s"]
        cells = [
            f"{case['targets']} | {case['length']:,}",
            change(a["disk_bytes"] / 1e6, b["disk_bytes"] / 1e6),
            change(a["batch_bytes"] / 1e3, b["batch_bytes"] / 1e3),
            f"{a['rows']:,} -> {b['rows']:,} ({b['rows'] / a['rows'] - 1:+.0%})",
            f"{a['targets_per_s']:,.0f} -> {b['targets_per_s']:,.0f} (x{faster:.1f})",
            f"{a['peak_memory_mb']:,.0f} -> {b['peak_memory_mb']:,.0f} MB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"The log on disk holds {DISK_ROWS:,} point-wise history rows and at least 4 requests; a step of the third and "
        f"fourth columns has {STEP_REQUESTS} requests. At m = 1 both forms are the same: what differs there is noise.",
        "",
        "| m | longest history in 4 GB (extrapolated), point-wise | request-level | times |",
        "|---|---|---|---|",
    ]
    for m, forms in longest_histories(cases).items():
        times = forms["request-level"] / max(1, forms["point-wise"])
        lines.append(f"| {m} | {forms['point-wise']:,} | {forms['request-level']:,} | x{times:.1f} |")
    return "\n".join([*lines, "", *beside_the_paper(cases)])


def beside_the_paper(cases: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown: the paper's figures, of its production at m = 8, and ours at the same m."""
    own = {case["length"]: case for case in cases if case["targets"] == 8}

    def ratio(case: dict[str, Any], field: str) -> float:
        return float(case["request-level"][field] / case["point-wise"][field])

    lines = ["| m = 8 | the paper | here |", "|---|---|---|"]
    for length, figure in ((512, "-77 %"), (2_000, "-84 %")):
        if length in own:
            disk, sent = (ratio(own[length], field) - 1 for field in ("disk_bytes", "batch_bytes"))
            lines.append(f"| transfer, L = {length:,} | {figure} | disk {disk:+.0%}, to the model {sent:+.0%} |")
    speeds = ", ".join(f"x{ratio(case, 'targets_per_s'):.1f} at L = {length:,}" for length, case in own.items())
    times = longest_histories(list(own.values())).get(8, {})
    lines += [
        f"| training throughput | x2.2; x5.1 with its kernels | {speeds}, our kernels in both forms |",
        "| longest history in the same memory | about 8x | "
        f"x{times.get('request-level', 0) / max(1, times.get('point-wise', 0)):.1f} |",
    ]
    return lines if own else []


def main() -> None:
    """Measures all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/rlb_savings"), help="folder of table and JSON")
    parser.add_argument("--quick", action="store_true", help="m up to 8, L up to 2,000")
    args = parser.parse_args()
    text, data = args.out / "report.md", args.out / "report.json"
    make_ready([text, data], None)
    chosen = [(m, L) for m in TARGETS for L in LENGTHS if not args.quick or (m <= 8 and L <= 2000)]
    cases = [measure(m, L) for m, L in tqdm(chosen, desc="m, L", unit="case")]
    write_json({"build": stca.build_info(), "cases": cases}, data)
    command = "python examples/rlb_savings.py" + " --quick" * args.quick
    machine = f"{torch.get_num_threads()} threads, {stca.cpu_isa()}, torch {torch.__version__}"
    report = f"Request-level against point-wise, by `{command}` ({machine}):\n\n{table(cases)}"
    write_text(report + "\n", text)
    print(report, f"\nwritten: {text}, {data}", sep="\n")


if __name__ == "__main__":
    main()
