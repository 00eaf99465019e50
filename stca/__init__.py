"""Stacked target-to-history cross attention (STCA) for ranking models with very long user histories.

`stca.nn` holds drop-in modules, `stca.ops` the operators under them, `stca.reference` the plain PyTorch oracle of
every operator, `stca.batch` and `stca.data` request-level batches in memory and on disk, `stca.lengths` history
lengths and batches by tokens, `stca.serving` encoded histories kept between requests. Source: "Make It Long, Keep It
Fast", arXiv 2511.06077.
"""

import torch

if torch.__version__ < "2.11":  # torch compares it as a version
    raise ImportError(f"stca: torch must be 2.11 or later, got {torch.__version__}")

from stca.native import build_info, cpu_isa, set_cpu_isa  # isort: skip  (registers the operators of what follows)
from stca import batch, lengths, nn, ops, reference, serving

__version__: str = build_info()["stca"]

__all__ = ["batch", "build_info", "cpu_isa", "lengths", "nn", "ops", "reference", "serving", "set_cpu_isa"]
