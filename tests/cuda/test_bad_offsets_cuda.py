"""Whatever offsets on a GPU are, kernels touch no memory but the tensors': the emulator would see it."""

from typing import Any

import pytest
import torch
from cases import TargetAttentionCase
from emulated import emulated_device, emulated_target_attention
from torch import Tensor

CASE = TargetAttentionCase("", [(3, 40), (2, 25), (4, 70)], 4, 2, 24, 16)
BAD = {
    "beyond the end": ([0, 4, 7, 900], [0, 40, 65, 10**12]),
    "short of the end": ([0, 2, 3, 4], [0, 10, 20, 30]),
    "negative": ([-5, 3, 5, 9], [-1000, -7, 65, 135]),
    "decreasing": ([0, 9, 2, 9], [0, 135, 3, 135]),
}


@pytest.mark.parametrize("offsets", BAD)
@pytest.mark.parametrize("shared", [False, True])
def test_target_attention(offsets: str, shared: bool) -> None:
    targets, history = (torch.tensor(each) for each in BAD[offsets])
    inputs = CASE.build().but(target_offsets=targets, history_offsets=history)
    inputs = inputs.but(v=None, dout=torch.randn(9, 4, 24)) if shared else inputs
    if offsets == "decreasing":  # two requests claim the same history rows, and both write their gradients
        with pytest.raises(RuntimeError, match="touches too, with no order between the two"):
            emulated_target_attention(inputs)
    else:
        assert emulated_target_attention(inputs)["out"].shape == inputs.dout.shape


@pytest.mark.parametrize("offsets", BAD)
@pytest.mark.parametrize("rows", [9, 1000])
def test_request_reduce(offsets: str, rows: int) -> None:
    at: Any = [2 * each if abs(each) > 100 else each for each in BAD[offsets][1]]
    with emulated_device() as ops:
        sums: Tensor = ops.request_reduce(torch.ones(rows, 5), torch.tensor(at), False)
        begins, ends = (torch.tensor(each).clamp(0, rows) for each in (at[:-1], at[1:]))
        assert torch.equal(sums[:, 0], (ends - begins).clamp(min=0).float())


def test_jagged_select_reads_what_is_not_there() -> None:
    """Its offsets are trusted; STCA_DEBUG=1 checks them."""
    wrong = "copy_rows_kernel.*InSuffix.*: block 0, thread .*: 16 bytes 0 bytes behind 80 bytes"
    with emulated_device() as ops, pytest.raises(RuntimeError, match=wrong):
        ops.jagged_select(torch.ones(5, 4), torch.tensor([0, 100]), torch.tensor([0]), None, 100)
