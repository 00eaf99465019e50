"""The machine that runs the CUDA kernels' PTX on the CPU reports what a GPU would leave undefined."""

import re
from collections.abc import Callable

import pytest
import torch
from emulated import emulated_fault

UNORDERED = r"shared memory that (thread \d+ touches too, with no order between the two|nobody has written)"
IN_FLIGHT = r"shared memory that (an asynchronous copy may still write|nobody has written|thread \d+ touches too)"
ENDS = "ends(, and nobody has waited for what has come to its memory| before its copies have landed)"
FAULTS = {
    "no_barrier": UNORDERED,
    "no_warp_barrier": UNORDERED,
    "overwritten_too_early": UNORDERED,
    "barrier_for_some": "hangs: warp 0 waits for a barrier",
    "shuffle_for_some": "shfl.sync.bfly.b32: waits for threads of the warp that have ended",
    "warp_at_two_instructions": "not all threads of the warp come to this instruction, others wait at",
    "read_past_the_end": "thread 63: ld.global.f32: 4 bytes 0 bytes behind 1024 bytes",
    "write_before_the_begin": "thread 0: st.global.u32: 4 bytes 4 bytes before 1024 bytes",
    "write_past_shared_memory": "thread 63: st.shared.u32: byte 1024 of shared memory, of which there are 1024",
    "copy_past_the_end": "thread 63: cp.async.cg.shared.global: 2 bytes 0 bytes behind 1024 bytes",
    "copy_of_odd_address": "cp.async.cg.shared.global: misaligned address for 16 bytes",
    "copy_without_wait": "ends before its asynchronous copies have landed",
    "copy_used_before_its_wait": "shared memory that an asynchronous copy may still write",
    "copy_by_another_thread": UNORDERED,
    "copy_into_what_is_read": UNORDERED,
    "copy_of_a_late_group": "shared memory that an asynchronous copy may still write",
    "stage_read_too_early": UNORDERED,
    "stage_filled_too_early": UNORDERED,
    "block_reads_what_another_wrote": "global memory that thread 0 of block 0 touches too",
    "matrix_of_odd_address": "ldmatrix.sync.aligned.m8n8.x4.shared.b16: misaligned address of shared memory: 8",
    "product_without_fence": "has written, with no fence before the asynchronous proxy",
    "product_without_barrier": UNORDERED,
    "product_without_wait": "a register of a product that has not been waited for",
    "phase_that_never_ends": "hangs: .*waits for a phase of an mbarrier",
    "one_arrival_too_many": "more arrivals than the barrier's phase has",
    "sent_but_not_waited_for": IN_FLIGHT,
    "no_such_barrier": "no barrier was made here",
    "barrier_in_a_branch": "hangs: warp 0 waits for a barrier",
    "two_copies_to_one_place": "shared memory that an asynchronous copy may still write",
    "global_memory_without_barrier": "global memory that thread 31 touches too, with no order between the two",
    "vector_of_odd_address": "misaligned address for 16 bytes",
    "too_many_bytes_expected": "hangs: .*waits for a phase of an mbarrier",
    "block_leaves_its_cluster": "a barrier of a block that has ended",
    "bytes_that_nobody_waits_for": ENDS,
    "operand_past_the_end": "shared memory that nobody has written",
    "operand_overwritten_too_early": UNORDERED,
    "result_read_before_its_wait": "a register of a product that has not been waited for",
    "product_of_half_a_warpgroup": "ends, and not all four warps of a warpgroup have come to its products",
    "tile_read_too_early": IN_FLIGHT,
    "tile_of_another_phase": IN_FLIGHT,
    "tile_of_no_expected_bytes": IN_FLIGHT,
    "tile_into_what_is_read": UNORDERED,
    "tile_into_what_another_block_reads": r"shared memory that thread \d+ of block 1 touches too, with no order",
    "tile_over_ordinary_writes": "has written, with no fence before the asynchronous proxy",
    "tile_of_odd_address": "a swizzled tile that does not start at a multiple of 1024 bytes",
    "tile_that_nobody_waits_for": ENDS,
    "row_of_odd_address": "a swizzled tile that does not start at a multiple of 128 bytes",
    "row_that_nobody_waits_for": ENDS,
}
# What a block leaves behind has no line of the source.
OF_A_BLOCK = [name for name, message in FAULTS.items() if message is ENDS or "a warpgroup have" in message]


def test_a_kernel_without_a_fault() -> None:
    message, memory = emulated_fault("none")
    assert message == ""
    assert torch.equal(memory, torch.arange(255.0, -1.0, -1.0))


def test_a_kernel_of_hopper_without_a_fault() -> None:
    """A row of 64 ones times a column of 64 twos."""
    message, memory = emulated_fault("hopper_none")
    assert message == ""
    assert torch.equal(memory[:128], torch.full((128,), 128.0))


@pytest.mark.parametrize("name", ["stage_none", "tile_none", "row_none"])
def test_a_stage_and_a_tile_without_a_fault(name: str) -> None:
    assert emulated_fault(name)[0] == ""


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_reported_with_its_place(name: str, record_property: Callable[[str, object], None]) -> None:
    record_property("planted", 1)
    message, _ = emulated_fault(name)
    assert re.match(rf"{name}: block \d", message)
    assert re.search(FAULTS[name], message)
    assert name in OF_A_BLOCK or re.search(r"faults(_sm90)?.cu:\d+", message)
    record_property("caught", 1)
