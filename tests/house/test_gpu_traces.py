"""How tests on a GPU know Hopper's kernels, by torch's profiler; a stand-in takes its place, no GPU is here."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cuda_devices import hopper_kernels
from torch.profiler import ProfilerActivity, profile

CUDA = ProfilerActivity.CUDA
OWN = "void stca::target_attention_sm90_kernel<0>(stca::Params)"


def _trace(monkeypatch: pytest.MonkeyPatch, supported: set[Any], seen: list[tuple[str, str]]) -> None:
    events = [SimpleNamespace(name=name, device_type=SimpleNamespace(name=kind)) for kind, name in seen]

    class Profile:
        def __init__(self, activities: list[ProfilerActivity]) -> None:
            assert activities == [CUDA]

        def __enter__(self) -> Any:
            return SimpleNamespace(events=lambda: events)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(torch.profiler, "supported_activities", lambda: supported)
    monkeypatch.setattr(torch.profiler, "profile", Profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


def test_hoppers_kernels_are_those_that_ran_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    seen = [("CPU", OWN), ("CUDA", OWN), ("CUDA", "void stca::target_attention_fwd_kernel<0>(stca::sm90::Params)")]
    _trace(monkeypatch, {CUDA}, seen)
    assert hopper_kernels("hopper-gpu", lambda: calls.append(1)) == [OWN]
    assert calls == [1]
    _trace(monkeypatch, {CUDA}, seen[2:])
    assert hopper_kernels("hopper-gpu", lambda: None) == []


@pytest.mark.parametrize(
    ("supported", "seen", "word"),
    [
        ({CUDA}, [], "saw nothing run on the GPU: nothing shows which kernels ran"),
        ({CUDA}, [("CPU", "cudaLaunchKernel")], "saw nothing run on the GPU: nothing shows which kernels ran"),
        (set(), [("CUDA", OWN)], "this torch cannot trace a GPU: nothing shows which kernels ran"),
    ],
)
def test_a_test_fails_where_there_is_no_trace(
    supported: set[Any], seen: list[tuple[str, str]], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _trace(monkeypatch, supported, seen)
    with pytest.raises(pytest.fail.Exception, match=word):
        hopper_kernels("hopper-gpu", lambda: None)


def test_a_trace_of_torchs_has_what_is_asked_of_it() -> None:
    """Of the CPU, since its events are the same class."""
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        torch.ones(3).add(1)
    assert ("aten::add", "CPU") in [(event.name, event.device_type.name) for event in trace.events()]
