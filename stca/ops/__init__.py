"""The operators: one module each, with its formula, its fake kernel and its autograd."""

from stca.ops.target_attention import target_attention

__all__ = ["target_attention"]
