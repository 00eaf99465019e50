"""The operators: one module each, with its formula, its fake kernel and its autograd."""

from stca.ops import flops  # noqa: F401  (registers formulas)
from stca.ops.jagged_select import jagged_select
from stca.ops.request_gather import request_gather
from stca.ops.request_reduce import request_reduce
from stca.ops.swiglu_ffn_norm import swiglu_ffn_norm
from stca.ops.target_attention import target_attention

__all__ = ["jagged_select", "request_gather", "request_reduce", "swiglu_ffn_norm", "target_attention"]
