"""examples/export_ranker.py and examples/cpp: a trained ranker in a graph, in a package, and without Python."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from export_ranker import ARGUMENTS, Scorer, export, random_request
from torch import Tensor
from train import Ranker

import stca

ROOT = Path(__file__).parents[2]
CMAKE = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{Path('/usr/bin')}") or "cmake"
# Targets and events of each request: what a graph may have taken for fixed when it was made with others.
SIZES: dict[str, tuple[list[int], list[int]]] = {
    "more": ([40, 0, 7], [300, 5, 0]),
    "R = 1": ([5], [17]),
    "one of all": ([1], [1]),
    "R = 0": ([], []),
    "T = 0": ([0, 0], [3, 9]),
    "N = 0": ([2, 3], [0, 0]),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ranker, torch.nn.Module]:
    """A ranker, and what torch.export.save and load make of it."""
    torch.manual_seed(0)
    ranker, path = Ranker(), tmp_path_factory.mktemp("export") / "ranker.pt2"
    torch.export.save(export(ranker), path)
    return ranker, torch.export.load(path).module()


@torch.no_grad()
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_a_loaded_graph_takes_any_sizes(
    sizes: tuple[list[int], list[int]], loaded: tuple[Ranker, torch.nn.Module]
) -> None:
    ranker, graph = loaded
    request = random_request(*sizes)
    assert len(request) == len(ARGUMENTS)
    logits: Tensor = graph(*request)
    assert logits.shape == (sum(sizes[0]),)
    assert torch.equal(logits, Scorer(ranker)(*request))


def _run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "2", **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_cpp_scores_as_python_does(tmp_path: Path) -> None:
    """The package gives the same bits in C++ as in Python."""
    torch.manual_seed(0)
    torch.save({"model": Ranker().state_dict()}, tmp_path / "checkpoint.pt")
    checkpoint = ["--checkpoint", str(tmp_path / "checkpoint.pt")]
    made = _run(sys.executable, "examples/export_ranker.py", *checkpoint, STCA_CPU_ISA=stca.cpu_isa())
    assert made.returncode == 0, made.stderr
    assert "200 targets" in made.stdout

    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    configured = _run(CMAKE, "-S", "examples/cpp", "-B", tmp_path / "build", prefix)
    assert configured.returncode == 0, configured.stderr
    built = _run(CMAKE, "--build", tmp_path / "build")
    assert built.returncode == 0, built.stdout + built.stderr

    score = [tmp_path / "build" / "score", stca.native.LIBRARY, tmp_path / "ranker.pt2"]
    scored = _run(*score, tmp_path / "ranker.request.txt", "3", STCA_CPU_ISA=stca.cpu_isa())
    assert scored.returncode == 0, scored.stderr
    in_cpp = [float.fromhex(line) for line in scored.stdout.split()]
    assert in_cpp == [float.fromhex(line) for line in (tmp_path / "ranker.logits.txt").read_text().split()]
    assert stca.cpu_isa() in scored.stderr
    assert "200 targets, 10000 events: median " in scored.stderr

    for lines, message in (
        ("1 2 x\n", "must hold integers, got x"),
        ("3 99999999999999999999", "must hold integers, got 99999999999999999999"),
        ("1 2 -", "must hold integers, got -"),
        ("1\n2\n", "must have 7 lines, got 2"),
        ("1 2\n1\n3\n0\n5\n0 2\n0 1\n", "lines 1 and 2 must be equally long"),
        ("1\n1\n3\n0\n5 6\n0 1\n0 1\n", "lines 3 and 5 must be equally long"),
    ):
        (tmp_path / "bad.txt").write_text(lines)
        refused = _run(*score, tmp_path / "bad.txt")
        assert refused.returncode == 1
        assert f"bad.txt: {message}" in refused.stderr
    assert "cannot read" in _run(*score, tmp_path / "none.txt").stderr
