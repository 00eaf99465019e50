"""Histories of int8 numbers with scales, and the float rows that they stand for."""

from typing import Any

import torch
from cases import TargetAttentionInputs

_NAMES = "k", "v"


def quantised(inputs: TargetAttentionInputs) -> tuple[TargetAttentionInputs, dict[str, Any]]:
    """k and v as int8 numbers, and their scales, of which some are 0."""
    numbers: dict[str, Any] = {"k": None, "v": None}
    scales: dict[str, Any] = {"k_scale": None, "v_scale": None}
    for name in _NAMES:
        rows = getattr(inputs, name)
        if rows is not None:
            numbers[name] = torch.randint(-128, 128, rows.shape, dtype=torch.int8)
            scales[f"{name}_scale"] = torch.rand(rows.shape[:2]) * (torch.rand(rows.shape[:2]) > 0.1) / 64
    return inputs.but(**numbers), scales


def in_float(inputs: TargetAttentionInputs, scales: dict[str, Any], dtype: torch.dtype) -> TargetAttentionInputs:
    """The rows that they stand for, as float32 or float64 products rounded to `dtype`."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    rows = {}
    for name in _NAMES:
        numbers, scale = getattr(inputs, name), scales[f"{name}_scale"]
        rows[name] = None if scale is None else (numbers.to(wide) * scale[:, :, None]).to(dtype)
    return inputs.but(**rows, q=inputs.q.to(dtype))
