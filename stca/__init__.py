"""Stacked target-to-history cross attention (STCA) for ranking models with very long user histories.

`stca.nn` holds drop-in modules, `stca.ops` the operators under them, `stca.reference` the plain PyTorch oracle of
every operator, `stca.batch` and `stca.data` request-level batches in memory and on disk, `stca.lengths` history
lengths and batches by tokens. Source: "Make It Long, Keep It Fast", arXiv 2511.06077.
"""

from typing import Any

import torch  # (first: its libraries must be loaded before the extension's)

if torch.__version__ < "2.11":  # torch compares it as a version
    raise ImportError(f"stca: torch must be 2.11 or later, got {torch.__version__}")

from stca import _C, batch, lengths, nn, ops, reference
from stca._C import cpu_isa, set_cpu_isa

__version__: str = _C.build_info()["stca"]

__all__ = ["batch", "build_info", "cpu_isa", "lengths", "nn", "ops", "reference", "set_cpu_isa"]


def build_info() -> dict[str, Any]:
    """What this build holds and what it runs on.

    Returns:
        dict with the versions of stca, of the torch and of the compiler it was built with; `cpu_isas` compiled and
        `cpu_isas_supported` by this CPU; `cpu_isa`, the one in use (`STCA_CPU_ISA` in the environment, or
        `set_cpu_isa(name)`, chooses a lesser one); `cuda_archs`, empty in a build without CUDA kernels;
        `sm90_kernels`, whether Hopper's own kernels are "not built", "off", or "on" (`STCA_SM90=1` in the environment).

    Example:
        >>> info = stca.build_info()
        >>> info["cpu_isa"] in info["cpu_isas_supported"]
        True
    """
    return _C.build_info()
