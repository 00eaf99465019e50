"""What a long run has found so far, in a file that outlives a process that a kernel hangs or kills."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 60.0  # seconds without news after which a process hangs
DYING = 60.0  # seconds in which a killed process must end; one that waits inside of the driver may never do


class Progress:
    """Results, faults, and what is being tried, which is at fault where the process ends or hangs meanwhile."""

    def __init__(self, file: Path, result: dict[str, Any] | None = None) -> None:
        """Begins with `result`, or goes on with what the file holds."""
        self._file = file
        self.result: dict[str, Any] = json.loads(file.read_text()) if result is None else result
        self.result.setdefault("faults", [])
        self.write()

    def write(self) -> None:
        """Puts the file in place, whole."""
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(self.result, indent=1) + "\n")
        os.replace(part, self._file)

    def trying(self, what: str) -> bool:
        """Says what comes next; False, and it must not be tried, where it was at fault before."""
        if any(fault.startswith(f"{what}: ") for fault in self.result["faults"]):
            return False
        self.result["now"] = what
        self.write()
        return True

    def begin(self) -> None:
        """Forgets what was tried last: a process that ends before it tries something is not to be taken for that."""
        self.result.pop("now", None)
        self.write()

    def fault(self, what: str, why: str) -> None:
        """Notes what is wrong with something."""
        self.result["faults"].append(f"{what}: {why}")
        self.write()


def _end_of(process: "subprocess.Popen[bytes]", file: Path, end: float, patience: float) -> str:
    """How a process ended, killed where it gives no news: "" if well. It still runs where killing does not help."""
    news, text = time.monotonic(), ""
    while process.poll() is None:
        time.sleep(0.05)
        now, written = time.monotonic(), file.read_text()
        if written != text:
            news, text = now, written
        if now > end or now - news > patience:
            how = "out of time" if now > end else f"no news in {patience:.0f} s"
            process.kill()
            try:
                process.wait(DYING)
            except subprocess.TimeoutExpired:
                how += f", and has not ended {DYING:.0f} s after it was killed"
            return how
    return f"exit code {process.returncode}" if process.returncode else ""


def supervise(command: Callable[[float], list[str]], file: Path, seconds: float, patience: float = PATIENCE) -> None:
    """Runs a command until it ends well or time is over, again without what it hung or died at.

    Each process but the last adds a fault. One that ends before it tries anything ends the program, since the next
    would do the same; one that cannot be killed is the last, since it holds the device.

    Args:
        command: What to run where so many seconds are left; it goes on with `Progress(file)`.
        file: Of a Progress.
        seconds: How long all of it may take.
        patience: Seconds without news after which the process is killed.
    """
    end = time.monotonic() + seconds
    while True:
        Progress(file).begin()
        process = subprocess.Popen(command(end - time.monotonic()))
        try:
            how = _end_of(process, file, end, patience)
        finally:
            if process.poll() is None:  # this program was ended: the device is for others
                process.kill()
        progress = Progress(file)
        at, over = progress.result.get("now"), time.monotonic() > end
        if not how or (at is None and over):
            return
        if at is None:
            sys.exit(f"{' '.join(command(0))}: {how}, before anything was tried")
        if progress.trying(at):  # else it has noted the fault itself
            progress.fault(at, how)
        if over or process.poll() is None:
            return
