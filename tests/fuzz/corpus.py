"""The inputs that are kept: corpus/READER.zip, each by a name that says what it is."""

import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType, FrameType
from typing import Any

from readers import Reader
from readers.names import packed

CORPUS = Path(__file__).parent / "corpus"
WATCHED = (
    "/stca/data/",
    "/stca/serving/",
    "/stca/token_budget.py",
    "/examples/serve/",
    "/examples/ranker/checkpoint.py",
)
Lines = set[tuple[str, int]]


def kept(name: str) -> dict[str, bytes]:
    """The inputs of a reader."""
    with zipfile.ZipFile(CORPUS / f"{name}.zip") as archive:
        return {each: archive.read(each) for each in archive.namelist()}


def lines_of(reader: Reader, data: bytes, folder: Path) -> Lines:
    """Lines of what reads that an input reaches."""
    lines: Lines = set()

    def local(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            lines.add((frame.f_code.co_filename, frame.f_lineno))
        return local

    def calls(frame: FrameType, *_: Any) -> Any:
        return local if any(each in frame.f_code.co_filename for each in WATCHED) else None

    sys.settrace(calls)
    try:
        reader.check(data, folder)
    finally:
        sys.settrace(None)
    return lines


def chosen(reader: Reader, inputs: Iterable[bytes], most: int) -> dict[str, bytes]:
    """Of the inputs those that reach a line that no smaller one does, at most so many."""
    reached: Lines = set()
    found: dict[str, bytes] = {}
    with TemporaryDirectory() as folder:
        for data in sorted(inputs, key=len):
            lines = lines_of(reader, data, Path(folder)) if len(data) < 1 << 14 else reached
            if lines - reached and len(found) < most:
                found[f"reached-{len(found):02}"] = data
                reached |= lines
    return found


def keep(reader: Reader, evolved: Iterable[bytes], most: int = 30) -> None:
    """Writes the corpus anew: seeds, what was found once, and what reaches more."""
    path = CORPUS / f"{reader.name}.zip"
    found = (
        {name: data for name, data in kept(reader.name).items() if name.startswith("found-")} if path.exists() else {}
    )
    small = {f"seed-{name}": data for name, data in reader.seeds().items() if len(data) < 1 << 14}
    CORPUS.mkdir(exist_ok=True)
    path.write_bytes(packed(small | found | chosen(reader, evolved, most)))


def executable_lines(path: Path) -> set[int]:
    """Lines of a file's functions that can be reached."""
    lines: set[int] = set()

    def add(code: CodeType) -> None:
        for each in code.co_consts:
            if isinstance(each, CodeType):
                lines.update(line for _, _, line in each.co_lines() if line and line != each.co_firstlineno)
                add(each)

    add(compile(path.read_text(), str(path), "exec"))
    return lines
