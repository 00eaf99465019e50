"""target_attention says what is wrong with a call that it refuses."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import stca


def _valid() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "q": torch.randn(3, 4, 8),
        "k": torch.randn(5, 2, 8),
        "v": torch.randn(5, 2, 6),
        "target_offsets": torch.tensor([0, 2, 3]),
        "history_offsets": torch.tensor([0, 4, 5]),
        "visible": torch.tensor([[0, 4], [1, 3], [0, 1]]),
        "history_index": None,
        "scale": 0.5,
    }


def _ranges(*rows: list[int]) -> dict[str, Tensor]:
    return {"visible": torch.tensor([*rows, *[[0, 1]] * (3 - len(rows))])}


def _zeros(name: str, *shape: int, **options: Any) -> dict[str, Tensor]:
    return {name: torch.zeros(*shape, **options)}


_INT64: dict[str, Any] = {"dtype": torch.int64}
_META: dict[str, Any] = {"device": "meta"}
_FLOATS = "must be float64, float32, bfloat16 or float16"
_WIDTH = "must have a head width"
_HEADS = "the heads Hk of k must divide the heads H of q"
_VALUES = "v must be [N, Hk, Dv] with k's N = 5 and Hk = 2"
_FIRST, _LAST = (f"must be a range within the {n} history rows of request {r}" for r, n in enumerate((4, 1)))
BAD_CALLS: list[tuple[dict[str, Any], str]] = [
    (_zeros("q", 3, 4, 8, dtype=torch.int32), f"q {_FLOATS}, got Int"),
    (_zeros("q", 3, 4, 8, dtype=torch.bool), f"q {_FLOATS}, got Bool"),
    (_zeros("q", 3, 4, 8, dtype=torch.complex64), f"q {_FLOATS}, got ComplexFloat"),
    (_zeros("q", 3, 4, 8, dtype=torch.float8_e4m3fn), f"q {_FLOATS}, got Float8_e4m3fn"),
    (_zeros("q", 3, 8), "q must be [T, H, Dk], got [3, 8]"),
    (_zeros("q", 1, 3, 4, 8), "q must be [T, H, Dk], got [1, 3, 4, 8]"),
    (_zeros("q", 3, 4, 7), "k must be [N, Hk, Dk] with q's Dk = 7, got [5, 2, 8]"),
    (_zeros("q", 3, 4, 0) | _zeros("k", 5, 2, 0), f"q {_WIDTH} Dk of at least 1, got [3, 4, 0]"),
    (_zeros("q", 3, 3, 8), f"{_HEADS}, got Hk = 2 and H = 3"),
    (_zeros("q", 3, 1, 8), f"{_HEADS}, got Hk = 2 and H = 1"),
    (_zeros("q", 3, 0, 8), f"{_HEADS}, got Hk = 2 and H = 0"),
    (_zeros("q", 4, 4, 8), "target_offsets must end at the number of rows of q, 4, got 3"),
    (_zeros("k", 5, 8), "k must be [N, Hk, Dk], got [5, 8]"),
    (_zeros("k", 5, 2, 8, dtype=torch.float64), "k must have the dtype of q, Float, got Double"),
    (_zeros("k", 5, 2, 8, **_META), "k must be on the device of q, cpu, got meta"),
    (_zeros("k", 5, 0, 8), f"{_HEADS}, got Hk = 0 and H = 4"),
    (_zeros("k", 6, 2, 8) | {"v": None}, "history_offsets must end at the number of rows of k, 6, got 5"),
    (_zeros("v", 5, 12), "v must be [N, Hk, Dv], got [5, 12]"),
    (_zeros("v", 5, 2, 6, dtype=torch.float16), "v must have the dtype of q, Float, got Half"),
    (_zeros("v", 5, 2, 6, **_META), "v must be on the device of q, cpu, got meta"),
    (_zeros("v", 4, 2, 6), f"{_VALUES}, got [4, 2, 6]"),
    (_zeros("v", 5, 1, 6), f"{_VALUES}, got [5, 1, 6]"),
    (_zeros("v", 5, 2, 0), f"v {_WIDTH} Dv of at least 1, got [5, 2, 0]"),
    (_zeros("visible", 3, 2), "visible must be int32 or int64, got Float"),
    (_zeros("visible", 3, 2, dtype=torch.bool), "visible must be int32 or int64, got Bool"),
    (_zeros("visible", 3, **_INT64), "visible must be [T, 2] = [3, 2], got [3]"),
    (_zeros("visible", 2, 2, **_INT64), "visible must be [T, 2] = [3, 2], got [2, 2]"),
    (_zeros("visible", 3, 3, **_INT64), "visible must be [T, 2] = [3, 2], got [3, 3]"),
    (_zeros("visible", 3, 2, **_INT64, **_META), "visible must be on the device of q, cpu, got meta"),
    (_ranges([-1, 2]), f"visible[0] {_FIRST}, got [-1, 2)"),
    (_ranges([0, 1], [3, 2]), f"visible[1] {_FIRST}, got [3, 2)"),
    (_ranges([0, 5]), f"visible[0] {_FIRST}, got [0, 5)"),
    (_ranges([0, 1], [0, 1], [0, 2]), f"visible[2] {_LAST}, got [0, 2)"),
    (_ranges([0, 2**63 - 1]), f"visible[0] {_FIRST}, got [0, 9223372036854775807)"),
]


def _bad_offsets(name: str, rows_name: str, total: int) -> list[tuple[dict[str, Any], str]]:
    end = f"must end at the number of rows of {rows_name}, {total}"
    same_length = "target_offsets and history_offsets must have the same length R + 1"
    lengths = "2 and 3" if name == "target_offsets" else "3 and 2"
    wrong: list[tuple[dict[str, Any], str]] = [
        (_zeros(name, 3), f"{name} must be int32 or int64, got Float"),
        (_zeros(name, 3, dtype=torch.uint8), f"{name} must be int32 or int64, got Byte"),
        (_zeros(name, 0, **_INT64), f"{name} must be [R + 1], got [0]"),
        (_zeros(name, 1, 3, **_INT64), f"{name} must be [R + 1], got [1, 3]"),
        ({name: 3}, f"{name} must be [R + 1], got []"),
        (_zeros(name, 3, **_INT64, **_META), f"{name} must be on the device of q, cpu, got meta"),
        ({name: [1, 2, total]}, f"{name} must start at 0, got 1"),
        ({name: [-1, 2, total]}, f"{name} must start at 0, got -1"),
        ({name: [0, 3, 2, total]}, f"{name} must not decrease, got 3 then 2 at index 2"),
        ({name: [0, 2**62, 3]}, f"{name} must not decrease, got 4611686018427387904 then 3 at index 2"),
        ({name: [0, 1, total + 1]}, f"{name} {end}, got {total + 1}"),
        ({name: [0, 1, total - 1]}, f"{name} {end}, got {total - 1}"),
        ({name: [0]}, f"{name} {end}, got 0"),
        (
            {name: [0, total]},
            f"{same_length}, got {lengths}",
        ),
    ]
    return [({n: torch.as_tensor(x) for n, x in changes.items()}, message) for changes, message in wrong]


BAD_CALLS += [
    (_zeros("history_index", 5), "history_index must be int32 or int64, got Float"),
    (_zeros("history_index", 5, 1, **_INT64), "history_index must be [N], got [5, 1]"),
    (_zeros("history_index", 5, **_INT64, **_META), "history_index must be on the device of q, cpu, got meta"),
    (_zeros("history_index", 4, **_INT64), "history_offsets must end at the number of rows of history_index, 4, got 5"),
    ({"history_index": torch.tensor([0, 1, 5, 0, 0])}, "history_index[2] must be a row of k in [0, 5), got 5"),
    ({"history_index": torch.tensor([-1, 1, 0, 0, 0])}, "history_index[0] must be a row of k in [0, 5), got -1"),
]
BAD_CALLS += _bad_offsets("target_offsets", "q", 3) + _bad_offsets("history_offsets", "k", 5)


@pytest.mark.parametrize(("changes", "message"), BAD_CALLS, ids=[message for _, message in BAD_CALLS])
def test_bad_calls(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape('target_attention: ' + message)}"):
        stca.ops.target_attention(**(_valid() | changes))
    assert stca.ops.target_attention(**_valid()).isfinite().all()


def test_width_is_checked_before_the_default_scale() -> None:
    empty = {"q": torch.zeros(3, 4, 0), "k": torch.zeros(5, 2, 0), "scale": None}
    with pytest.raises(ValueError, match="target_attention: q must have a head width Dk of at least 1"):
        stca.ops.target_attention(**(_valid() | empty))
    with pytest.raises(ValueError, match=r"target_attention: q must be \[T, H, Dk\], got \[\]"):
        stca.ops.target_attention(**(_valid() | {"q": torch.tensor(1.0), "scale": None}))


@pytest.mark.parametrize("name", ["q", "k", "v", "target_offsets", "history_offsets", "visible"])
def test_sparse_tensors_are_refused(name: str) -> None:
    arguments = _valid()
    arguments[name] = arguments[name].to_sparse()
    with pytest.raises(NotImplementedError, match=r"target_attention.*SparseCPU"):
        stca.ops.target_attention(**arguments)


BAD_GRADIENTS: list[tuple[str, Callable[[Tensor], Tensor], str]] = [
    ("dout", lambda x: x[:2], "dout must be [3, 4, 6] of Float on cpu, got [2, 4, 6] of Float on cpu"),
    ("dout", Tensor.double, "dout must be [3, 4, 6] of Float on cpu, got [3, 4, 6] of Double on cpu"),
    ("dlse", lambda x: x[:2], "dlse must be [3, 4] of Float on cpu, got [2, 4] of Float on cpu"),
    ("dlse", lambda x: x.to("meta"), "dlse must be on the device of dout, cpu, got meta"),
    ("out", lambda x: x[:2], "out must be [3, 4, 6] of Float on cpu, got [2, 4, 6] of Float on cpu"),
    ("out", Tensor.double, "out must be [3, 4, 6] of Float on cpu, got [3, 4, 6] of Double on cpu"),
    ("max_and_sum", lambda x: x[:2], "max_and_sum must be [3, 4, 2] of Float on cpu, got [2, 4, 2] of Float on cpu"),
    ("max_and_sum", Tensor.double, "max_and_sum must be [3, 4, 2] of Float on cpu, got [3, 4, 2] of Double on cpu"),
]


@pytest.mark.parametrize(("name", "change", "message"), BAD_GRADIENTS)
def test_bad_calls_of_backward(name: str, change: Callable[[Tensor], Tensor], message: str) -> None:
    """What autograd saves fits; the operator is callable by itself, too, and must not read past the end."""
    valid = _valid()
    out, lse, max_and_sum, _ = torch.ops.stca.target_attention(*valid.values())
    saved = {"dout": out, "dlse": lse} | valid | {"out": out, "max_and_sum": max_and_sum}
    saved["scale"] = saved.pop("scale")
    arguments = saved | {name: change(saved[name])}
    if name == "out":
        arguments["dout"] = arguments["out"].to(torch.float32)
    with pytest.raises((ValueError, RuntimeError), match=re.escape(f"target_attention: {message}")):
        torch.ops.stca.target_attention_backward(*arguments.values())
