"""Every variant of Hopper's kernels that tools/gpu_tune.py chooses among, in the machine of tests/ptx."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gpu_tune
import pytest
import torch
from accuracy import assert_all_as_accurate, assert_bitwise_equal
from cases import TargetAttentionCase, swiglu_inputs
from cuda_devices import swiglu_on
from emulated import emulated_device, emulated_target_attention, launched_kernels, tuned_kernels
from gpu_clock import Clock
from plain import swiglu_references, target_attention_references
from progress import Progress
from trials import trials_of

HEADER = Path(__file__).parents[2] / "csrc" / "kernels" / "cuda" / "choice.h"
CHOICES = {name: int(count) for name, count in re.findall(r"X\((\w+), (\d)\)", HEADER.read_text())}
VARIANTS = [(name, variant) for name, count in CHOICES.items() for variant in range(count)]
ATTENTION = [(name, variant) for name, variant in VARIANTS if not name.startswith("ffn")]
FFN = [(name, variant) for name, variant in VARIANTS if name.startswith("ffn")] + [("ffn_swath", n) for n in (2, 3)]
# Requests end within tiles, one has no history and one more targets than a block has rows.
RAGGED = [(3, 130), (2, 0), (75, 70)]


def _case(name: str) -> TargetAttentionCase:
    kind, width, _ = name.split("_")
    if kind == "projected":
        return TargetAttentionCase(name, RAGGED, 2, 1, int(width), int(width) - 8, "random")
    heads = 8 if name.endswith("backward") else 2  # so that dS is kept of some requests and not of others
    return TargetAttentionCase(name, RAGGED, heads, 1, int(width) - 88, None, "random")


@pytest.mark.parametrize(("name", "variant"), ATTENTION)
def test_attention(name: str, variant: int) -> None:
    """Of a projected call a block has two warpgroups of query rows, and one in the second run, in another order."""
    inputs = _case(name).build(torch.bfloat16)
    kernels = tuned_kernels()
    for seed, one_group in ((1, 0), (2, 1000))[: 2 if name.startswith("projected") else 1]:
        with kernels.chosen(**gpu_tune.FORCED, projected_one_group=one_group, **{name: variant}):
            actual = emulated_target_attention(inputs, seed, hopper=True)
        own = sum("sm90" in each for each in launched_kernels())
        assert own == (3 if name.startswith("projected") or name.endswith("backward") else 2)
        assert_all_as_accurate(actual, target_attention_references(inputs))


@pytest.mark.parametrize(("name", "variant"), FFN)
def test_feed_forward(name: str, variant: int) -> None:
    inputs, dy = swiglu_inputs(300, 72, 264, 2, torch.bfloat16), torch.randn(300, 72).bfloat16()
    expected = swiglu_on("hopper", inputs, dy)
    kernels = tuned_kernels()
    with kernels.chosen(**{name: variant}):
        actual = swiglu_on("hopper", inputs, dy, seed=2)
        assert sum("ffn_product_sm90" in each for each in launched_kernels()) == 6
    assert_all_as_accurate(actual, swiglu_references(inputs, dy))
    assert_bitwise_equal(actual, expected)  # the same sums in the same order


def _marked(name: str) -> Any:
    """Wide attention takes the machine of PTX half a minute."""
    long = name.startswith("attention") and not name.endswith("256_forward")
    return pytest.param(name, marks=[pytest.mark.slow, *([pytest.mark.long] if long else [])])


@pytest.mark.parametrize("name", [_marked(name) for name, count in CHOICES.items() if count > 0])
def test_trials(name: str, tmp_path: Path) -> None:
    """The calls that variants are timed by: right as they are, and told where they are not."""
    with emulated_device(hopper=True):
        kernels = tuned_kernels()
        trials = trials_of(kernels, name, "cpu")
        progress, clock = Progress(tmp_path / "a.json", {}), Clock("cpu")
        assert gpu_tune.right_variants(kernels, name, trials, clock, progress) == [*range(CHOICES[name])]
        trials[-1].expected[-1].mul_(1.1)
        assert gpu_tune.right_variants(kernels, name, trials, clock, progress) == []
        assert len(progress.result["faults"]) == CHOICES[name]
        assert all("off by" in fault for fault in progress.result["faults"])
        del trials


class _OneCall(Clock):
    """Runs a call once, and takes each for as fast as any."""

    def ms(self, call: Callable[[], object], times: int) -> float:
        call()
        return 1.0

    def medians(self, calls: Mapping[str, Callable[[], object]], rounds: int = 1) -> dict[str, float]:
        return {name: self.ms(call, 1) for name, call in calls.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["few_rows", "ffn_least_tiles", pytest.param("projected_one_group", marks=pytest.mark.long)]
)
def test_a_rehearsal_of_tuning(name: str, tmp_path: Path) -> None:
    """Calls that rule both passes run both, on both sides of each size of a threshold; equal times change nothing."""
    with emulated_device(hopper=True):
        kernels = tuned_kernels()
        before = {each: value for each, (value, _) in kernels.choices().items()}
        progress = Progress(
            tmp_path / "a.json",
            {"choices": before, "ms": {each: {} for each in before if each != name}, "out of time": []},
        )
        gpu_tune.tune(kernels, _OneCall("cpu"), "cpu", 1000, progress)
        assert progress.result["faults"] == []
        assert [int(each) for each in progress.result["ms"][name]] == [
            *gpu_tune.NUMBERS.get(name, gpu_tune.SIZES.get(name, ()))
        ]
        assert progress.result["choices"] == before
    if name in ("few_rows", "projected_one_group"):
        assert {"fwd", "bwd"} <= {part for each in launched_kernels() for part in ("fwd", "bwd", "dkv") if part in each}


def test_choices_that_there_are_not() -> None:
    kernels = tuned_kernels()
    before = kernels.choices()
    assert {name: count for name, (_, count) in before.items()} == CHOICES
    for wrong in ({"ffn_down": 2}, {"few_rows": -1}, {"no_such": 0}):
        with pytest.raises(ValueError, match=f"choose: {next(iter(wrong))} must be"):
            kernels.choose(**wrong)
    assert kernels.choices() == before
