"""Rows of another dtype or device than the weights are named, wherever the weights are when a module is called."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import offsets
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from stca.nn import STCA, RankMixer, SwiGLUFFN, TargetAttention

REQUESTS = torch.randn(3, 16), torch.randn(7, 16), offsets([2, 1]), offsets([4, 3])
TOKENS = torch.randn(2, 4, 16)


def test_rows_of_another_dtype_or_device() -> None:
    x, rows, *both = REQUESTS
    model: Any = STCA(16, 2, 2)
    encoded = model.encode_history(rows)
    calls: tuple[tuple[Callable[[Tensor], Any], Tensor, str], ...] = (
        (lambda rows: model(x, rows, *both), rows, "STCA: history"),
        (lambda x: model(x, rows, *both), x, "STCA: targets"),
        (lambda x: model.attend(x, encoded, *both), x, "STCA.attend: targets"),
        (model.encode_history, rows, "STCA.encode_history: history"),
        (lambda last: model.attend(x, [encoded[0], last], *both), encoded[1], "STCA.attend: encoded[1]"),
        (lambda x: TargetAttention(16, 2)(x, rows, *both), x, "TargetAttention: targets"),
        (lambda rows: TargetAttention(16, 2)(x, rows, *both), rows, "TargetAttention: history"),
        (lambda rows: TargetAttention(16, 2)(None, rows), rows, "TargetAttention: history"),
        (SwiGLUFFN(16), x, "SwiGLUFFN: x"),
        (RankMixer(4, 16), TOKENS, "RankMixer: tokens"),
    )
    for call, right, name in calls:
        for wrong in (right.double(), right.bfloat16(), right.to("meta")):
            expected = (
                f"{name} must be torch.float32 on cpu, as the module's weights, got {wrong.dtype} on {wrong.device}"
            )
            for enabled in (False, True):  # autocast converts no double and moves nothing
                if not (enabled and wrong.dtype == torch.bfloat16):
                    with torch.autocast("cpu", enabled=enabled), pytest.raises(ValueError, match=re.escape(expected)):
                        call(wrong)
        with torch.autocast("cpu"):
            call(right.bfloat16())  # converted


def _sharded(model: nn.Module, mesh: DeviceMesh) -> None:
    """Rows and weights are bfloat16 during a call."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    for layer in getattr(model, "layers", ()):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def _plain(model: nn.Module, _: DeviceMesh) -> None:
    """Weights are attributes and no parameters, as in the replicas of DataParallel."""
    for part in model.modules():
        for name, weight in [*part.named_parameters(recurse=False)]:
            delattr(part, name)
            setattr(part, name, weight.detach())


def _offloaded(model: nn.Module, _: DeviceMesh) -> None:
    """Weights are on another device until a hook of the module that owns them brings them."""
    for part in model.modules():
        for name, weight in [*part.named_parameters(recurse=False)]:
            setattr(part, name, nn.Parameter(weight.to("meta")))
            part.register_forward_pre_hook(lambda part, _, name=name, weight=weight: setattr(part, name, weight))


@pytest.mark.parametrize("put_away", [_sharded, _plain, _offloaded])
@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: RankMixer(4, 16), (TOKENS,)),
        (lambda: STCA(16, 2, 2), REQUESTS),
        (lambda: TargetAttention(16, 2), REQUESTS),
        (lambda: SwiGLUFFN(16), (TOKENS,)),
    ],
)
def test_weights_that_the_call_brings(
    mesh: DeviceMesh,
    make: Callable[[], nn.Module],
    inputs: tuple[Tensor, ...],
    put_away: Callable[[nn.Module, DeviceMesh], None],
) -> None:
    model = make()
    expected = model(*inputs)
    put_away(model, mesh)
    torch.testing.assert_close(model(*inputs).float(), expected, rtol=0.1, atol=0.1)
