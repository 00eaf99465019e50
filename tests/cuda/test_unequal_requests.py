"""Requests of many query rows among requests of few: a GPU's many blocks share out their work in other places."""

import random

import pytest
import torch
from accuracy import assert_all_as_accurate
from cases import TargetAttentionCase
from cuda_devices import DEVICES, HOPPERS, target_attention_on
from plain import target_attention_references

MULTIPROCESSORS = {"emulator": 108, "hopper": 132}  # an A100's, an H100's


def _case(seed: int) -> TargetAttentionCase:
    """Some requests, one of many targets; widths that Hopper's kernels take too."""
    rng = random.Random(seed)
    requests = [(1, rng.randrange(100)) for _ in range(rng.randrange(1, 24))]
    requests.insert(rng.randrange(len(requests) + 1), (rng.randrange(8, 17), rng.randrange(20, 250)))
    if seed % 2:
        return TargetAttentionCase(f"given-{seed}", requests, 2, 2, 64, 64)
    return TargetAttentionCase(f"shared-{seed}", requests, rng.choice((8, 32)), 1, 136)


@pytest.mark.parametrize("device", [*DEVICES, *HOPPERS])
@pytest.mark.parametrize("case", [_case(seed) for seed in range(12)], ids=str)
def test_all_are_added_up(case: TargetAttentionCase, device: str) -> None:
    inputs = case.build(torch.bfloat16)
    actual = target_attention_on(device, inputs, multiprocessors=MULTIPROCESSORS.get(device))
    assert_all_as_accurate(actual, target_attention_references(inputs))
