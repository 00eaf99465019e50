"""Builds the wheel twice from this commit and compares the files byte by byte: `make wheel-twice`.

The two clones differ in folder and umask. Exits with 1 where the wheels differ, and names what does; where they are
equal, dist holds one. A compiler cache would make them equal whatever the compiler does, so ccache is told to stand
aside.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from build_wheel import ROOT


def differences(one: Path, other: Path) -> list[str]:
    """What two wheels do not share: nothing if they are equal, byte by byte."""
    if one.read_bytes() == other.read_bytes():
        return []
    with zipfile.ZipFile(one) as a, zipfile.ZipFile(other) as b:
        entries, others = ({entry.filename: entry for entry in wheel.infolist()} for wheel in (a, b))
        found = [f"{name}: in one of them" for name in sorted(entries.keys() ^ others.keys())]
        for name in sorted(entries.keys() & others.keys()):
            x, y = a.read(name), b.read(name)
            if x != y:
                bytes_off = sum(left != right for left, right in zip(x, y, strict=False)) + abs(len(x) - len(y))
                found.append(f"{name}: {bytes_off} of {max(len(x), len(y))} bytes")
            elif (entries[name].date_time, entries[name].external_attr) != (
                others[name].date_time,
                others[name].external_attr,
            ):
                found.append(f"{name}: its time or its mode")
    return found or ["the order or the compression of their entries"]


def built_in(folder: Path, commit: str, options: list[str], umask: int) -> Path:
    """The wheel of a clone of a commit, checked out under a umask; torch is fetched once for all."""
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", str(ROOT), str(folder)], check=True)
    subprocess.run(["git", "checkout", "--quiet", commit], cwd=folder, check=True, umask=umask)
    (folder / "build").mkdir()
    (folder / "build" / "torch").symlink_to(ROOT / "build" / "torch")
    subprocess.run([sys.executable, folder / "tools" / "build_wheel.py", *options], check=True)
    return next(folder.glob("dist/*.whl"))


def main() -> None:
    """Builds, compares."""
    os.environ["CCACHE_DISABLE"] = "1"
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip()
    (ROOT / "build" / "torch").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        one = built_in(Path(folder, "one"), commit, sys.argv[1:], 0o022)
        other = built_in(Path(folder, "a-folder-with-a-longer-name"), commit, sys.argv[1:], 0o077)
        found = differences(one, other)
        print(f"{one.name}, built twice: {'; '.join(found) or f'equal, {one.stat().st_size} bytes'}")
        if not found:
            shutil.rmtree(ROOT / "dist", ignore_errors=True)
            (ROOT / "dist").mkdir()
            shutil.copy(one, ROOT / "dist")
    sys.exit(len(found) > 0)


if __name__ == "__main__":
    main()
