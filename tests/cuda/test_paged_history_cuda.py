"""The CUDA kernels attend to a cache's pool through its pages: the bits of the same rows in order."""

from typing import Any

import pytest
import torch
from accuracy import assert_all_as_accurate
from caches import poisoned
from cuda_devices import DEVICES, call_on
from emulated import launched_kernels
from plain import plain_target_attention
from torch import Tensor

import stca
from stca.serving import HistoryCache

LENGTHS = {"ann": 700, "bob": 0, "eve": 61, "zoe": 257}

pytestmark = pytest.mark.parametrize("device", DEVICES)


def _cache(D: int, page_rows: int, dtype: torch.dtype) -> HistoryCache:
    """Users grow by turns, so that their pages lie apart, and one goes; what belongs to nobody is NaN."""
    cache = poisoned(HistoryCache(1, D, 2048, dtype=dtype, page_rows=page_rows))
    for part in range(4):
        for user, rows in LENGTHS.items():
            cache.append(user, [torch.randn(len(torch.arange(rows).tensor_split(4)[part]), D).to(dtype)])
    cache.keep("ann", 690)
    cache.evict(["eve"])
    return cache


def _ranges(lengths: Tensor, m: int) -> Tensor:
    ends = lengths.repeat_interleave(m)
    begins = (torch.rand(len(ends)) * 40).long().clamp(max=ends)
    return torch.stack([begins, torch.maximum(begins, ends - (torch.rand(len(ends)) * 40).long())], dim=1)


def _oracle(f: Any, q: Tensor, rows: Tensor, offsets: tuple[Tensor, Tensor], visible: Tensor | None) -> Any:
    return dict(zip(("out", "lse"), f(q, rows, None, *offsets, visible=visible, return_lse=True), strict=True))


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("page_rows", [16, 64, 256])
@pytest.mark.parametrize(("m", "H", "D"), [(2, 4, 64), (3, 8, 32), (2, 2, 130)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("seen", ["all", "ranges"])
def test_what_a_cache_selects(
    device: str, page_rows: int, m: int, H: int, D: int, dtype: torch.dtype, seen: str
) -> None:
    """By the kernel of few query rows, and by the common one. Who is evicted, and free pages, are NaN."""
    cache = _cache(D, page_rows, dtype)
    with cache.select(["zoe", "ann", "bob", "zoe"], last=[257, 500, 7, 100]) as chosen:
        assert chosen.history_index is not None
        pool, index = chosen.encoded[0][:, None], chosen.history_index
        offsets = torch.arange(5) * m, chosen.history_offsets
        assert not pool.isfinite().all()
        q = torch.randn(4 * m, H, D).to(dtype)
        visible = None if seen == "all" else _ranges(offsets[1].diff(), m)
        found = call_on(device, "target_attention", q, pool, None, *offsets, visible, index, None)
        few = dtype == torch.bfloat16 and (m, H, D) == (2, 4, 64)
        assert device != "emulator" or few == any("fwd_few" in name for name in launched_kernels())
        rows = pool[index]
    in_order = call_on(device, "target_attention", q, rows, None, *offsets, visible, None, None)
    for a, b in zip(found, in_order, strict=True):
        assert torch.equal(a, b)
    exact = _oracle(stca.reference.target_attention, q.double(), rows.double(), offsets, visible)
    plain = _oracle(plain_target_attention, q, rows, offsets, visible)
    plain["lse"] = _oracle(plain_target_attention, q.float(), rows.float(), offsets, visible)["lse"]
    results = {"out": found[0], "lse": found[1]}
    assert_all_as_accurate(results, {name: (exact[name], plain[name]) for name in results})
