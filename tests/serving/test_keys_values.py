"""Keys and values that are kept in place of rows: the same results, from wherever they lie, and what is refused."""

import copy
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from accuracy import assert_as_accurate
from caches import poisoned, selected
from torch import Tensor

import stca
from stca.nn import STCA, Keep, TargetAttention
from stca.serving import HistoryCache

D, H = 24, 4
LENGTHS = {"a": 700, "b": 0, "c": 333}


def _filled(model: STCA, histories: dict[str, Tensor], page_rows: int) -> HistoryCache:
    """Users grow by turns, also by one row, so that their pages lie apart."""
    cache = poisoned(HistoryCache(len(model.layers), D, 4096, keep="keys_values", num_heads=H, page_rows=page_rows))
    for begin, end in pairwise([0, 1, 2, 19, 300, 700]):
        new = [rows[begin:end] for rows in histories.values()]
        offsets = torch.tensor([0, *map(len, new)]).cumsum(0)
        cache.extend_from(partial(model.encode_history, keep="keys_values"), list(histories), torch.cat(new), offsets)
    return cache


@pytest.mark.parametrize(("m", "page_rows"), [(1, 64), (5, 7), (40, 16), (40, 256)])
@pytest.mark.parametrize("order", ["auto", "reordered", "projected"])
def test_served_as_accurately_as_the_whole_history(m: int, page_rows: int, order: Any) -> None:
    model = STCA(D, 3, H, use_lse=True, order=order).requires_grad_(False)
    histories = {user: torch.randn(n, D) for user, n in LENGTHS.items()}
    cache = _filled(model, histories, page_rows)
    cache.keep("c", 300)
    histories["c"] = histories["c"][33:]
    x, target_offsets = torch.randn(3 * m, D), torch.arange(4) * m
    with cache.select(list(histories)) as chosen:
        index, offsets = chosen.history_index, chosen.history_offsets
        z = model.attend(x, chosen.encoded, target_offsets, offsets, history_index=index)
        kept = [own[index].contiguous() for own in chosen.encoded]
    assert torch.equal(z, model.attend(x, kept, target_offsets, offsets))
    whole = torch.cat(list(histories.values()))
    oracle = copy.deepcopy(model).double()(x.double(), whole.double(), target_offsets, offsets)
    assert_as_accurate(z, oracle, model(x, whole, target_offsets, offsets))


@pytest.mark.parametrize("order", ["reordered", "projected"])
@pytest.mark.parametrize("keep", ["rows", "keys_values"])
@pytest.mark.parametrize(("m", "dtype"), [(1, torch.float32), (40, torch.float32), (40, torch.bfloat16)])
def test_int8_is_read_in_place(order: Any, keep: Keep, m: int, dtype: torch.dtype) -> None:
    """To the bit what the same numbers in the type of the computation give, which is not always bfloat16."""
    model = STCA(D, 2, H, order=order, dtype=dtype).requires_grad_(False)
    cache = HistoryCache(2, D, 1024, dtype=dtype, keep=keep, num_heads=H, page_rows=16, storage=torch.int8)
    for n in (0, 90, 33):
        for user in ("a", "b"):
            cache.append(user, model.encode_history(torch.randn(n, D, dtype=dtype), keep=keep))
    x, target_offsets = torch.randn(2 * m, D, dtype=dtype), torch.arange(3) * m
    with cache.select(["b", "a"], last=[100, 7]) as chosen:
        assert chosen.history_index is not None
        offsets = target_offsets, chosen.history_offsets
        z = model.attend(x, chosen.encoded, *offsets, history_index=chosen.history_index)
        numbers = selected(chosen)
        same = model.attend(x, [own.to(dtype) for own in numbers], *offsets)
        if dtype == torch.float32 or stca.build_info()["cpu_isa"] == "avx512bf16":
            assert torch.equal(z, same)
        else:
            oracle = copy.deepcopy(model).double()
            assert_as_accurate(z, oracle.attend(x.double(), [own.double() for own in numbers], *offsets), same)
        with pytest.raises(ValueError, match=r"STCA.attend: rows with a scale must be int8 .*, got torch.int8"):
            model.attend(x, [(pool, scale[:-1]) for pool, scale in chosen.encoded], *offsets)
        with pytest.raises(ValueError, match=r"STCA.attend: rows with a scale must be int8 .*, got torch.int8"):
            model.attend(x, [(pool, scale.double()) for pool, scale in chosen.encoded], *offsets)
        with pytest.raises(ValueError, match=r"STCA.attend: int8 rows must come with their scale, as a pair, got"):
            model.attend(x, [pool for pool, _ in chosen.encoded], *offsets)


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16, torch.int8])
def test_storage(storage: torch.dtype) -> None:
    """int8 has a scale for each head's key and value."""
    rows = torch.randn(40, 2, H, 6) * torch.logspace(-2, 2, 40 * 2 * H).view(40, 2, H, 1)
    rows[7], rows[8, 1, 2, 5], rows[9, 0, 3, 2] = 0, torch.nan, torch.inf
    cache = HistoryCache(1, D, 64, keep="keys_values", num_heads=H, storage=storage, page_rows=16)
    cache.append("other", [torch.randn(3, 2, H, 6)])
    cache.append("user", [rows])
    with cache.select(["user"], last=36) as selection:
        [found] = selected(selection)
    rows = rows[4:]
    whole = torch.isfinite(rows).all(dim=-1)
    bound = rows.abs().amax(dim=-1, keepdim=True) / 254 if storage == torch.int8 else rows.abs() * 2.0**-8 + 1e-7
    assert found.dtype == torch.float32
    assert ((found - rows).abs() <= bound * (1 + 1e-5))[whole].all()
    assert not torch.isfinite(found[~whole]).all(dim=-1).any()
    assert int((~whole).sum()) == 2
    assert (found[3] == 0).all()


@pytest.mark.parametrize("bias", [False, True])
def test_attention_to_kept_keys_and_values_is_attention_to_rows(bias: bool) -> None:
    attention = TargetAttention(D, H, bias=bias, dtype=torch.float64)
    for values in attention.parameters():
        torch.nn.init.normal_(values, std=0.3)
    x, rows = torch.randn(5, D, dtype=torch.float64), torch.randn(9, D, dtype=torch.float64)
    offsets = torch.tensor([0, 3, 3, 5]), torch.tensor([0, 6, 9, 9])
    kept = attention(None, rows)
    assert kept.shape == (9, 2, H, D // H)
    results = [attention(x, history, *offsets) for history in (rows, kept)]
    torch.testing.assert_close(results[1], results[0])
    grads = [torch.autograd.grad(z.square().sum(), attention.w_k) for z in results]
    torch.testing.assert_close(grads[1], grads[0])


def test_what_is_refused() -> None:
    model = STCA(D, 2, H)
    x, offsets = torch.randn(3, D), (torch.tensor([0, 3]), torch.tensor([0, 5]))
    cache = HistoryCache(2, D, 64, keep="keys_values", num_heads=H)
    encode: Any = model.encode_history
    wrong: list[tuple[str, Any]] = [
        ("encode_history: keep must be 'rows' or 'keys_values', got 'k'", lambda: encode(torch.randn(5, D), keep="k")),
        (
            r"history must be \[N, D\] with D = 24, got \[5, 8\]",
            lambda: TargetAttention(D, H)(None, x.new_ones(5, 8)),
        ),
        (
            r"STCA.attend: kept keys and values must be \[N, 2, H, 24 / H\], got \[5, 2, 4, 7\]",
            lambda: model.attend(x, [torch.zeros(5, 2, H, 7)] * 2, *offsets),
        ),
        (
            r"k must be \[N, Hk, Dk\] with q's Dk = 6, got \[5, 3, 8\]",
            lambda: model.attend(x, [torch.zeros(5, 2, 3, 8)] * 2, *offsets),
        ),
        ("flat .*, padded .* or nested, got", lambda: TargetAttention(D, H)(x[None], torch.zeros(5, 2, H, 6))),
        ("HistoryCache: keep must be 'rows' or 'keys_values', got 'k'", lambda: HistoryCache(1, D, 9, keep="k")),  # type: ignore[arg-type]
        ("HistoryCache: num_heads must divide dim = 24, got 5", lambda: HistoryCache(1, D, 9, num_heads=5)),
        (
            r"append: rows must be \[n, 2, H, D / H\] = \[5, 2, 4, 6\] of 2 layers, got \[\[5, 24\]",
            lambda: cache.append("a", model.encode_history(torch.randn(5, D))),
        ),
    ]
    for message, call in wrong:
        with pytest.raises(ValueError, match=message):
            call()
    assert "a" not in cache
