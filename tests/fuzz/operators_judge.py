"""What a call of an operator may do: give what the oracle gives, or raise a documented error because it must."""

import contextlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accuracy import assert_all_as_accurate, assert_as_accurate, assert_bitwise_equal, ulps
from cases import DTYPES, TargetAttentionInputs
from operators_calls import Recipe, made
from operators_fits import FITS, gather_fits
from operators_rounding import worst_of_draws
from plain import swiglu_references, swiglu_results, target_attention_references
from torch import Tensor

import stca

_HUGE = 2**27  # elements of a tensor that an oracle would copy
_NO_MEMORY = ("memory", "overflow", "too large", "tebi")  # errors of torch about sizes


class Subclass(Tensor):
    """A tensor whose calls go through `__torch_function__`."""


def judge(recipe: Recipe) -> str:
    """Makes the call: "equal", "refused" or "huge"; raises AssertionError where it does what it may not do."""
    op, args = recipe["op"], made(recipe)
    tensors = [x for x in args.values() if isinstance(x, Tensor)]
    huge = any(x.numel() > _HUGE or max(x.shape, default=0) > _HUGE for x in tensors)
    devices = {x.device.type for x in tensors}
    if op == "request_gather" and devices == {"cpu"} and gather_fits(args) and int(args["target_offsets"][-1]) > _HUGE:
        if int(args["target_offsets"][-1]) < 2**38:
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
        _compare_reduce(args, results[0])
    else:
        expected = getattr(stca.reference, op)(**args)
        expected = [expected] if isinstance(expected, Tensor) else list(expected)
        assert [x.shape for x in results] == [x.shape for x in expected]
        named = ({str(i): x.reshape(-1) for i, x in enumerate(each)} for each in (results, expected))
        assert_bitwise_equal(*named)


def _compare_reduce(args: dict[str, Any], result: Tensor) -> None:
    def reduced(of: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return {"result": stca.reference.request_reduce(**{**args, "x": of(args["x"])})}

    oracle, plain = (reduced(of)["result"] for of in (Tensor.double, Tensor.clone))
    _assert_within_rounding({"result": result}, {"result": (oracle, plain)}, reduced)


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
    actual = {"out": out, "lse": results[1].where(oracle["lse"] != torch.inf, oracle["lse"].to(results[1].dtype))}
    finite = all(x is None or bool(x.isfinite().all()) for x in (q, k, v))
    if finite and v is not k and abs(args["scale"] or 0) <= 1:
        actual |= {name: x for name, x in inputs.results(stca.ops.target_attention).items() if name not in actual}
    references = {name: references[name] for name in actual}
    # A history's rows are summed up, and what an index names many times has as many gradients.
    index = args["history_index"]
    terms = max([1, *args["history_offsets"].diff().tolist(), *([] if index is None else index.bincount().tolist())])
    again = partial(_results_of_reference, inputs)
    _assert_within_rounding(actual, references, again, terms)


def _results_of_reference(inputs: TargetAttentionInputs, of: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return inputs.map(of).results(stca.reference.target_attention)


def _compare_swiglu(args: dict[str, Any], y: Tensor) -> None:
    inputs = {name: x for name, x in args.items() if isinstance(x, Tensor)}
    if not all(bool(x.isfinite().all()) for x in inputs.values()):  # infinities: what products make of them
        assert y[inputs["x"].isnan().any(dim=1)].isnan().all()
        return
    dy, eps = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y.dtype), args["eps"]
    actual = swiglu_results(inputs, dy, stca.ops.swiglu_ffn_norm, eps=eps, recompute=args["recompute"])
    references = swiglu_references(inputs, dy, eps=eps)
    # Without a positive eps there is no such norm, and of two columns it makes 1 and -1, whatever they are.
    if not eps > 0 or y.shape[1] == 2:
        actual, references = {"y": actual["y"]}, {"y": references["y"]}

    def again(of: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return swiglu_results({name: of(x) for name, x in inputs.items()}, dy, eps=eps)

    assert_bitwise_equal({"y": y}, {"y": actual["y"]})
    _assert_within_rounding(actual, references, again, max(*y.shape, inputs["w_u"].shape[1]))


def _assert_within_rounding(
    actual: dict[str, Tensor],
    references: dict[str, tuple[Tensor, Tensor]],
    again: Callable[[Callable[[Tensor], Tensor]], dict[str, Tensor]],
    terms: int = 1,
) -> None:
    """As accurate as plain PyTorch or, which may be exact by luck, as the worst of some draws of its rounding.

    Draws round a sum once, which even as a sum of pairs and their sums rounds log2 of `terms` times: so many roundings
    are allowed. One for each term is where an oracle in float64 rounds at each too, and where a result is below the
    smallest normal number, so that no step is off by less, however small: there the draws count log2 of `terms` times.
    """
    with contextlib.suppress(AssertionError):
        assert_all_as_accurate(actual, _where_finite(references))
        return
    oracles = {name: oracle for name, (oracle, _) in references.items()}
    dtype = next(iter(actual.values())).dtype  # of the inputs, while lse may have another
    worst = worst_of_draws(oracles, again, dtype)
    pairs = {name: (oracle, worst[name].to(actual[name].dtype)) for name, oracle in oracles.items()}
    for name, (oracle, plain) in _where_finite(pairs).items():
        x = actual[name]
        denormal = bool((oracle.abs() < torch.finfo(x.dtype).smallest_normal).all())
        doublings = max(1, math.log2(terms))
        each = terms / ulps(x.dtype) if denormal or x.dtype == torch.float64 else 1
        if denormal:
            plain = (oracle + doublings * (plain.double() - oracle)).to(plain.dtype)
        assert_as_accurate(x, oracle, plain, name, sensitivity=max(doublings, each))


def _where_finite(references: dict[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """The oracle's results, infinite where they are in the dtype, and plain PyTorch's.

    Where only the latter overflow, in between, no error is allowed.
    """
    pairs = {}
    for name, (oracle, plain) in references.items():
        narrow = oracle.to(plain.dtype)
        pairs[name] = oracle.where(narrow.isfinite(), narrow.double()), plain.where(plain.isfinite(), narrow)
    return pairs
