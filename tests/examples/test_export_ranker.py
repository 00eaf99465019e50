"""examples/export_ranker.py and examples/cpp: a trained ranker in a graph, in a package, and without Python."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import export_ranker
import export_served
import pytest
import torch
from export_ranker import ARGUMENTS, Scorer, export, inputs_of, random_request
from export_served import Served
from ranker.model import Ranker as ServedRanker
from service_process import write_checkpoint
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


@torch.no_grad()
@pytest.mark.parametrize(("m", "events"), [(5, 60), (1, 1), (0, 3), (3, 0)])
def test_a_graph_over_a_cache_takes_any_sizes(m: int, events: int, served: tuple[str, Served, torch.nn.Module]) -> None:
    storage, module, graph = served
    request = export_served.random_request(module.ranker, m, events, storage=storage)
    assert str(request[len(export_served.DIMENSIONS)].dtype) == f"torch.{storage}"
    logits: Tensor = graph(*request)
    assert logits.shape == (m,)
    assert torch.equal(logits, module(*request))


@pytest.fixture(scope="module", params=export_served.STORAGES)
def served(request: pytest.FixtureRequest) -> tuple[str, Served, torch.nn.Module]:
    """What its cache's pool holds, a served ranker over it, and its graph."""
    torch.manual_seed(0)
    ranker = ServedRanker(50, 20, dim=16).eval().requires_grad_(False)
    return request.param, Served(ranker), export_served.export(ranker, request.param).module()


def test_what_a_graph_takes_is_said() -> None:
    """A name for each size that is free, the same where two are equal; the others as they are."""
    ranker = ServedRanker(50, 20, dim=16).eval().requires_grad_(False)
    T, R, N, P = (rf"(?P<{name}>[a-z]\w*)" for name in "TRNP")
    of_targets = [rf"int64\[{T}\]", *[r"int64\[(?P=T)\]"] * 3, r"int64\[(?P=T),9\]"]
    of_history = [
        rf"int64\[{R}\]",
        r"int64\[(?P=R)\]",
        rf"int64\[{N}\]",
        rf"float32\[{P},16\]",
        r"float32\[(?P=P),16\]",
    ]
    found = re.fullmatch(" ".join([*of_targets, *of_history]), said := inputs_of(export_served.export(ranker)))
    assert found, said
    assert len(set(found.groups())) == 4


def _run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, (str(ROOT / "examples"), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": paths, **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def score(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of examples/cpp."""
    build, prefix = tmp_path_factory.mktemp("build"), f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    configured = _run(CMAKE, "-S", "examples/cpp", "-B", build, prefix)
    assert configured.returncode == 0, configured.stderr
    built = _run(CMAKE, "--build", build)
    assert built.returncode == 0, built.stdout + built.stderr
    return build / "score"


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("program", ["export_ranker.py", "export_served.py", "export_served.py --storage int8"])
def test_cpp_scores_as_python_does(tmp_path: Path, score: Path, program: str) -> None:
    """The package gives the same bits in C++ as in Python, of raw events and of a cache's pool."""
    path, targets = tmp_path / "checkpoint.pt", 200 if program == "export_ranker.py" else 300
    torch.manual_seed(0)
    if program == "export_ranker.py":
        torch.save({"model": Ranker().state_dict()}, path)
    else:
        write_checkpoint(path)
    out = tmp_path / "ranker.pt2"
    example, *options = program.split()
    arguments = *options, "--checkpoint", str(path), "--out", str(out)
    made = _run(sys.executable, f"examples/{example}", *arguments, STCA_CPU_ISA=stca.cpu_isa())
    assert made.returncode == 0, made.stderr
    assert f"{targets} targets" in made.stdout

    command = [score, stca.native.LIBRARY, out]
    scored = _run(*command, tmp_path / "ranker.request.pt", "3", STCA_CPU_ISA=stca.cpu_isa())
    assert scored.returncode == 0, scored.stderr
    in_cpp = [float.fromhex(line) for line in scored.stdout.split()]
    assert in_cpp == [float.fromhex(line) for line in (tmp_path / "ranker.logits.txt").read_text().split()]
    assert stca.cpu_isa() in scored.stderr
    assert f"{targets} targets: p50 " in scored.stderr
    request = torch.load(tmp_path / "ranker.request.pt")
    # Columns side by side in place of rows, unlike those of the request that the package was made with.
    torch.save([x.t().contiguous().t() if x.dim() > 1 else x for x in request], tmp_path / "columns.pt")
    assert _run(*command, tmp_path / "columns.pt", STCA_CPU_ISA=stca.cpu_isa()).stdout == scored.stdout
    dimensions = export_ranker.DIMENSIONS if program == "export_ranker.py" else export_served.DIMENSIONS
    for wrong, message in _wrong(request, dimensions.ljust(len(request), "P")):
        torch.save(wrong, bad := tmp_path / "bad.pt")
        refused = _run(*command, bad)
        assert refused.returncode == 1
        assert f"score: {bad}: {message}\n" in refused.stderr
    beyond = [x * 2 if size == "R" else x for x, size in zip(request, dimensions.ljust(len(request), "P"), strict=True)]
    torch.save(beyond, tmp_path / "beyond.pt")  # refused by the package as it runs
    refused = _run(*command, tmp_path / "beyond.pt")
    assert refused.returncode == 1
    assert "target_offsets must end at" in refused.stderr
    assert "frame #" not in refused.stderr
    for calls in ("0", "-3", "3x", ""):
        refused = _run(*command, tmp_path / "ranker.request.pt", calls)
        assert f"score: CALLS: must be from 1 to 1000000, got {calls}\n" in refused.stderr
    (tmp_path / "text.pt").write_text("1 2 3")
    assert "text.pt: must be a list of tensors, by torch.save" in _run(*command, tmp_path / "text.pt").stderr
    assert "cannot read" in _run(*command, tmp_path / "none.pt").stderr
    for package, message in ((_bare(out), "must say what its inputs are"), (tmp_path / "text.pt", "must be a package")):
        refused = _run(score, stca.native.LIBRARY, package, tmp_path / "ranker.request.pt")
        assert refused.returncode == 1
        assert f"score: {package}: {message}" in refused.stderr
        assert "frame #" not in refused.stderr


def _shape(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')}[{','.join(map(str, x.shape))}]"


def _wrong(request: list[Tensor], dimensions: str) -> Iterator[tuple[object, str]]:
    """Requests with one thing wrong, each with what is to be said of it."""
    count = len(request)
    yield request[:-1], f"must have {count} tensors, got {count - 1}"
    yield request[0], "must be a list of tensors, by torch.save"
    yield [1, 2], "must be a list of tensors, by torch.save"
    yield [torch.tensor(1), *request[1:]], "tensor 1 must be int64[*], got int64[]"
    for i, x in enumerate(request):
        others = [x.to(torch.int32), x.unsqueeze(-1)]
        if dimensions[i] in dimensions[:i]:  # else the others of its size are those that are wrong
            others.append(x[:-1])
        if x.dim() > 1:
            others.append(x[:, 1:])
        for other in others:
            message = f"tensor {i + 1} must be {_shape(x)}, got {_shape(other)}"
            yield [*request[:i], other, *request[i + 1 :]], message


def _bare(package: Path) -> Path:
    """The package without a word of its inputs."""
    out = package.with_name("bare.pt2")
    with zipfile.ZipFile(package) as whole, zipfile.ZipFile(out, "w") as bare:
        for name in whole.namelist():
            content = whole.read(name)
            if name.endswith("_metadata.json"):
                said = json.loads(content)
                content = json.dumps({key: said[key] for key in said if key != "inputs"}).encode()
            bare.writestr(name, content)
    return out
