"""What the tools of wheels say: tables of what was run, and a torch that has no CUDA is refused."""

import subprocess
import zipfile
from pathlib import Path

import arm64
import build_wheel
import matrix
import pytest


def test_the_matrix_is_a_table() -> None:
    found = {("3.11", "2.11.0"): "ok", ("3.13", "2.11.0"): "no such torch", ("3.13", "2.15.0"): "FAILED: check"}
    assert matrix.table(found).splitlines() == [
        "| torch | Python 3.11 | Python 3.13 |",
        "| --- | --- | --- |",
        "| 2.11.0 | ok | no such torch |",
        "| 2.15.0 | not run | FAILED: check |",
    ]


def test_cases_are_counted_by_file(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    cases = [("a", ""), ("a", "<failure/>"), ("b", "<skipped/>"), ("a", "")]
    told = "".join(f'<testcase classname="tests.ops.{name}" name="x">{part}</testcase>' for name, part in cases)
    report.write_text(f"<testsuites><testsuite>{told}</testsuite></testsuites>")
    assert arm64.table(report) == "| `tests/ops/a.py` | 2 passed, 1 failure |\n| `tests/ops/b.py` | 1 skipped |"


def test_a_torch_without_cuda_is_refused(tmp_path: Path) -> None:
    (tmp_path / "version.py").write_text("__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\n")
    assert build_wheel.cuda_major(tmp_path) == "13"
    (tmp_path / "version.py").write_text("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n")
    with pytest.raises(SystemExit, match="must be a torch with CUDA, got one without"):
        build_wheel.cuda_major(tmp_path)


def test_a_fetched_torch_without_cuda_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(command: list[str], **_: str) -> None:
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1], "torch.whl"), "w") as wheel:
            wheel.writestr("torch/version.py", "cuda: Optional[str] = None\n")

    monkeypatch.setattr(build_wheel, "ROOT", tmp_path)
    monkeypatch.setattr(build_wheel, "run", download)
    with pytest.raises(SystemExit, match="must be a torch with CUDA"):
        build_wheel.torch_to_build_with("2.13.0", cuda=True)
    assert build_wheel.torch_to_build_with("2.13.0", cuda=False).is_dir()
    assert [path.name for path in (tmp_path / "build" / "torch").iterdir()] == ["2.13.0"]


@pytest.mark.parametrize("target", ["wheel", "wheel-twice"])
def test_only_1_asks_for_cuda(target: str) -> None:
    """What an environment calls CUDA is often a folder."""

    def commands(value: str) -> str:
        command = ["make", "-n", target, f"CUDA={value}"]
        return subprocess.run(command, cwd=build_wheel.ROOT, capture_output=True, text=True, check=True).stdout

    assert "--cuda" in commands("1")
    assert not any("--cuda" in commands(value) for value in ("", "0", "/usr/local/cuda"))
