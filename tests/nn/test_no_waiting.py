"""What modules do besides the operators makes nobody wait for a device: no value is read, none comes from the host."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import offsets
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from stca import lengths
from stca.nn import STCA, RankMixer, SwiGLUFFN, TargetAttention

# Values that Python reads, numbers that become a tensor, and results whose shape only the device knows.
WAITING = {"_local_scalar_dense", "lift_fresh", "nonzero", "equal", "masked_select", "_unique2"}


class _Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name == "index" and any(each is not None and each.dtype == torch.bool for each in args[1])
        self.found += [name] if name in WAITING or masks else []
        return func(*args, **(kwargs or {}))


FLAT = torch.randn(3, 16), torch.randn(7, 16), offsets([2, 1]), offsets([4, 3])
PADDED = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
LENGTHS = {"target_lengths": torch.tensor([3, 1]), "history_lengths": torch.tensor([5, 2])}
RANGES = torch.tensor([[0, 4], [1, 3], [0, 2]])
CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
    "STCA": (STCA(16, 2, 2), FLAT, {}),
    "visible": (STCA(16, 2, 2), FLAT, {"visible": RANGES}),
    "index": (TargetAttention(16, 2, order="projected"), FLAT, {"history_index": torch.arange(7).flip(0)}),
    "pool": (
        TargetAttention(16, 2, order="projected"),
        (*FLAT[:3], offsets([2, 1])),
        {"history_index": torch.tensor([6, 0, 3])},
    ),
    "padded": (STCA(16, 2, 2), PADDED, {}),
    "target_lengths": (STCA(16, 2, 2), PADDED, {"target_lengths": LENGTHS["target_lengths"]}),
    "both lengths": (TargetAttention(16, 2, bias=True), PADDED, LENGTHS),
    "SwiGLUFFN": (SwiGLUFFN(16), FLAT[:1], {}),
    "RankMixer": (RankMixer(4, 16), (torch.randn(2, 4, 16),), {}),
    "recent_suffix": (lengths.recent_suffix, (RANGES, 2), {}),
    "oldest_prefix": (lengths.oldest_prefix, (RANGES, torch.tensor([2, 1, 1])), {}),
    "random_window": (lengths.random_window, (RANGES, 2), {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_nobody_waits(name: str) -> None:
    call, arguments, options = CALLS[name]
    with _Waits() as waits:
        out = call(*arguments, **options)
        if isinstance(call, nn.Module):
            out.sum().backward()
    assert waits.found == []


def test_what_waits_is_seen() -> None:
    x = torch.randn(3)
    reads: tuple[Callable[[Tensor], object], ...] = (
        *(Tensor.item, bool, Tensor.nonzero, Tensor.unique),
        *(lambda x: x[x > 0], lambda x: torch.tensor([2]), lambda x: x.masked_select(x > 0), lambda x: x.equal(x)),
    )
    for read in reads:
        with _Waits() as waits:
            read(x[:1])
        assert waits.found, read
