"""Tries dist/stca-*.whl in fresh environments: every Python that is here with every torch that has one for it.

    make matrix                                             all pairs; 5 GB at a time
    make matrix TORCHES='2.11.0 2.15.0' MATRIX=--pair=-1    one of them: 0 is the first torch with the oldest Python, -1
                                                            the last with the newest; the wheel is for all the same

In each: the import from another folder, README's example, `python -m stca.check`, and tests of the operators, of STCA,
of its training and of what torch makes of calls (autograd, compile, export, vmap). Ends with a table of what was run,
as docs/start.md has it. Exits with 1 where one fails.
uv installs, since most of a torch is the same for every Python and it unpacks that once.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from arm64 import SMALL_TESTS, TEST_TOOLS
from build_wheel import ROOT, TORCHES

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
CACHE = ROOT / "build" / "uv"
TESTS = [
    *SMALL_TESTS,
    "tests/ops/test_target_attention_torch.py",
    "tests/ops/test_transforms.py",
    "tests/ops/test_vmap_and_flops.py",
    "tests/nn/test_stack.py",
    "tests/nn/test_training.py",
]


def interpreter(version: str) -> str | None:
    """A Python of that version on the path, or among pyenv's."""
    on_path = shutil.which(f"python{version}")
    candidates = [on_path] if on_path else []
    candidates += map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    works = (each for each in candidates if subprocess.run([each, "-c", ""], capture_output=True).returncode == 0)
    return next(works, None)


def readme_example() -> str:
    """The first lines of code that a user reads."""
    found = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None, "README.md has no example"
    return found[1]


def outcome(python: str, torch: str, wheel: Path) -> str:
    """ "ok" or what went wrong, of one environment, which is gone afterwards."""
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        inside = f"{folder}/venv/bin/python"
        shutil.copytree(ROOT / "tests", f"{folder}/tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", inside]
        for what, command in (
            ("venv", [python, "-m", "venv", "--without-pip", f"{folder}/venv"]),
            ("torch", [*install, "--only-binary=:all:", f"torch=={torch}", "numpy"]),
            ("test tools", [*install, "pytest-xdist", *TEST_TOOLS]),
            ("install", [*install, str(wheel)]),
            ("example", [inside, "-c", readme_example()]),
            ("check", [inside, "-m", "stca.check"]),
            ("tests", [inside, "-m", "pytest", "-n", "2", *TESTS]),
        ):
            env = {**os.environ, "UV_CACHE_DIR": str(CACHE), "UV_LINK_MODE": "hardlink", "OMP_WAIT_POLICY": "passive"}
            env.pop("PYTHONPATH", None)
            done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
            if done.returncode != 0:
                absent = what == "torch" and "No solution found" in done.stderr
                return "no such torch" if absent else f"FAILED: {what}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return "ok"


def table(found: dict[tuple[str, str], str]) -> str:
    """Outcomes by Python and torch, as Markdown."""
    pythons, torches = (list(dict.fromkeys(names)) for names in zip(*found, strict=True))
    rows = [["torch", *(f"Python {version}" for version in pythons)], ["---"] * (len(pythons) + 1)]
    rows += [[torch, *(found.get((version, torch), "not run") for version in pythons)] for torch in torches]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Reads the command line, and prints a line for each pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("torches", nargs="*", default=TORCHES)
    parser.add_argument("--pair", type=int, choices=(0, -1), help="one alone: 0 is the first, -1 the last")
    args = parser.parse_args()
    wheels = list(ROOT.glob("dist/stca-*.whl"))
    if len(wheels) != 1:
        sys.exit(f"matrix.py: dist must hold one wheel (`make wheel`), got {len(wheels)}")
    pythons = [(version, found) for version in PYTHONS if (found := interpreter(version)) is not None]
    pairs = [(python, torch) for torch in args.torches for python in pythons]
    if not pairs:
        sys.exit(f"matrix.py: none of Python {', '.join(PYTHONS)} is here")
    outcomes: dict[tuple[str, str], str] = {}
    unpacked = None
    for (version, python), torch in pairs if args.pair is None else [pairs[args.pair]]:
        if torch != unpacked:
            shutil.rmtree(CACHE, ignore_errors=True)
            unpacked = torch
        began = time.monotonic()
        told = outcome(python, torch, wheels[0])
        outcomes[version, torch] = told.splitlines()[0]
        print(f"Python {version}, torch {torch}: {told} ({time.monotonic() - began:.0f} s)", flush=True)
    shutil.rmtree(CACHE, ignore_errors=True)
    print(f"{wheels[0].name} ({wheels[0].stat().st_size / 2**20:.1f} MB)\n{table(outcomes)}")
    sys.exit("ok" not in outcomes.values() or any(told.startswith("FAILED") for told in outcomes.values()))


if __name__ == "__main__":
    main()
