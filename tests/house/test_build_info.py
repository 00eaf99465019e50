"""What the native part says about itself, and the choice of an instruction set."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import ISAS, TARGET_ATTENTION_SMALL

import stca


def _child(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in another process and folder."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "STCA_CPU_ISA")}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=inherited | environment, capture_output=True, text=True)


def test_build_info() -> None:
    info = stca.build_info()
    assert list(info) == [
        "stca",
        "torch",
        "compiler",
        "cpu_isas",
        "cpu_isas_supported",
        "cpu_isa",
        "cuda_archs",
        "sm90_kernels",
    ]
    assert info["stca"] == stca.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", info["stca"])
    assert torch.__version__.startswith(info["torch"])
    assert re.search(r"\d", info["compiler"])
    assert info["cpu_isas"][0] == info["cpu_isas_supported"][0] == "baseline"
    assert set(info["cpu_isas_supported"]) <= set(info["cpu_isas"])
    assert info["cpu_isa"] == stca.cpu_isa()
    assert all(isinstance(arch, str) for arch in info["cuda_archs"])


FAMILIES = ["target_attention", "target_attention_projected", "swiglu_ffn_norm"]
CONFIRMED = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "sm90.json").read_text())["confirmed"]


@pytest.mark.parametrize(("asked", "families"), [("", CONFIRMED), ("0", []), ("1", FAMILIES), ("yes", CONFIRMED)])
def test_hopper_kernels_follow_the_file_unless_asked_for(
    asked: str, families: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STCA_SM90", asked)
    assert stca.native._native.stca_sm90_kernels().decode().split() == families
    info = stca.build_info()
    assert info["sm90_kernels"] == (families if "90a" in info["cuda_archs"] else [])


def test_build_info_is_a_copy() -> None:
    stca.build_info()["cpu_isas"].clear()
    assert stca.build_info()["cpu_isas"] != []


def test_set_cpu_isa(isa: str) -> None:
    assert stca.cpu_isa() == stca.build_info()["cpu_isa"] == isa


@pytest.mark.parametrize("name", ["", "sse9", "AVX2", "baseline "])
def test_unknown_isa(name: str) -> None:
    before = stca.cpu_isa()
    message = f"set_cpu_isa: name must be one of {', '.join(ISAS)}, got {name}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        stca.set_cpu_isa(name)
    assert stca.cpu_isa() == before


def test_isas_that_this_cpu_lacks_are_refused() -> None:
    for name in set(stca.build_info()["cpu_isas"]) - set(ISAS):
        with pytest.raises(ValueError, match="set_cpu_isa: name must be one of"):
            stca.set_cpu_isa(name)
    assert stca.cpu_isa() in ISAS


def test_isas_differ_in_rounding_at_most() -> None:
    inputs = TARGET_ATTENTION_SMALL[0].build(torch.float64)
    before = stca.cpu_isa()
    results = []
    for name in ISAS:
        stca.set_cpu_isa(name)
        results.append(inputs.results())
    stca.set_cpu_isa(before)
    for other in results[1:]:
        for name, x in other.items():
            torch.testing.assert_close(x, results[0][name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ISAS)
def test_isa_from_the_environment(name: str, tmp_path: Path) -> None:
    done = _child("import stca; print(stca.cpu_isa())", tmp_path, STCA_CPU_ISA=name)
    assert done.stdout.strip() == name, done.stderr


def test_unknown_isa_in_the_environment(tmp_path: Path) -> None:
    done = _child("import stca", tmp_path, STCA_CPU_ISA="sse9")
    assert done.returncode != 0
    assert f"STCA_CPU_ISA in the environment must be one of {', '.join(ISAS)}, got sse9" in done.stderr


def test_best_isa_unless_told(tmp_path: Path) -> None:
    done = _child("import stca; print(stca.cpu_isa())", tmp_path)
    assert done.stdout.strip() == ISAS[-1], done.stderr


def test_import_from_another_folder(tmp_path: Path) -> None:
    code = "import stca; print(stca.__version__, 'stca' in str(stca.ops.target_attention.__module__))"
    done = _child(code, tmp_path)
    assert done.stdout.split() == [stca.__version__, "True"], done.stderr


@pytest.mark.parametrize(("version", "refused"), [("2.9.1", True), ("2.10.0+cu128", True), ("2.99.0", False)])
def test_too_old_a_torch_is_refused_in_one_line(version: str, refused: bool, tmp_path: Path) -> None:
    pretend = f"import torch; torch.__version__ = torch.torch_version.TorchVersion('{version}')"
    done = _child(f"{pretend}; import stca", tmp_path, PYTHONPATH=str(Path(stca.__file__).parents[1]))
    message = f"ImportError: stca: torch must be 2.11 or later, got {version}"
    assert (done.stderr.splitlines()[-1:] == [message]) == refused, done.stderr
    assert (done.returncode != 0) == refused, done.stderr


def test_public_names_exist() -> None:
    for module in (stca, stca.ops):
        assert all(hasattr(module, name) for name in module.__all__)
