"""The whole STCA stack: a training step and a served request, against the compositions that plain torch allows."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from peers import Attend, attends
from problem import Implementation, Problem, peer_dtype, same
from ragged import Requests
from torch import Tensor

import stca

Weights = dict[str, Tensor]
_LAYERS = 4


def _ffn(x: Tensor, w: Weights, name: str) -> Tensor:
    h = ((x @ w[f"{name}.w_u"]) * F.silu(x @ w[f"{name}.w_v"])) @ w[f"{name}.w_o"]
    if f"{name}.norm_weight" not in w:
        return h
    return F.layer_norm(h, (h.shape[-1],), w[f"{name}.norm_weight"], w[f"{name}.norm_bias"])


def _plain_stack(attend: Attend, x: Tensor, encoded: Sequence[Tensor], w: Weights) -> Tensor:
    """The equations of STCA in plain torch, from every layer's encoding of the history."""
    outs: list[Tensor] = []
    for i, rows in enumerate(encoded):
        a = f"layers.{i}.attention."
        fused = x if i == 0 else torch.cat([*outs, x], dim=1) @ w[f"layers.{i}.w_c"]
        q = _ffn(fused, w, f"layers.{i}.query_ffn") @ w[a + "w_q"]
        outs.append(attend(q, rows, w[a + "w_k"], w[a + "w_v"]) @ w[a + "w_o"])
    return _ffn(torch.cat([*outs, x], dim=1) @ w["w_z"], w, "output_ffn")


def _model(D: int, H: int, dtype: torch.dtype, recompute: bool = True) -> tuple[stca.nn.STCA, list[str]]:
    model = stca.nn.STCA(D, _LAYERS, H, recompute=recompute, dtype=dtype)
    return model, [name for name, _ in model.named_parameters()]


def training(requests: Requests, D: int, H: int, dtype: torch.dtype, slow: bool = True) -> Problem:
    """One step of STCA with 4 layers, F = 2 D: targets [T, D], raw history [N, D] and all weights get gradients."""
    model, names = _model(D, H, dtype)
    keeping, _ = _model(D, H, dtype, recompute=False)
    targets, history = (torch.randn(n, D).to(dtype) for n in (requests.T, requests.N))
    offsets = requests.target_offsets, requests.history_offsets

    def ours(model: stca.nn.STCA, x: Tensor, rows: Tensor, *weights: Tensor) -> Tensor:
        w = dict(zip(names, weights, strict=True))
        z: Tensor = torch.func.functional_call(model, w, (x, rows, *offsets))
        return z

    def plain(attend: Attend) -> Callable[..., Tensor]:
        def run(x: Tensor, rows: Tensor, *weights: Tensor) -> Tensor:
            w = dict(zip(names, weights, strict=True))
            return _plain_stack(attend, x, [_ffn(rows, w, f"layers.{i}.history_ffn") for i in range(_LAYERS)], w)

        return run

    ways = {
        "stca": Implementation(partial(ours, model)),
        "stca, hidden rows kept": Implementation(partial(ours, keeping), ours=True),
    }
    for name, (form, attend) in attends(requests, D, H).items():
        ways[name] = Implementation(plain(attend), [same, form])
    N, m, size = requests.N, requests.m, history.element_size()
    attention = min(4.0 * D * H * m * N, 4.0 * D * m * N + 4.0 * N * D * D)
    flops = _LAYERS * (12.0 * N * D * D + attention)
    factor = _LAYERS * (24.0 * N * D * D + 2.5 * attention) / flops
    leaves = [targets, history, *(each.detach() for each in model.parameters())]
    # The point-wise copies of 4 layers' hidden rows and keys, 9 D a row and layer, and their gradients.
    cannot = requests.cannot_repeat(9 * _LAYERS * D, size, most=6 if slow else 0.5)
    ways = {name: way for name, way in ways.items() if name not in cannot}
    of_norms = (i for i, name in enumerate(names, start=2) if name.endswith(("norm_weight", "norm_bias")))
    lost = frozenset(of_norms if dtype == torch.bfloat16 else ())
    return Problem(leaves, ways, flops, _LAYERS * 3.0 * N * D * size, factor, 1.0, cannot, lost)


def serving(m: int, L: int, D: int, H: int, dtype: torch.dtype) -> Problem:
    """One request against its encoded history, kept beforehand: targets [m, D], 4 encodings [L, D]."""
    requests = Requests(m, [L])
    model, names = _model(D, H, dtype)
    parameters = (each.detach() for each in model.parameters())
    w = {name: each.to(peer_dtype(each)) for name, each in zip(names, parameters, strict=True)}
    targets = torch.randn(m, D).to(dtype)
    with torch.no_grad():
        encoded = model.encode_history(torch.randn(L, D).to(dtype))
    offsets = requests.target_offsets, requests.history_offsets
    ways = {"stca": Implementation(lambda x: model.attend(x, encoded, *offsets))}
    for name, (form, attend) in attends(requests, D, H).items():
        if name in ("sdpa pointwise", "sdpa nested"):
            continue
        rows = [form(each.to(peer_dtype(each))) for each in encoded]
        ways[name] = Implementation(lambda x, attend=attend, rows=rows: _plain_stack(attend, x, rows, w))
    flops = _LAYERS * min(4.0 * D * H * m * L, 4.0 * D * m * L + 4.0 * L * D * D)
    return Problem([targets], ways, flops, _LAYERS * L * D * targets.element_size())
