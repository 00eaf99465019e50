"""A small ranker's checkpoint, and the service in a process of its own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

import httpx
import torch
from ranker.model import Ranker
from serve.store import SQLiteStore

EXAMPLES = Path(__file__).parents[2] / "examples"
ITEMS, USERS = 50, 20


def write_checkpoint(path: Path) -> Path:
    """What training would leave, untrained."""
    torch.manual_seed(3)
    model = Ranker(ITEMS, USERS, dim=16, num_layers=2, num_heads=2)
    state = {"best_model": None}
    saved = {"model": model.state_dict(), "state": state, "time_parts": torch.arange(1, 64) * 1000}
    torch.save(saved | {"settings": {"event_time": True}}, path)
    return path


class ScratchStore(SQLiteStore):
    """Of events that nobody has to find again, whatever checkpoint they are for."""

    def __init__(self) -> None:
        super().__init__(Path(mkdtemp(prefix="stca-fuzz-"), "events"))
        self._writer.execute("PRAGMA synchronous = OFF")

    def claim(self, label: str) -> str:
        return label


def free_port() -> int:
    """A port of the loopback that nobody has."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def running(*arguments: object) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    """The service, with a client, until the block ends."""
    port = free_port()
    command = [sys.executable, "-m", "serve", "--port", port, *arguments]
    paths = os.pathsep.join(filter(None, (str(EXAMPLES), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen([str(x) for x in command], env=os.environ | {"PYTHONPATH": paths})
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            until_answered(client, process)
            yield client, process
    finally:
        process.kill()
        process.wait()


def until_answered(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    """Waits until the service has begun."""
    end = time.monotonic() + 120
    while True:
        assert process.poll() is None, f"the service ended with {process.returncode}"
        try:
            client.get("/health")
        except httpx.TransportError:
            assert time.monotonic() < end, "the service did not begin"
            time.sleep(0.1)
        else:
            return
