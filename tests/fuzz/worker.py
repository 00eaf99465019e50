"""Fuzzes one reader in this process with atheris: started by fuzz.py, ended by libFuzzer.

python worker.py READER PLANTED ARGUMENTS-OF-LIBFUZZER
"""

import hashlib
import os
import resource
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from random import Random
from typing import Any

import atheris
import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / folder) for folder in ("tests/fuzz", "tests/helpers", "examples"))]
MEMORY = 4 << 30  # bytes of address space beyond those of the imported libraries


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    name, planted, *arguments = sys.argv[1:]
    from planted import plant
    from readers import reader

    torch.set_num_threads(1)
    prefix = next((each for each in arguments if each.startswith("-artifact_prefix=")), "=./")
    place = Path(prefix.partition("=")[2], "x")
    # What reads is watched, and so is what looks at its results: a branch of either is something new.
    with atheris.instrument_imports(
        include=["stca.data", "stca.serving", "stca.token_budget", "serve", "ranker", "readers"]
    ):
        it = reader(name)
    it.check(next(iter(it.seeds().values())), folder := Path(tempfile.mkdtemp(prefix="stca-fuzz-")))
    if planted != "none":
        plant(planted)
    warnings.simplefilter("ignore")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def one(data: bytes) -> None:
        try:
            it.check(data, folder)
        except BaseException:
            # libFuzzer would write the input only when Python has ended, and its own alarm may end that before.
            place.with_name(f"crash-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(77)

    def changed(data: bytes, most: int, seed: int) -> bytes:
        rng: Any = Random(seed)
        found = atheris.Mutate(data, most) if rng.random() < 0.2 else data
        for _ in range(rng.choice((1, 1, 2, 4))):
            found = it.mutate(found, rng)
        return found[:most]

    atheris.Setup([sys.argv[0], *arguments], one, custom_mutator=changed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
