"""stca against what torch has built in, on a GPU: time, TFLOP/s, GB/s, share of this GPU's own speed, peak memory.

    python benchmarks/gpu.py [--only REGEX] [--seconds N] --json FILE

Results are checked before the clock starts. Time is that between two events of the device around a few calls in a
row, stca and its peers in turn, medians. The floor of a case is the larger of its FLOPs over the speed of this GPU's
matrix product of the dtype, and its bytes over the speed at which it copies, both measured first. FILE gets the rows,
FILE.machine.json the machine; the short table comes last, and exit code 1 where a case failed or there was no time for
it. `--device cpu` runs the same on small shapes anywhere: a look at the program, not at speed.
"""

import argparse
import json
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attention
import rows
import stack
import torch
import torch.nn.functional as F
from gpu_clock import Clock
from problem import Case, Direction, Implementation, Problem, check
from ragged import Requests, beta_lengths, uniform_lengths
from result import Row, row, show
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn

import stca
from stca.files import whole_file

LIMITS = {
    torch.float32: 5e-3,
    torch.bfloat16: 0.1,
    torch.float16: 0.1,
}  # norms of differences of correct results over theirs


def projected(requests: Requests, D: int, H: int, dtype: torch.dtype) -> Problem:
    """The projected form, with the peers that only GPUs have."""
    problem = attention.projected(requests, D, H, dtype, slow=True)
    offsets = requests.target_offsets.int(), requests.history_offsets.int()
    longest = max(requests.lengths)

    def varlen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y = varlen_attn(q, k, v, *offsets, requests.m, longest)
        assert isinstance(y, Tensor)
        return y

    def cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=requests.attention_mask())

    problem.ways["varlen_attn (FlashAttention-2)"] = Implementation(varlen)
    padded = problem.ways["sdpa padded"]
    problem.ways["cuDNN SDPA padded"] = Implementation(cudnn, padded.forms, padded.flat)
    return problem


def cases(small: bool) -> Iterator[Case]:
    """What is measured, the most wanted first."""
    D, H, L, R, many = (64, 4, 200, 3, 8) if small else (1024, 16, 10_000, 64, 16)
    half, full = torch.bfloat16, torch.float32
    for m in (1, 8, 64):
        requests = Requests(m, [L] * R)
        build = partial(attention.reordered, requests, D, H, half, True)
        yield Case("target_attention reordered", f"D={D} H={H} m={m} L={L} R={R}", half, build)
    for m in (1, 8):  # behind a cache's pages
        build = partial(attention.paged, Requests(m, [L] * R), D, H, half, 64)
        yield Case("target_attention reordered", f"D={D} H={H} m={m} L={L} R={R}, pages of 64 rows", half, build)
    for m in (1, 8, 64, 300):
        requests = Requests(m, uniform_lengths(many, L))
        build = partial(projected, requests, D, H, half)
        yield Case("target_attention projected", f"D={D} H={H} m={m} L={L // 2}-{L} R={many}", half, build)
    for m in (64, 300):  # heads of 128 columns
        build = partial(projected, Requests(m, uniform_lengths(many, L)), D, H // 2, half)
        yield Case("target_attention projected", f"D={D} H={H // 2} m={m} L={L // 2}-{L} R={many}", half, build)
    build = partial(projected, Requests(8, [L] * many), D, H, half)
    yield Case("target_attention projected", f"D={D} H={H} m=8 L={L} R={many}", half, build)
    lengths = beta_lengths(2 * many, L)
    training = Requests(8, lengths)
    name = (
        f"training D={D} H={H} M=4 F={2 * D} m=8 R={2 * many}, beta lengths to {L}, {sum(lengths) // len(lengths)} mean"
    )
    yield Case("STCA", name, half, partial(stack.training, training, D, H, half), directions=("forward+backward",))
    for m in (8, 64):
        build = partial(attention.layer, Requests(m, uniform_lengths(many, L)), D, H, half, False)
        yield Case("TargetAttention", f"D={D} H={H} m={m} L={L // 2}-{L} R={many}", half, build)
    N = 8 * L
    for dtype in (half, torch.float16):
        build = partial(rows.swiglu_ffn_norm, N, D, 2 * D, dtype, True)
        yield Case("swiglu_ffn_norm", f"N={N} D={D} F={2 * D}", dtype, build)
    # float16's kernels have the tiles that bfloat16's figures chose: a case of each shows whether these hold for it.
    build = partial(attention.reordered, Requests(8, [L] * R), D, H, torch.float16, False)
    yield Case("target_attention reordered", f"D={D} H={H} m=8 L={L} R={R}", torch.float16, build)
    build = partial(projected, Requests(64, uniform_lengths(many, L)), D, H, torch.float16)
    yield Case("target_attention projected", f"D={D} H={H} m=64 L={L // 2}-{L} R={many}", torch.float16, build)
    for dtype in (half, full):
        build = partial(rows.request_gather, 64, 200, D, dtype)
        yield Case("request_gather", f"R=64 m=200 D={D}", dtype, build)
        chosen = list(range(0, many, 2))
        build = partial(rows.jagged_select, uniform_lengths(many, L), chosen, D, dtype)
        yield Case("jagged_select", f"{len(chosen)} of {many} histories, L={L // 2}-{L} D={D}", dtype, build)
    build = partial(attention.reordered, Requests(8, [L] * (R // 4 + 1)), D, H, full, False)
    yield Case("target_attention reordered", f"D={D} H={H} m=8 L={L} R={R // 4 + 1}", full, build)
    yield Case(
        "STCA",
        f"serving D={D} H={H} M=4 m=300 L={L}",
        half,
        partial(stack.serving, 300, L, D, H, half),
        False,
        ("forward",),
    )


def machine(clock: Clock, device: str, small: bool) -> dict[str, Any]:
    """What the numbers were measured on, and its own speeds."""
    size, megabytes = (256, 4) if small else (8192, 4096)
    about: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if clock.cuda else device,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "build_info": stca.build_info(),
        "date": time.strftime("%Y-%m-%d"),
    }
    for dtype in LIMITS:
        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        ms = clock.medians({"mm": partial(torch.mm, a, b)})["mm"]
        about[f"gemm_tflops_{str(dtype).removeprefix('torch.')}"] = 2e-9 * size**3 / ms
    x = torch.randn(megabytes * 2**18)
    y = torch.empty_like(x)
    about["copy_gbs"] = 2e-6 * 4 * x.numel() / clock.medians({"copy": partial(y.copy_, x)})["copy"]
    return about


def measure(case: Case, direction: Direction, clock: Clock, about: dict[str, Any]) -> Row:
    """One row of the result."""
    torch.manual_seed(0)
    problem = case.build()
    runners, cannot = check(problem, direction, LIMITS[case.dtype])
    calls = {name: runner.call(direction) for name, runner in runners.items()}
    ms = clock.medians(calls)
    flops, moved = problem.cost(direction)
    gemm = about[f"gemm_tflops_{str(case.dtype).removeprefix('torch.')}"]
    floor_ms = max(1e-9 * flops / gemm, 1e-6 * moved / about["copy_gbs"])
    result = row(case, direction, problem, ms, floor_ms, lambda name: clock.peak_extra_mb(calls[name]), cannot)
    tflops, gbs = 1e-9 * flops / ms["stca"], 1e-6 * moved / ms["stca"]
    speeds = {"tflops": tflops, "gbs": gbs, "gemm_share": tflops / gemm, "copy_share": gbs / about["copy_gbs"]}
    return result | speeds


def table(result: list[Row]) -> None:
    """A line per row."""
    print(f"\n{'':62} {'ms':>8} {'TFLOP/s':>8} {'GB/s':>6} {'gemm':>5} {'copy':>5} {'ratio':>6}  best peer")
    for each in result:
        name = f"{each['op']} {each['case']} {each['dtype']} {each['direction']}".replace("target_attention ", "")
        ratio = "-" if each["ratio"] is None else f"{each['ratio']:.2f}"
        short = name.replace("forward+backward", "f+b")[:62]
        print(
            f"{short:62} {each['stca_ms']:8.3f} {each['tflops']:8.1f} {each['gbs']:6.0f} {each['gemm_share']:5.0%} "
            f" {each['copy_share']:5.0%} {ratio:>6}  {each['best_peer']}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="regular expression that 'op, case, dtype' must match")
    parser.add_argument("--seconds", type=float, default=200, help="no case begins after that")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    began = time.perf_counter()
    torch.set_default_device(args.device)
    clock, small = Clock(args.device), args.device == "cpu"
    about = machine(clock, args.device, small)
    print(", ".join(f"{name} {value}" for name, value in about.items() if name != "build_info"))
    with whole_file(args.json.with_suffix(".machine.json")) as part:
        part.write_text(json.dumps(about, indent=1) + "\n")
    result: list[Row] = []
    failed, left = [], []
    for case in cases(small):
        name = f"{case.op}, {case.name}, {case.dtype}"
        if not re.search(args.only, name):
            continue
        if time.perf_counter() - began > args.seconds:
            left.append(name)
            continue
        for direction in case.directions:
            try:
                result.append(measure(case, direction, clock, about))
            except (AssertionError, RuntimeError, ValueError) as error:
                failed.append(f"{name}, {direction}: {str(error).splitlines()[0]}")
                continue
            show(result[-1])
            with whole_file(args.json) as part:
                part.write_text(json.dumps(result, indent=1) + "\n")
    table(result)
    for title, names in (("out of time", left), ("FAILED", failed)):
        for name in names:
            print(f"{title}: {name}")
    raise SystemExit(bool(failed or left))


if __name__ == "__main__":
    main()
