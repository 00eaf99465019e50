"""What a call of an operator may do: give what the oracle gives, or raise a documented error because it must."""

from typing import Any

import torch
from accuracy import assert_all_as_accurate, assert_as_accurate, assert_bitwise_equal
from cases import DTYPES, TargetAttentionInputs
from operators_calls import Recipe, made
from plain import swiglu_references, target_attention_references
from torch import Tensor

import stca

_HUGE = 2**27  # elements of a tensor that an oracle would copy
_MANY_SUMS = 16  # times the few ulp that a test of known inputs allows
_NO_MEMORY = ("memory", "overflow", "too large", "tebi")  # errors of torch about sizes


class Subclass(Tensor):
    """A tensor whose calls go through `__torch_function__`."""


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


def judge(recipe: Recipe) -> str:
    """Makes the call: "equal", "refused" or "huge"; raises AssertionError where it does what it may not do."""
    op, args = recipe["op"], made(recipe)
    tensors = [x for x in args.values() if isinstance(x, Tensor)]
    huge = any(x.numel() > _HUGE or max(x.shape, default=0) > _HUGE for x in tensors)
    devices = {x.device.type for x in tensors}
    if op == "request_gather" and devices == {"cpu"} and gather_fits(args):
        huge |= int(args["target_offsets"][-1]) > _HUGE
    fits = not huge and devices == {"cpu"} and FITS[op](args)
    results, error = _called(op, dict(args), recipe["mode"])
    if error is not None:
        _check_error(op, error, fits, huge)
        return "refused"
    if huge:
        return "huge"
    if "meta" in devices:
        assert devices == {"meta"}, f"gives {results} of tensors on {devices}"
        assert all(x.is_meta for x in results), f"gives {results} of tensors without values"
        return "equal"
    assert fits, "takes a call that is wrong"
    _compare(op, args, results)
    return "equal"


def _check_error(op: str, error: Exception, fits: bool, huge: bool) -> None:
    said = f"{type(error).__name__}: {error}"
    assert not fits, f"refuses a call that is right: {said}"
    if type(error) in (RuntimeError, torch.OutOfMemoryError):
        assert huge, said
        assert any(word in str(error) for word in _NO_MEMORY), said
    else:
        assert op in str(error), f"does not name the operator: {said}"


def _called(op: str, args: dict[str, Any], mode: str) -> tuple[list[Tensor], Exception | None]:
    """The results, flat, or an error of a type that is documented."""
    try:
        return _results(op, args, mode), None
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
        return [], error


def _results(op: str, args: dict[str, Any], mode: str) -> list[Tensor]:
    """Inputs of the modes are made of the same memory."""
    floats = {name: x for name, x in args.items() if isinstance(x, Tensor) and x.dtype in DTYPES}
    for name, x in floats.items():
        if mode == "grad":
            args[name] = x.detach().requires_grad_(len(name) % 2 == 1 or len(floats) == 1)
        elif mode == "parameter":
            args[name] = torch.nn.Parameter(x)
        elif mode == "subclass":
            args[name] = x.as_subclass(Subclass)
    more = {"return_lse": True} if op == "target_attention" else {}
    with torch.inference_mode(mode == "inference"):
        results = getattr(stca.ops, op)(**args, **more)
    flat = [results] if isinstance(results, Tensor) else list(results)
    required = [x for x in flat if x.requires_grad]
    if required:  # whatever comes out, it must come out
        leaves = [x for x in args.values() if isinstance(x, Tensor) and x.requires_grad]
        grads = torch.autograd.grad([x.sum() for x in required], leaves, allow_unused=True)
        assert all(grad is None or grad.shape == x.shape for grad, x in zip(grads, leaves, strict=True))
    return [x.detach().as_subclass(Tensor) for x in flat]


def _compare(op: str, args: dict[str, Any], results: list[Tensor]) -> None:
    if op == "target_attention":
        _compare_attention(args, results)
    elif op == "swiglu_ffn_norm":
        _compare_swiglu(args, results[0])
    elif op == "request_reduce":
        wide = {**args, "x": args["x"].double()}
        assert_as_accurate(results[0], stca.reference.request_reduce(**wide), stca.reference.request_reduce(**args))
    else:
        expected = getattr(stca.reference, op)(**args)
        expected = [expected] if isinstance(expected, Tensor) else list(expected)
        assert [x.shape for x in results] == [x.shape for x in expected]
        named = ({str(i): x.reshape(-1) for i, x in enumerate(each)} for each in (results, expected))
        assert_bitwise_equal(*named)


def _compare_attention(args: dict[str, Any], results: list[Tensor]) -> None:
    q, k, v = args["q"], args["k"], args["v"]
    generator = torch.Generator().manual_seed(0)
    shape = (*q.shape[:2], (k if v is None else v).shape[2])
    dout, dlse = (torch.randn(s, generator=generator).to(q.dtype) for s in (shape, q.shape[:2]))
    inputs = TargetAttentionInputs(**args, dout=dout, dlse=dlse)
    references = target_attention_references(inputs)
    # Where docs/numbers.md allows another result than the oracle's: of a score of inf, and where all scores are -inf.
    oracle = {name: references[name][0] for name in ("out", "lse")}
    assert not results[1][oracle["lse"] == torch.inf].isfinite().any()
    assert not results[0][oracle["lse"] == -torch.inf].any()
    out = results[0].where(oracle["lse"][..., None] != -torch.inf, oracle["out"].to(q.dtype))
    forward = {"out": out, "lse": results[1].where(oracle["lse"] != torch.inf, oracle["lse"].to(results[1].dtype))}
    finite = all(x is None or bool(x.isfinite().all()) for x in (q, k, v))
    if finite and v is not k and abs(args["scale"] or 0) <= 1:
        forward |= {name: x for name, x in inputs.results().items() if name not in forward}
    else:
        references = {name: references[name] for name in forward}
    pairs = {name: (x, _where_finite(x, plain)) for name, (x, plain) in references.items()}
    assert_all_as_accurate(forward, pairs, sensitivity=_MANY_SUMS)


def _where_finite(oracle: Tensor, plain: Tensor) -> Tensor:
    """Plain PyTorch's result, or the oracle's where only the former overflows: no error is allowed there then."""
    return plain.where(plain.isfinite() | ~oracle.isfinite(), oracle.to(plain.dtype))


def _compare_swiglu(args: dict[str, Any], y: Tensor) -> None:
    inputs = {name: x for name, x in args.items() if isinstance(x, Tensor)}
    if not all(bool(x.isfinite().all()) for x in inputs.values()):  # infinities: what products make of them
        assert y[inputs["x"].isnan().any(dim=1)].isnan().all()
        return
    wide: dict[str, Any] = {name: x.double() for name, x in inputs.items()}
    h = stca.reference.swiglu_ffn_norm(*(wide[name] for name in ("x", "w_u", "w_v", "w_o")))
    if args["norm_weight"] is not None and (h.var(dim=1, correction=0) < 1e-3).any():
        return  # the norm magnifies what rounding leaves of a row that has one value
    oracle = stca.reference.swiglu_ffn_norm(**wide, eps=args["eps"])
    plain = stca.reference.swiglu_ffn_norm(**inputs, eps=args["eps"])  # type: ignore[arg-type]
    assert_as_accurate(y, oracle, _where_finite(oracle, plain), "y")
    # Of two columns, and of multiples of one row, the norm makes the same whatever x is: gradients are rounding.
    if args["eps"] == 1e-5 and (args["norm_weight"] is None or (y.shape[1] > 2 and inputs["w_u"].shape[1] > 1)):
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y.dtype)
        leaves: dict[str, Any] = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
        again = stca.ops.swiglu_ffn_norm(**leaves, recompute=args["recompute"])
        grads = torch.autograd.grad(again, list(leaves.values()), dy)
        actual = {"y": again.detach()} | {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}
        pairs = {name: (x, _where_finite(x, each)) for name, (x, each) in swiglu_references(inputs, dy).items()}
        assert_all_as_accurate(actual, pairs, sensitivity=_MANY_SUMS)
