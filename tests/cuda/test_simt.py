"""The emulator that runs the CUDA kernels on the CPU reports what a GPU would leave undefined."""

import pytest
import torch
from emulated import emulated_fault

FAULTS = {
    "no_barrier": "of shared memory with no barrier since thread",
    "no_warp_barrier": "of shared memory with no barrier since thread",
    "overwritten_too_early": "of shared memory with no barrier since thread",
    "barrier_for_some": "32 of 64 threads have ended, and the others wait for ever: thread 0 at __syncthreads",
    "shuffle_for_some": "wait for ever: thread 0 at shfl.xor",
    "warp_at_two_instructions": "while its warp is at",
    "read_past_the_end": "block 0, thread 63: reads 4 bytes outside of every tensor",
    "write_before_the_begin": "block 0, thread 0: writes 4 bytes outside of every tensor",
    "write_past_shared_memory": "block 0, thread 63: writes 4 bytes outside of every tensor and of its 1024 bytes",
    "copy_past_the_end": "block 0, thread 63: reads 16 bytes outside of every tensor",
    "copy_of_odd_address": "cp.async of an address that is no multiple of 16",
    "copy_without_wait": "ends with copies that it did not wait for",
    "copy_by_another_thread": "of shared memory with no barrier since thread",
    "matrix_of_odd_address": "ldmatrix of a row that is not aligned to 16 bytes",
}


def test_a_kernel_without_a_fault() -> None:
    message, memory = emulated_fault("none")
    assert message == ""
    assert torch.equal(memory, torch.arange(255.0, -1.0, -1.0))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_reported_with_its_place(name: str) -> None:
    message, _ = emulated_fault(name)
    assert message.startswith(f"{name}: block 0")
    assert FAULTS[name] in message


def test_a_copy_lands_at_its_wait() -> None:
    """What is read before is what shared memory starts as, NaN."""
    message, memory = emulated_fault("copy_used_before_its_wait")
    assert message == ""
    assert memory.view(64, 4)[:, 0].isnan().all()
