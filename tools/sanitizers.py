"""Sanitizers that tools/sanitize.py runs: how each is asked for, what must be reported, and whose reports are ours."""

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

BUILD = Path(__file__).parents[1] / "build" / "sanitize"

# The first line of a report, whoever made it.
START = re.compile(
    r"^(?:==\d+== ?)?(?:ERROR: AddressSanitizer: (?!detected memory leaks)|\S+: runtime error: |Direct leak of "
    r"|WARNING: ThreadSanitizer: |Conditional jump or move depends|Use of uninitialised|Syscall param"
    r"|Invalid (?:read|write|free)).*$",
    re.MULTILINE,
)
# A report is ours where a frame of the operators occurs in it: of the access, or of who allocated what is accessed.
OURS = re.compile(r"libstca_ops|\bstca::|/csrc/")


@dataclass(frozen=True)
class Sanitizer:
    """One way to look at the operators: how they are built, how they are run, and what must be reported."""

    name: str
    flags: str
    library: str  # which GCC's runtime comes first in a process
    options: dict[str, str]
    planted: dict[str, str]  # the name of a fault of faults.cmake: what its report says
    command: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where it is built, and where it runs."""
        return BUILD / self.name


# What no memory holds is refused as it is without a sanitizer, which would end the process, with status 0.
_FOLLOWED = "exitcode=0:halt_on_error=0:print_stacktrace=1:handle_abort=0:allocator_may_return_null=1"
SANITIZERS = (
    Sanitizer(
        "address",
        "address,undefined",
        "libasan.so",
        {
            "ASAN_OPTIONS": f"{_FOLLOWED}:symbolize=0:detect_odr_violation=0",
            "UBSAN_OPTIONS": _FOLLOWED,
            # Python and torch leave thousands of blocks behind: to name the functions of their stacks takes minutes.
            "LSAN_OPTIONS": "exitcode=0",
        },
        {
            "read_out_of_bounds": "heap-buffer-overflow",
            "write_out_of_bounds": "heap-buffer-overflow",
            "overflow": "signed integer overflow",
            "leak": "Direct leak",
        },
    ),
    Sanitizer(
        "thread",
        "thread",
        "libtsan.so",
        {"TSAN_OPTIONS": f"{_FOLLOWED}:ignore_noninstrumented_modules=1:die_after_fork=0:report_signal_unsafe=0"},
        {"race": "data race", "shared_sums": "data race"},
        ("setarch", "-R"),  # the runtime wants its part of the address space, which random addresses may take
    ),
    Sanitizer(
        "memcheck",
        "",
        "",
        {"PYTHONMALLOC": "malloc"},
        {"read_of_nothing": "uninitialised", "read_past_the_end": "Invalid read"},
        ("valgrind", "--track-origins=yes", "--leak-check=no", "--error-limit=no", "--num-callers=30", "-q"),
    ),
)


def reports(text: str) -> list[str]:
    """The reports in what a sanitizer wrote, each from its first line to the next one's."""
    starts = [match.start() for match in START.finditer(text)]
    return [text[begin:end] for begin, end in pairwise([*starts, len(text)])]


def judged(written: str) -> tuple[list[str], int]:
    """The reports in which the operators have a part, and the number of others."""
    every = reports(written)
    ours = [report for report in every if OURS.search(report)]
    return ours, len(every) - len(ours)
