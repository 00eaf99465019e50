"""Which families of Hopper's kernels a run on a GPU speaks for: every case of them ran, was right and was timed.

A family's tests are those named here, with all their parameters; its timings are what benchmarks/gpu_sm90.py lists. A
case that did not run, were it for want of time alone, leaves its family unconfirmed.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple
from xml.etree import ElementTree

from tuning import GAIN

BEHIND = 1.02  # how much longer a case may take than by the common kernels, which is what the clock may err by


class Family(NamedTuple):
    """The operator of benchmarks/gpu.py whose cases the kernels take, and tests that run on a Hopper GPU, by file."""

    op: str
    tests: dict[str, Sequence[str]]


_RUN = "test_hoppers_kernels_run"  # by their names, without which the common kernels could be timed against themselves
_ATTENTION = (
    _RUN,
    "test_forward_and_backward",
    "test_long_histories",
    "test_the_same_bits_on_every_run",
    "test_other_requests_do_not_matter",
    "test_large_scores",
)
_UNEQUAL = {"test_unequal_requests.py": ("test_all_are_added_up",)}  # of both families
FAMILIES = {
    "target_attention": Family(
        "target_attention reordered",
        {
            "test_target_attention_sm90.py": (
                *_ATTENTION,
                "test_as_many_query_rows_as_ds_is_kept_of",
                "test_rows_that_nobody_sees_do_not_matter",
            ),
            "test_history_index_sm90.py": (
                "test_the_same_as_rows_in_order",
                "test_rows_that_no_index_names_do_not_matter",
                _RUN,
            ),
            **_UNEQUAL,
        },
    ),
    "target_attention_projected": Family(
        "target_attention projected", {"test_target_attention_projected_sm90.py": _ATTENTION, **_UNEQUAL}
    ),
    "swiglu_ffn_norm": Family("swiglu_ffn_norm", {"test_swiglu_ffn_norm_sm90.py": ("test_many_rows", _RUN)}),
}


def test_fault(family: Family, report: Path) -> str:
    """What is missing or wrong in the JUnit report of a family's tests; nothing, where all of them passed."""
    try:
        ran = list(ElementTree.parse(report).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return "its tests did not end"
    passed = set()
    for case in ran:
        file, name = case.attrib["classname"].rpartition(".")[2] + ".py", case.attrib["name"]
        for what in ("failure", "error", "skipped"):
            if case.find(what) is not None:
                return f"{file}::{name}: {what}"
        passed.add((file, re.sub(r"\[.*", "", name)))
    missing = [
        f"{file}::{name}" for file, names in family.tests.items() for name in names if (file, name) not in passed
    ]
    return f"did not run: {', '.join(missing)}" if missing else ""


def time_fault(timings: Path) -> str:
    """Why the times of benchmarks/gpu_sm90.py do not speak for a family; nothing, where they do.

    No case is behind, and in all together they take less than GAIN of the common kernels' time: the mean of a kernel
    that is timed against itself is below 1 in one run of two.
    """
    try:
        rows: list[dict[str, Any]] = json.loads(timings.read_text())
    except OSError:
        return "its benchmarks did not begin"
    for row in rows:
        ratio = row["own_ms"] / row["common_ms"] if "own_ms" in row else None
        if ratio is None or ratio > BEHIND:
            case = ", ".join(row[name] for name in ("case", "dtype", "direction"))
            return f"{case}: {row.get('fault', 'did not run') if ratio is None else f'takes {ratio:.2f} times as long'}"
    return "" if rows and fmean(row["own_ms"] / row["common_ms"] for row in rows) < GAIN else "is not faster"
