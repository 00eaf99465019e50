"""The native library: loading it registers the operators, `torch.ops.stca`; what has no tensor is read by ctypes."""

import ctypes
import os
import warnings
from pathlib import Path
from typing import Any

import torch


def _version(text: str) -> tuple[int, ...]:
    """(2, 13) of "2.13.0+cpu"."""
    return tuple(int(part) for part in text.split(".")[:2])


def _library(folder: Path, torch_version: str) -> Path:
    """The library for a torch: of its minor version, or, where that was not built, of the newest before it."""
    built = {_version(path.stem.partition("-")[2]): path for path in folder.glob("libstca_ops-*.so")}
    wanted = _version(torch_version)
    found = max((version for version in built if version <= wanted), default=None)
    if not built:
        raise ImportError(
            f"stca: {folder} holds no library of operators: is it the source, and nothing is built in it?"
        )
    names = "torch " + ", ".join(".".join(map(str, version)) for version in sorted(built))
    if found is None:
        raise ImportError(f"stca: this installation is built for {names}, got {torch_version}")
    if found != wanted:
        warnings.warn(f"stca: built for {names}, untested with {torch_version}", stacklevel=2)
    return built[found]


LIBRARY = _library(Path(__file__).parent, torch.__version__)

try:
    torch.ops.load_library(LIBRARY)  # type: ignore[no-untyped-call]
except OSError as error:
    why = error.__cause__ or error  # torch's words name the file alone, the linker's the reason
    raise ImportError(f"stca: {LIBRARY.name} does not load into torch {torch.__version__}: {why}") from None
_native = ctypes.CDLL(str(LIBRARY))
for _function in (_native.stca_build_info, _native.stca_cpu_isa, _native.stca_sm90_kernels):
    _function.restype = ctypes.c_char_p
_native.stca_set_cpu_isa.restype = ctypes.c_bool


def build_info() -> dict[str, Any]:
    """What this build holds and what it runs on.

    Returns:
        dict with the versions of stca, of the torch and of the compiler it was built with; `cpu_isas` compiled and
        `cpu_isas_supported` by this CPU; `cpu_isa`, the one in use (`STCA_CPU_ISA` in the environment, or
        `set_cpu_isa(name)`, chooses a lesser one); `cuda_archs`, empty in a build without CUDA kernels;
        `sm90_kernels`, the families of Hopper's own kernels that calls take there: those that a GPU has confirmed
        (benchmarks/results/sm90.json), all with `STCA_SM90=1` in the environment, none with `STCA_SM90=0` or in a
        build without "90a" among `cuda_archs`.

    Example:
        >>> info = stca.build_info()
        >>> info["cpu_isa"] in info["cpu_isas_supported"]
        True
    """
    text: str = _native.stca_build_info().decode()
    facts = dict(line.split(" ", 1) for line in text.splitlines())
    lists = {name: facts.pop(name).split() for name in ("cpu_isas", "cpu_isas_supported", "cuda_archs")}
    archs = [arch.removesuffix("-real") for arch in lists.pop("cuda_archs")]
    families: list[str] = _native.stca_sm90_kernels().decode().split()
    return {
        **facts,
        **lists,
        "cpu_isa": cpu_isa(),
        "cuda_archs": archs,
        "sm90_kernels": families if "90a" in archs else [],
    }


def cpu_isa() -> str:
    """Name of the instruction set that the CPU kernels use.

    Example:
        >>> stca.cpu_isa() in stca.build_info()["cpu_isas"]
        True
    """
    name: bytes = _native.stca_cpu_isa()
    return name.decode()


def set_cpu_isa(name: str) -> None:
    """Uses the kernels of that instruction set from now on.

    Args:
        name: one of `build_info()["cpu_isas_supported"]`.

    Raises:
        ValueError: another name.

    Example:
        >>> stca.set_cpu_isa(stca.cpu_isa())
    """
    _set_cpu_isa("set_cpu_isa: name", name)


def _set_cpu_isa(who: str, name: str) -> None:
    if not _native.stca_set_cpu_isa(name.encode()):
        choices = ", ".join(build_info()["cpu_isas_supported"])
        raise ValueError(f"{who} must be one of {choices}, got {name}")


if "STCA_CPU_ISA" in os.environ:  # The library has taken it, unless it knows none of that name.
    _set_cpu_isa("stca: STCA_CPU_ISA in the environment", os.environ["STCA_CPU_ISA"])
