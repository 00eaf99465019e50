"""What a GPU has no shared memory for is refused before a kernel runs, gradients when the forward pass is."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from cases import TargetAttentionCase
from emulated import emulated_device
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import stca

SMALL = 99 * 1024  # of a block on sm_86, sm_89 and sm_120
FITS = [(128, None, torch.bfloat16), (64, 64, torch.float16), (64, 32, torch.float32)]
GRADIENTS_DO_NOT_FIT = [(256, None, torch.bfloat16), (128, 128, torch.float32)]
DOES_NOT_FIT = [(512, None, torch.float16), (256, 256, torch.bfloat16), (1024, None, torch.float32)]


class _Told(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What the operator's argument `backward` was, call by call."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.told: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.stca.target_attention.default:
            self.told.append(args[8:] == (True,))  # a default is left out
        return func(*args, **(kwargs or {}))


def _arguments(key_dim: int, value_dim: int | None, dtype: torch.dtype) -> tuple[Any, ...]:
    return TargetAttentionCase("", [(2, 3)], key_dim=key_dim, value_dim=value_dim).build(dtype).arguments()


@pytest.mark.parametrize(("key_dim", "value_dim", "dtype"), FITS)
def test_a_small_gpu_does_what_fits(key_dim: int, value_dim: int | None, dtype: torch.dtype) -> None:
    with emulated_device(shared_bytes=SMALL) as ops:
        arguments = [x.clone() if isinstance(x, Tensor) else x for x in _arguments(key_dim, value_dim, dtype)]
        out, _, max_and_sum, _ = ops.target_attention(*arguments, True)
        *tensors, scale = arguments
        dq, _, _ = ops.target_attention_backward(out.clone(), None, *tensors, out, max_and_sum, scale)
        assert dq.isfinite().all()


@pytest.mark.parametrize(("key_dim", "value_dim", "dtype"), DOES_NOT_FIT)
@pytest.mark.parametrize("backward", [False, True])
def test_what_does_not_fit_is_refused(key_dim: int, value_dim: int | None, dtype: torch.dtype, backward: bool) -> None:
    taken = r"these take \d+, their gradients \d+" if backward else r"these take \d+"
    message = (
        f"target_attention: on CUDA must be given widths that fit the {SMALL} bytes of shared memory of a block on "
        rf"this GPU \({taken}\), got {str(dtype).removeprefix('torch.')} with Dk = {key_dim}, "
    )
    with emulated_device(shared_bytes=SMALL) as ops, pytest.raises(ValueError, match=message):
        ops.target_attention(*_arguments(key_dim, value_dim, dtype), backward)


@pytest.mark.parametrize(("key_dim", "value_dim", "dtype"), GRADIENTS_DO_NOT_FIT)
def test_gradients_that_do_not_fit_are_refused_with_the_forward_pass(
    key_dim: int, value_dim: int | None, dtype: torch.dtype
) -> None:
    message = r"\(these take \d+, their gradients \d+\), got"
    with emulated_device(shared_bytes=SMALL) as ops:
        *tensors, scale = (x.clone() if isinstance(x, Tensor) else x for x in _arguments(key_dim, value_dim, dtype))
        out, _, max_and_sum, _ = ops.target_attention(*tensors, scale, False)
        with pytest.raises(ValueError, match=message):
            ops.target_attention(*tensors, scale, True)
        with pytest.raises(ValueError, match=message):
            ops.target_attention_backward(out.clone(), None, *tensors, out, max_and_sum, scale)


# What a kernel may have is known for the life of a process, so this is one of its own.
_FULL_AT_FIRST = """
import torch
from cases import TargetAttentionCase
from emulated import emulated_device, in_new_memory, refuse

inputs = TargetAttentionCase("", [(9, 300)], key_dim=256, value_dim=None).build(torch.bfloat16)
with emulated_device() as ops:
    arguments = inputs.on(in_new_memory).arguments()
    refuse(100)
    try:
        ops.target_attention(*arguments, True)
    except RuntimeError as error:
        print(error)
    refuse(0)
    out = ops.target_attention(*arguments, True)[0].clone()
torch.testing.assert_close(out, inputs.results()["out"], rtol=0.02, atol=0.002)
"""


def test_a_gpu_that_was_full_is_asked_again() -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _FULL_AT_FIRST]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=200)
    assert (done.stdout, done.returncode) == ("target_attention: CUDA: out of memory\n", 0), done.stderr


@pytest.mark.parametrize(("leaf", "grad", "backward"), [("q", True, True), ("k", True, True), ("k", False, False)])
def test_the_operator_is_told_whether_a_backward_pass_may_follow(leaf: str, grad: bool, backward: bool) -> None:
    inputs = TargetAttentionCase("", [(2, 3)]).build()
    getattr(inputs, leaf).requires_grad_()
    with _Told() as mode, torch.set_grad_enabled(grad):
        inputs.call(stca.ops.target_attention)
    assert mode.told == [backward]
