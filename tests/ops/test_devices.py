"""Tensors on several devices: every operator refuses them, whichever tensor is elsewhere."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from cases import offsets
from registered import REGISTERED, assert_has_each
from torch import Tensor

TARGETS, HISTORY = offsets([2, 1]), offsets([3, 1])
INDEX, KEEP = torch.tensor([1, 0]), torch.tensor([2, 9])
Q, K, V = torch.ones(3, 2, 4), torch.ones(4, 1, 4), torch.ones(4, 1, 5)
VISIBLE, ROWS = torch.zeros(3, 2, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
ATTENTION = Q, K, V, TARGETS, HISTORY, VISIBLE, ROWS
FFN = torch.ones(3, 4), torch.ones(4, 6), torch.ones(4, 6), torch.ones(6, 4), torch.ones(4), torch.ones(4)
CALLS: dict[str, tuple[Any, ...]] = {
    "target_attention": (*ATTENTION, None),
    "target_attention_backward": (
        *(torch.ones(3, 2, 5), torch.ones(3, 2)),
        *ATTENTION,
        *(torch.ones(3, 2, 5), torch.ones(3, 2, 2), None),
    ),
    "swiglu_ffn_norm": (*FFN, 1e-5),
    "swiglu_ffn_norm_backward": (torch.ones(3, 4), *FFN, torch.ones(3), torch.ones(3), torch.ones(3, 4)),
    "request_gather": ([torch.ones(2, 3), torch.ones(2)], TARGETS, 3),
    "request_reduce": (torch.ones(3, 2), TARGETS, True),
    "request_reduce_backward": (torch.ones(2, 2), TARGETS, True, 3),
    "jagged_select": (torch.ones(4, 2), HISTORY, INDEX, KEEP, 4),
    "jagged_select_backward": (torch.ones(4, 2), HISTORY, INDEX, KEEP, 4),
}


def _with_one_elsewhere(arguments: Sequence[Any]) -> list[list[Any]]:
    """The arguments once for each tensor, with that one on "meta"."""
    calls = []
    for i, each in enumerate(arguments):
        moved: list[Any] = _with_one_elsewhere(each) if isinstance(each, list) else []
        if isinstance(each, Tensor):
            moved = [each.to("meta")]
        calls += [[*arguments[:i], other, *arguments[i + 1 :]] for other in moved]
    return calls


@pytest.mark.parametrize("op", CALLS)
def test_one_tensor_elsewhere(op: str) -> None:
    """Such a call goes to the fake kernel, which must not hand out CPU memory that nobody wrote."""
    function = getattr(torch.ops.stca, op)
    function(*CALLS[op])
    calls = _with_one_elsewhere(CALLS[op])
    assert len(calls) >= 2
    for arguments in calls:
        with pytest.raises(ValueError, match=f"^{op.removesuffix('_backward')}: .* must be on the device of "):
            function(*arguments)


def test_every_operator_is_called() -> None:
    assert_has_each(CALLS, REGISTERED, "tests/ops/test_devices.py: CALLS")
