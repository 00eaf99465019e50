"""Ops that work row by row or move rows: the feed-forward network and the gathers, with every peer."""

import importlib.util
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from problem import Implementation, Problem
from ragged import Requests
from torch import Tensor

import stca

NO_FBGEMM = {"fbgemm": "not installed (pip install --no-deps fbgemm-gpu-cpu==1.8.0)"}


@cache
def fbgemm() -> bool:
    """Whether fbgemm-gpu-cpu is here; importing it registers its operators."""
    if importlib.util.find_spec("fbgemm_gpu") is None:
        return False
    import fbgemm_gpu  # noqa: F401

    return True


def _eager_ffn(x: Tensor, w_u: Tensor, w_v: Tensor, w_o: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return F.layer_norm(((x @ w_u) * F.silu(x @ w_v)) @ w_o, gamma.shape, gamma, beta)


@cache
def _compiled_ffn() -> Any:
    return torch.compile(_eager_ffn)


def swiglu_ffn_norm(N: int, D: int, hidden: int, dtype: torch.dtype, slow: bool) -> Problem:
    """x [N, D] through a SwiGLU network of that hidden width and a layer norm."""
    weights = [torch.randn(a, b) * a**-0.5 for a, b in ((D, hidden), (D, hidden), (hidden, D))]
    leaves = [each.to(dtype) for each in (torch.randn(N, D), *weights, torch.ones(D), torch.zeros(D))]
    kept = partial(stca.ops.swiglu_ffn_norm, recompute=False)
    ways = {
        "stca": Implementation(stca.ops.swiglu_ffn_norm),
        "stca, hidden rows kept": Implementation(kept, ours=True),
        "eager": Implementation(_eager_ffn),
    }
    if slow:
        ways["torch.compile of eager"] = Implementation(_compiled_ffn())
    lost = frozenset({5} if dtype == torch.bfloat16 else ())
    moved = 2.0 * N * D * leaves[0].element_size()
    return Problem(leaves, ways, 6.0 * N * D * hidden, moved, backward_factor=2, lost_by_torch=lost)


def request_gather(R: int, m: int, D: int, dtype: torch.dtype) -> Problem:
    """x [R, D] to a row per target [R * m, D]."""
    x = torch.randn(R, D).to(dtype)
    counts, offsets = torch.full((R,), m), torch.arange(R + 1) * m
    index = torch.arange(R).repeat_interleave(counts)
    ways = {
        "stca": Implementation(lambda x: stca.ops.request_gather(x, offsets, total=R * m)),
        "repeat_interleave": Implementation(lambda x: x.repeat_interleave(counts, 0, output_size=R * m)),
        "index_select": Implementation(lambda x: x.index_select(0, index)),
        "x[index]": Implementation(lambda x: x[index]),
    }
    if fbgemm():
        ways["fbgemm index_select_dim0"] = Implementation(lambda x: torch.ops.fbgemm.index_select_dim0(x, index))
    return Problem([x], ways, 0, (R * m + R) * D * x.element_size(), 0, 1, {} if fbgemm() else NO_FBGEMM)


def jagged_select(lengths: list[int], chosen: list[int], D: int, dtype: torch.dtype) -> Problem:
    """The histories [N, D] of the chosen requests, one after the other."""
    requests = Requests(1, lengths)
    x, index = torch.randn(requests.N, D).to(dtype), torch.tensor(chosen)
    rows = torch.cat([torch.arange(requests.N)[a:b] for a, b in _bounds(requests, chosen)])
    ways = {
        "stca": Implementation(
            lambda x: stca.ops.jagged_select(x, requests.history_offsets, index, total=len(rows))[0]
        ),
        "cat of slices": Implementation(lambda x: torch.cat([x[a:b] for a, b in _bounds(requests, chosen)])),
        "index_select": Implementation(lambda x: x.index_select(0, rows)),
    }
    if fbgemm():
        sizes = torch.tensor(lengths)
        ways["fbgemm jagged_index_select"] = Implementation(
            lambda x: torch.ops.fbgemm.jagged_index_select(x, sizes, index)[0]
        )
    return Problem([x], ways, 0, 2 * len(rows) * D * x.element_size(), 0, 1, {} if fbgemm() else NO_FBGEMM)


def _bounds(requests: Requests, chosen: list[int]) -> list[tuple[int, int]]:
    offsets = requests.history_offsets.tolist()
    return [(offsets[i], offsets[i + 1]) for i in chosen]
