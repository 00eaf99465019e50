"""Whether a call of an operator is right, from the documentation alone, apart from the operators' own checks."""

from typing import Any

import torch
from cases import DTYPES
from torch import Tensor


def is_integers(x: Any, dims: int) -> bool:
    return isinstance(x, Tensor) and x.dtype in (torch.int32, torch.int64) and x.dim() == dims


def are_offsets(x: Any, total: int | None) -> bool:
    if not is_integers(x, 1) or len(x) == 0:
        return False
    values = x.tolist()
    return values[0] == 0 and values == sorted(values) and total in (None, values[-1])


def attention_fits(a: dict[str, Any]) -> bool:
    q, k, v, visible, index = a["q"], a["k"], a["v"], a["visible"], a["history_index"]
    floats = [q, k] if v is None else [q, k, v]
    if not all(isinstance(x, Tensor) and x.dim() == 3 and x.dtype == q.dtype for x in floats) or q.dtype not in DTYPES:
        return False
    if min(k.shape[1], q.shape[1]) < 1 or q.shape[1] % k.shape[1] or q.shape[2] != k.shape[2]:
        return False
    if min(x.shape[2] for x in floats) < 1 or (v is not None and v.shape[:2] != k.shape[:2]):
        return False
    if index is not None and not (is_integers(index, 1) and all(0 <= n < len(k) for n in index.tolist())):
        return False
    targets, rows = a["target_offsets"], a["history_offsets"]
    if not are_offsets(targets, len(q)) or not are_offsets(rows, len(k if index is None else index)):
        return False
    if len(targets) != len(rows) or not isinstance(a["scale"], float | int | None):
        return False
    if visible is None:
        return True
    if not is_integers(visible, 2) or visible.shape != (len(q), 2):
        return False
    lengths = rows.diff().repeat_interleave(targets.diff()).tolist()
    return all(0 <= begin <= end <= n for (begin, end), n in zip(visible.tolist(), lengths, strict=True))


def swiglu_fits(a: dict[str, Any]) -> bool:
    x, w_u, weight, bias = a["x"], a["w_u"], a["norm_weight"], a["norm_bias"]
    if (
        not isinstance(x, Tensor)
        or x.dim() != 2
        or x.dtype not in DTYPES
        or not isinstance(w_u, Tensor)
        or w_u.dim() != 2
    ):
        return False
    D, F = x.shape[1], w_u.shape[1]
    shapes = {"w_u": (D, F), "w_v": (D, F), "w_o": (F, D), "norm_weight": (D,), "norm_bias": (D,)}
    given = [name for name in shapes if a[name] is not None or name.startswith("w_")]
    if not all(
        isinstance(a[name], Tensor) and a[name].shape == shapes[name] and a[name].dtype == x.dtype for name in given
    ):
        return False
    if min(D, F) < 1 or (weight is None and bias is not None) or not isinstance(a["eps"], float | int):
        return False
    return a["recompute"] is True or a["recompute"] is False or a["recompute"] == "auto"


def gather_fits(a: dict[str, Any]) -> bool:
    x, total = a["x"], a["total"]
    xs = x if isinstance(x, list) else [x]
    fits = all(isinstance(each, Tensor) and each.dim() >= 1 for each in xs)
    return (
        fits
        and isinstance(total, int | None)
        and are_offsets(a["target_offsets"], total)
        and all(len(each) == len(a["target_offsets"]) - 1 for each in xs)
    )


def reduce_fits(a: dict[str, Any]) -> bool:
    x = a["x"]
    fits = isinstance(x, Tensor) and x.dim() >= 1 and x.dtype in DTYPES and a["reduce"] in ("sum", "mean")
    return fits and are_offsets(a["target_offsets"], len(x))


def select_fits(a: dict[str, Any]) -> bool:
    values, at, index, keep, total = (a[name] for name in ("values", "offsets", "index", "keep", "total"))
    if (
        not isinstance(values, Tensor)
        or values.dim() < 1
        or not are_offsets(at, len(values))
        or not is_integers(index, 1)
    ):
        return False
    if not all(0 <= r < len(at) - 1 for r in index.tolist()) or not isinstance(total, int | None):
        return False
    lengths = at.diff()[index.long()].tolist()
    if keep is not None:
        if not is_integers(keep, 1) or keep.shape != index.shape or (keep < 0).any():
            return False
        lengths = list(map(min, lengths, keep.tolist()))
    return total in (None, sum(lengths))


FITS = {
    "target_attention": attention_fits,
    "swiglu_ffn_norm": swiglu_fits,
    "request_gather": gather_fits,
    "request_reduce": reduce_fits,
    "jagged_select": select_fits,
}
