"""Random calls of the operators, right ones and wrong ones, as JSON: what a call is made of, and the call itself."""

import itertools
import math
from random import Random
from typing import Any

import torch
from torch import Tensor

Recipe = dict[str, Any]  # "op", "mode", and "args": each a number, None, or how to make a tensor

FLOATS = ("float64", "float32", "bfloat16", "float16")
OTHERS = ("int64", "int8", "bool", "complex64", "float8_e5m2")
LAYOUTS = ("contiguous", "transposed", "strided", "padded", "offset", "same_rows", "one_element", "overlapping")
FILLS = ("normal", "zeros", "denormal", "nan", "inf")
MODES = ("plain", "plain", "grad", "grad", "inference", "subclass", "parameter")
NUMBERS = (-1, 0, 1, 3, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63))
OBJECTS: tuple[Any, ...] = (None, 3, 0.5, "x", [1, 2], True, 2**63, float("nan"))


def random_call(seed: int) -> Recipe:
    """The call of that number: three of five are right."""
    rng = Random(seed)
    op = rng.choice(sorted(_ARGUMENTS))
    recipe: Recipe = {"op": op, "mode": rng.choice(MODES), "args": _ARGUMENTS[op](rng)}
    if rng.random() < 0.1:
        _enlarge(rng, recipe["args"])
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        _spoil(rng, recipe["args"])
    return recipe


def tensor(rng: Random, *shape: int, dtype: str) -> Recipe:
    """How to make a tensor of numbers."""
    layout = rng.choice(LAYOUTS) if rng.random() < 0.5 else "contiguous"
    fill = rng.choice(FILLS) if rng.random() < 0.2 else "normal"
    return {"shape": list(shape), "dtype": dtype, "layout": layout, "fill": fill, "seed": rng.randrange(1000)}


def integers(rng: Random, values: list[Any]) -> Recipe:
    """How to make a tensor of these integers."""
    layout = rng.choice(LAYOUTS[:5]) if rng.random() < 0.3 else "contiguous"
    return {"values": values, "dtype": rng.choice(("int32", "int64")), "layout": layout}


def _lengths(rng: Random) -> list[int]:
    return [rng.choice((0, 1, 2, 3, 7, 40)) for _ in range(rng.randrange(5))]


def _ends(lengths: list[int]) -> list[int]:
    return list(itertools.accumulate(lengths, initial=0))


def _target_attention(rng: Random) -> Recipe:
    targets = _lengths(rng)
    rows = [rng.choice((0, 1, 5, 33, 130, 700)) for _ in targets]
    T, N, dtype = sum(targets), sum(rows), rng.choice(FLOATS)
    kv_heads = rng.choice((1, 2, 3))
    H, Dk, Dv = kv_heads * rng.choice((1, 2)), rng.choice((1, 3, 8, 17)), rng.choice((1, 4, 19))
    indexed = rng.random() < 0.3
    P = rng.choice((1, 9, 50)) if indexed else N
    args = {
        "q": tensor(rng, T, H, Dk, dtype=dtype),
        "k": tensor(rng, P, kv_heads, Dk, dtype=dtype),
        "v": tensor(rng, P, kv_heads, Dv, dtype=dtype) if rng.random() < 0.6 else None,
        "target_offsets": integers(rng, _ends(targets)),
        "history_offsets": integers(rng, _ends(rows)),
        "visible": None,
        "history_index": integers(rng, [rng.randrange(P) for _ in range(N)]) if indexed else None,
        "scale": rng.choice((None, None, 0.0, -0.5, 1)),
    }
    if rng.random() < 0.5 and T:
        each = [length for count, length in zip(targets, rows, strict=True) for _ in range(count)]
        args["visible"] = integers(rng, [sorted(rng.randint(0, length) for _ in range(2)) for length in each])
    if args["v"] is not None and Dv == Dk and rng.random() < 0.3:
        args["v"] = {"alias": "k"}
    return args


def _swiglu_ffn_norm(rng: Random) -> Recipe:
    N, D, F, dtype = rng.choice((0, 1, 5, 97)), rng.choice((1, 2, 9, 33)), rng.choice((1, 4, 40)), rng.choice(FLOATS)
    shapes = {"x": (N, D), "w_u": (D, F), "w_v": (D, F), "w_o": (F, D)}
    args: Recipe = {name: tensor(rng, *shape, dtype=dtype) for name, shape in shapes.items()}
    norm = rng.randrange(3)
    args["norm_weight"] = tensor(rng, D, dtype=dtype) if norm else None
    args["norm_bias"] = tensor(rng, D, dtype=dtype) if norm == 2 else None
    if rng.random() < 0.2:
        args["w_v"] = {"alias": "w_u"}
    return {**args, "eps": rng.choice((1e-5, 1e-3, 1.0)), "recompute": rng.choice((True, False, "auto"))}


def _row(rng: Random) -> list[int]:
    return [rng.choice((0, 1, 3, 16, 40)) for _ in range(rng.randrange(3))]


def _request_gather(rng: Random) -> Recipe:
    counts = _lengths(rng)
    x = tensor(rng, len(counts), *_row(rng), dtype=rng.choice(FLOATS + OTHERS))
    return {"x": x, "target_offsets": integers(rng, _ends(counts)), "total": rng.choice((None, sum(counts)))}


def _request_reduce(rng: Random) -> Recipe:
    counts = _lengths(rng)
    x = tensor(rng, sum(counts), *_row(rng), dtype=rng.choice(FLOATS))
    return {"x": x, "target_offsets": integers(rng, _ends(counts)), "reduce": rng.choice(("sum", "mean"))}


def _jagged_select(rng: Random) -> Recipe:
    counts = _lengths(rng)
    chosen = [rng.randrange(len(counts)) for _ in range(rng.randrange(6))] if counts else []
    keep = [rng.choice((0, 1, 5, 2**31, 2**63 - 1)) for _ in chosen]
    values = tensor(rng, sum(counts), *_row(rng), dtype=rng.choice(FLOATS + OTHERS))
    args = {"values": values, "offsets": integers(rng, _ends(counts)), "index": integers(rng, chosen)}
    return {**args, "keep": {**integers(rng, keep), "dtype": "int64"} if rng.random() < 0.6 else None, "total": None}


_ARGUMENTS = {
    "target_attention": _target_attention,
    "swiglu_ffn_norm": _swiglu_ffn_norm,
    "request_gather": _request_gather,
    "request_reduce": _request_reduce,
    "jagged_select": _jagged_select,
}


def _enlarge(rng: Random, args: Recipe) -> None:
    """Makes one size or two huge wherever they occur, without memory for them; no result of such a size fits."""
    specs = [spec for spec in args.values() if isinstance(spec, dict) and spec.get("shape")]
    sizes = sorted({size for spec in specs for size in spec["shape"]})
    second = (22, 38) if "w_u" in args else (38,)  # a weight may have 2^62 elements
    for old, powers in zip(
        rng.sample(sizes, min(len(sizes), rng.choice((1, 2)))), ((38, 40, 43, 61), second), strict=False
    ):
        new = 2 ** rng.choice(powers)
        shapes = [[new if size == old else size for size in spec["shape"]] for spec in specs]
        if not all(map(_is_possible, shapes)):
            return
        for spec, shape in zip(specs, shapes, strict=True):
            spec.update(shape=shape, layout="one_element")


def _is_possible(shape: list[int]) -> bool:
    """Whether torch has tensors of this shape."""
    return math.prod(size for size in shape if size) < 2**63


def _spoil(rng: Random, args: Recipe) -> None:
    """Changes one argument, mostly to something that does not fit."""
    name = rng.choice(sorted(args))
    spec = args[name]
    if not isinstance(spec, dict) or "alias" in spec or rng.random() < 0.1:
        args[name] = rng.choice(OBJECTS)
    elif rng.random() < 0.15:
        spec["device"] = "meta"
    elif rng.random() < 0.2:
        spec["dtype"] = rng.choice(FLOATS + OTHERS + ("int32",))
    elif "values" in spec:
        _spoil_values(rng, spec)
    elif spec["shape"]:
        at = rng.randrange(len(spec["shape"]))
        shape = spec["shape"]
        changed = rng.choice(
            ([], [*shape, 1], shape[:-1], [*shape[:at], shape[at] + rng.choice((-1, 1)), *shape[at + 1 :]])
        )
        changed = [max(0, size) for size in changed]
        if _is_possible(changed):
            spec["shape"] = changed


def _spoil_values(rng: Random, spec: Recipe) -> None:
    values, number = spec["values"], rng.choice(NUMBERS)
    if values == 0:
        return
    if spec["dtype"] == "int32":
        number = max(-(2**31), min(number, 2**31 - 1))
    if not values or rng.random() < 0.2:
        spec["values"] = rng.choice(([], [*values, *values[-1:]], [[0]], 0))
        return
    at = rng.randrange(len(values))
    values[at] = [number, *values[at][1:]] if isinstance(values[at], list) else number


def made(recipe: Recipe) -> dict[str, Any]:
    """The arguments of the call."""
    args: dict[str, Any] = {}
    for name, spec in recipe["args"].items():
        if not isinstance(spec, dict):
            args[name] = spec
        elif "alias" in spec:
            args[name] = args[spec["alias"]]
        else:
            args[name] = _tensor(spec)
    return args


def _tensor(spec: Recipe) -> Tensor:
    dtype = getattr(torch, spec["dtype"])
    if "values" in spec:
        whole = torch.tensor(spec["values"], dtype=torch.int64).to(dtype)
        return laid_out(whole, spec["layout"]).to(spec.get("device", "cpu"))
    shape = tuple(spec["shape"])
    small = (1,) * len(shape) if spec["layout"] == "one_element" else shape
    if spec.get("device") == "meta":
        return torch.empty(small, dtype=dtype, device="meta").expand(shape)
    numbers = torch.randn(small, dtype=torch.float64, generator=torch.Generator().manual_seed(spec["seed"]))
    if spec["fill"] == "zeros":
        numbers.zero_()
    elif spec["fill"] == "denormal":
        numbers *= 1e-41 if dtype == torch.float32 else 1e-6
    elif spec["fill"] in ("nan", "inf"):
        flat = numbers.view(-1)
        flat[:: max(1, flat.numel() // 3)] = float(spec["fill"])
    return laid_out(numbers.to(dtype), spec["layout"]).expand(shape)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers elsewhere in memory, or, of the last layouts, some of them in each other's place."""
    if layout == "transposed":
        backwards = tuple(reversed(range(x.dim())))
        return x.permute(backwards).contiguous().permute(backwards)
    if layout == "offset":
        return torch.cat([x.new_zeros(3), x.reshape(-1)])[3:].view(x.shape)
    if x.dim() == 0 or layout in ("contiguous", "one_element"):
        return x
    if layout == "strided":
        return torch.stack([x, x.new_ones(x.shape)], dim=-1).flatten(-2)[..., ::2]
    if layout == "padded":
        return torch.cat([x, x.new_ones(*x.shape[:-1], 3)], dim=-1)[..., : x.shape[-1]]
    if layout == "same_rows":
        return x[:1].expand(x.shape) if x.shape[0] else x
    flat = x.reshape(-1).repeat(2) if x.numel() else x.new_zeros(1)  # overlapping: each row starts in the one before
    return flat.as_strided(x.shape, (1,) * x.dim()) if sum(x.shape) <= flat.numel() else x
