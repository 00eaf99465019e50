"""The grid of all cases, listed once."""

from collections.abc import Iterator
from functools import partial

import attention
import rows
import stack
import torch
from problem import Case
from ragged import Requests, beta_lengths, uniform_lengths

WIDTHS = ((128, 4), (256, 8), (1024, 16))  # D, H
TARGETS = (1, 8, 64, 300)  # m
LENGTHS = (512, 2000, 10_000)  # L
DTYPES = (torch.float32, torch.bfloat16)
_QUICK = ((256, 1, 10_000, torch.float32), (256, 64, 2000, torch.bfloat16), (1024, 8, 2000, torch.float32))
_FLOPS = 4e9  # of a forward pass, about: 5 to 300 ms
_FORMS = {
    "target_attention reordered": attention.reordered,
    "target_attention projected": attention.projected,
    "TargetAttention": attention.layer,
}


def requests_of(D: int, H: int, m: int, L: int, beta: bool = False) -> Requests:
    """As many requests as take a good time to measure."""
    flops = 4 * D * L * m + 4 * L * D * min(D, H * m)
    R = int(min(max(_FLOPS // flops, 1), 64, 40_000 // L + 1))
    return Requests(m, beta_lengths(max(R, 4), L) if beta else uniform_lengths(R, L))


def attention_cases(slow: bool) -> Iterator[Case]:
    """Every op of attention on the whole grid; `slow` adds the peers that need a compiler, at sizes in its middle."""
    for op in _FORMS:
        for D, H in WIDTHS:
            for m in TARGETS:
                for L in LENGTHS:
                    for dtype in DTYPES:
                        quick = (D, m, L, dtype) in _QUICK and (D < 1024 or op != "TargetAttention")
                        compilers = slow and L == 2000 and m in (8, 64)  # they take half a minute a case
                        yield _attention_case(op, D, H, m, L, dtype, False, quick, compilers)
        yield _attention_case(op, 256, 8, 8, 10_000, torch.float32, True, False, slow)
    # the promise of the first release: m*H = 128 at half the time of the fastest composition, projection included
    yield _attention_case("TargetAttention", 256, 8, 16, 10_000, torch.float32, False, True, slow)


def _attention_case(
    op: str, D: int, H: int, m: int, L: int, dtype: torch.dtype, beta: bool, quick: bool, slow: bool
) -> Case:
    requests = requests_of(D, H, m, L, beta)
    kind = "beta" if beta else "uniform" if requests.ragged() else "one request"
    name = f"D={D} H={H} m={m} L={L} R={requests.R} {kind}"
    return Case(op, name, dtype, partial(_FORMS[op], requests, D, H, dtype, slow), quick)


def other_cases(slow: bool) -> Iterator[Case]:
    """The feed-forward network, the gathers, the whole stack, and the smallest call."""
    for dtype in DTYPES:
        for N, D in ((16_384, 128), (8192, 256), (1024, 1024)):
            build = partial(rows.swiglu_ffn_norm, N, D, 2 * D, dtype, slow)
            yield Case("swiglu_ffn_norm", f"N={N} D={D} F={2 * D}", dtype, build, D == 256)
        for R, m, D in ((64, 200, 1024), (512, 8, 256)):
            build = partial(rows.request_gather, R, m, D, dtype)
            yield Case("request_gather", f"R={R} m={m} D={D}", dtype, build, R == 64)
        build = partial(rows.jagged_select, uniform_lengths(24, 2000), list(range(0, 24, 2)), 256, dtype)
        yield Case("jagged_select", "12 of 24 histories, L=2000 D=256", dtype, build, True)
        for most in (2000, 10_000):
            training = Requests(8, beta_lengths(4, most))
            name = f"training D=256 H=8 M=4 m=8 R=4, beta lengths to {most}, {training.N // 4} on average"
            build = partial(stack.training, training, 256, 8, dtype, slow)
            quick = most == 2000 and dtype == torch.float32
            yield Case("STCA", name, dtype, build, quick, ("forward+backward",))
        for D, H in ((256, 8), (1024, 16)):
            quick = D == 256 and dtype == torch.bfloat16
            build = partial(stack.serving, 300, 10_000, D, H, dtype)
            yield Case("STCA", f"serving D={D} H={H} M=4 m=300 L=10000", dtype, build, quick, ("forward",))
    small = partial(attention.reordered, Requests(1, [8]), 64, 1, torch.float32, False)
    yield Case("target_attention reordered", "small call: D=64 H=1 m=1 L=8 R=1", torch.float32, small, True)


def all_cases(quick: bool) -> list[Case]:
    """Cases of a run; a quick one has a few of each op and no peers that need a compiler."""
    cases = [*other_cases(not quick), *attention_cases(not quick)]
    return [case for case in cases if case.quick] if quick else cases
