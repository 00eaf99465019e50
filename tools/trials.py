"""Calls by which tools/gpu_tune.py compares variants of kernels, and what their results must be."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tuning import PRODUCTS, Kernels

BOTH = (False, True)  # forward and backward, which a choice may rule alike
LIMIT = 0.02  # norm of the difference of right results over theirs: bfloat16


class Trial(NamedTuple):
    """A call, where its results go, what these are before the call and what they must be after it."""

    run: Callable[[], None]
    results: list[Tensor]
    initial: list[Tensor]
    expected: list[Tensor]
    instead: Callable[[], object] | None = None  # the other kernel, where the library has none

    def fault(self) -> str:
        """What is wrong with the results of one call, or nothing."""
        for result, initial in zip(self.results, self.initial, strict=True):
            result.copy_(initial)
        self.run()
        for result, expected in zip(self.results, self.expected, strict=True):
            error = float((result.double() - expected.double()).norm() / expected.double().norm())
            if not error < LIMIT:
                return f"results are off by {error:.3g} of their norm"
        return ""


_TENSORS: tuple[Callable[[Trial], list[Tensor]], ...] = (
    lambda trial: trial.results,
    lambda trial: trial.initial,
    lambda trial: trial.expected,
)


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    return [x.clone() for x in tensors]


def attention(
    kernels: Kernels, width: int, m: int, directions: tuple[bool, ...], device: str, *, shared: bool, L: int, R: int
) -> Trial:
    """target_attention, forward (False), backward (True) or both; the common kernels say what is right."""
    heads = max(1, 1024 // width) if not shared else 16 if width > 256 else 8
    kv_heads = 1 if shared else heads
    T, N = R * m, R * L
    draw = partial(torch.randn, device=device)
    k = draw(N, kv_heads, width).bfloat16()
    x: dict[str, Any] = {
        "q": draw(T, heads, width).bfloat16(),
        "k": k,
        "v": None if shared else draw(N, kv_heads, width).bfloat16(),
        "target_offsets": torch.arange(0, T + 1, m, device=device),
        "history_offsets": torch.arange(0, N + 1, L, device=device),
        "dout": draw(T, heads, width).bfloat16(),
        "max_and_sum": draw(T, heads, 2),
        "lse": draw(T, heads),
    }
    for name, like in (("out", "q"), ("dq", "q"), ("dk", "k"), ("dv", "v")):
        x[name] = None if x[like] is None else torch.empty_like(x[like])
    names = [name for backward in directions for name in (("dq", "dk", "dv") if backward else ("out", "lse"))]
    results = [x[name] for name in names if x[name] is not None]
    for backward in (False, True)[: 1 + max(directions)]:
        kernels.attention(x, backward, hopper=False)
    expected = _copies(results)

    def run() -> None:
        for backward in directions:
            kernels.attention(x, backward)

    return Trial(run, results, [torch.full_like(e, torch.nan) for e in expected], expected)


def product(kernels: Kernels, name: str, N: int, D: int, width: int, device: str) -> Trial:
    """One of the products of swiglu_ffn_norm, of N rows; torch says what is right.

    Instead of it there is torch's product, and passes that move what the common kernels beside it do.
    """

    def draw(*shape: int) -> Tensor:
        x: Tensor = torch.randn(*shape, device=device) / shape[-1] ** 0.25
        return x.bfloat16()

    x, dh, g, uv, w_uv, w_o = (
        draw(N, D),
        draw(N, D),
        draw(N, width),
        draw(N, 2 * width),
        draw(D, 2 * width),
        draw(width, D),
    )
    u, v = uv.float().chunk(2, 1)
    halves, scratch = uv.chunk(2, 1), torch.empty_like(g)
    if name == "gate":
        left, right, to, initial = x, w_uv, torch.empty_like(g), None
        up, gate = (x.float() @ w_uv.float()).chunk(2, 1)
        expected = up * F.silu(gate)

        def instead() -> None:
            torch.mul(*torch.mm(x, w_uv).chunk(2, 1), out=scratch)
    elif name == "down":
        left, right, to, initial = g, w_o, torch.empty_like(x), None
        expected = g.float() @ w_o.float()

        def instead() -> None:
            torch.mm(g, w_o)
    elif name == "gate_backward":
        left, right, to, initial = dh, w_o, uv, uv.clone()
        dg, sigmoid = dh.float() @ w_o.float().T, torch.sigmoid(v)
        expected = torch.cat([dg * F.silu(v), dg * u * sigmoid * (1 + v * (1 - sigmoid))], 1)

        def instead() -> None:
            d = torch.mm(dh, w_o.T)
            for half in halves:
                torch.mul(half, d, out=scratch)
    elif name == "input":
        left, right, to, initial = uv, w_uv, torch.empty_like(x), None
        expected = uv.float() @ w_uv.float().T

        def instead() -> None:
            torch.mm(uv, w_uv.T)
    else:
        left, right, to = x, uv, torch.zeros(1, D, 2 * width, device=device)
        initial, expected = to.clone(), (x.float().T @ uv.float())[None]

        def instead() -> None:
            torch.mm(x.T, uv)

    initial = torch.full_like(to, torch.nan) if initial is None else initial
    return Trial(partial(kernels.product, name, left, right, to), [to], [initial], [expected], instead)


def _together(trials: list[Trial]) -> Trial:
    """One call after the other."""

    def run() -> None:
        for trial in trials:
            trial.run()

    def instead() -> None:
        for trial in trials:
            assert trial.instead is not None
            trial.instead()

    results, initial, expected = ([x for trial in trials for x in part(trial)] for part in _TENSORS)
    return Trial(run, results, initial, expected, instead)


def trials_of(kernels: Kernels, name: str, device: str, size: int = 0) -> list[Trial]:
    """The cases that decide a choice, or the one of a threshold at a size. Small ones where the device is the CPU."""
    small = device == "cpu"
    L, R, many, D = (90, 2, (5, 30), 24) if small else (10_000, 32, (8, 64), 1024)
    kind, _, rest = name.partition("_")
    if name == "attention_least_width":
        return [attention(kernels, size, 8, BOTH, device, shared=True, L=L, R=R)]
    if name == "attention_wide_rows":  # 16 query rows of a target; of the gradients alone
        return [attention(kernels, 1024, max(1, size // 16), (True,), device, shared=True, L=L, R=R)]
    if name in ("few_rows", "projected_one_group"):
        return [attention(kernels, 64, size, BOTH, device, shared=False, L=L, R=R)]
    if kind in ("attention", "projected"):
        width, _, direction = rest.partition("_")
        rows = many if kind == "attention" else (20, 70) if small else (64, 300)
        return [
            attention(kernels, int(width), m, (direction != "forward",), device, shared=kind == "attention", L=L, R=R)
            for m in rows
        ]
    if name == "ffn_least_tiles":  # quarters of a tile of 256 x 128 for each of 132 multiprocessors
        N = (8 if small else 33) * 128 * size // 8
        return [_together([product(kernels, each, N, D, 2 * D, device) for each in PRODUCTS])]
    return [product(kernels, "gate" if rest == "swath" else rest, 300 if small else 66 * 128, D, 2 * D, device)]
