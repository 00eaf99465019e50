"""What a call of an operator may do: give what the oracle gives, or raise a documented error because it must."""

from typing import Any

import torch
from accuracy import assert_all_as_accurate, assert_as_accurate, assert_bitwise_equal
from cases import DTYPES, TargetAttentionInputs
from operators_calls import Recipe, made
from operators_fits import FITS, gather_fits
from plain import swiglu_references, target_attention_references
from torch import Tensor

import stca

_HUGE = 2**27  # elements of a tensor that an oracle would copy
_MANY_SUMS = 16  # times the few ulp that a test of known inputs allows
_NO_MEMORY = ("memory", "overflow", "too large", "tebi")  # errors of torch about sizes


class Subclass(Tensor):
    """A tensor whose calls go through `__torch_function__`."""


def judge(recipe: Recipe) -> str:
    """Makes the call: "equal", "refused" or "huge"; raises AssertionError where it does what it may not do."""
    op, args = recipe["op"], made(recipe)
    tensors = [x for x in args.values() if isinstance(x, Tensor)]
    huge = any(x.numel() > _HUGE or max(x.shape, default=0) > _HUGE for x in tensors)
    devices = {x.device.type for x in tensors}
    if op == "request_gather" and devices == {"cpu"} and gather_fits(args) and args["target_offsets"][-1] > _HUGE:
        if args["target_offsets"][-1] < 2**38:
            return "huge"  # the machine may have memory for it
        huge = True
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
    _compare_what_is_left(forward, references)


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
    assert_as_accurate(y, oracle, _where_finite(oracle, plain), "y", sensitivity=_MANY_SUMS)
    if args["eps"] == 1e-5 and y.shape[1] > 2:  # of two columns a norm makes 1 and -1, whatever they are
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y.dtype)
        leaves: dict[str, Any] = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
        again = stca.ops.swiglu_ffn_norm(**leaves, recompute=args["recompute"])
        grads = torch.autograd.grad(again, list(leaves.values()), dy)
        actual = {"y": again.detach()} | {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}
        _compare_what_is_left(actual, swiglu_references(inputs, dy))


def _compare_what_is_left(actual: dict[str, Tensor], references: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Where everything cancels, as before a norm of rows that are multiples of one, gradients are rounding."""
    left = {name: pair for name, pair in references.items() if pair[0].numel() == 0 or not pair[0].abs().max() < 1e-3}
    pairs = {name: (x, _where_finite(x, plain)) for name, (x, plain) in left.items()}
    assert_all_as_accurate({name: actual[name] for name in left}, pairs, sensitivity=_MANY_SUMS)
