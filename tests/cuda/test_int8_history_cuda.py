"""The CUDA kernels on int8 rows with scales: the bits of rows that hold the products, rounded to q's dtype."""

import re
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from accuracy import assert_all_as_accurate, assert_bitwise_equal
from cases import NAN_AND_INFINITIES, TARGET_ATTENTION_SMALL, TargetAttentionCase, TargetAttentionInputs
from cuda_devices import DEVICES, DTYPES, call_on, hopper_kernels
from emulated import emulated_device, launched_kernels
from int8_rows import in_float, quantised
from plain import plain_target_attention
from torch import Tensor

import stca
from stca.serving import HistoryCache

WIDE = [
    TargetAttentionCase(f"{targets}-of-{D}-{Dv}", [(targets, 150), (4, 70), (1, 0), (2, 3)], 4, 2, D, Dv, "random")
    for D, Dv in [(64, 64), (40, 24), (128, 96), (128, None)]
    for targets in (5, 33)
]
CASES = [
    *TARGET_ATTENTION_SMALL,
    *WIDE,
    *[TargetAttentionCase(f"width-{D}", [(3, 70), (9, 41)], 4, 1, D, None, "prefix") for D in (256, 259, 512, 1024)],
    TargetAttentionCase("width-200-256", [(17, 70)], 2, 2, 200, 256, pool=50),
    TargetAttentionCase("split", [(2, 3000), (3, 1600)], 2, 1, 16, 32, "random"),
    TargetAttentionCase("split-pool", [(40, 2500)], 2, 1, 64, pool=900),
]

# In these the emulator runs as many blocks as for rows of q's dtype, and so cuts histories alike.
ALIKE = [
    (case, dtype)
    for case in [*TARGET_ATTENTION_SMALL, *WIDE]
    for dtype in DTYPES
    if dtype != torch.float32 or case.key_dim <= 64
]
OP: Any = stca.ops.target_attention

pytestmark = pytest.mark.parametrize("device", DEVICES)


def _on(device: str, inputs: TargetAttentionInputs, scales: dict[str, Any], **options: Any) -> dict[str, Tensor]:
    found = call_on(device, "target_attention", *inputs.arguments(), False, *scales.values(), **options)
    return dict(zip(("out", "lse"), found, strict=False))


def _few_rows_kernel() -> bool:
    return any("fwd_few" in name for name in launched_kernels())


def _references(inputs: TargetAttentionInputs, scales: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """The oracle on the rows in float64, and plain torch on rows of q's dtype; its lse on float32."""
    dtype = inputs.q.dtype
    exact = inputs.but(q=inputs.q.double()).call(partial(stca.reference.target_attention, **scales))
    out, _ = in_float(inputs, scales, dtype).call(plain_target_attention)
    _, lse = in_float(inputs, scales, dtype).to(torch.float32).call(plain_target_attention)
    return {"out": (exact[0], out), "lse": (exact[1], lse)}


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_oracle_and_the_cpu(case: TargetAttentionCase, dtype: torch.dtype, device: str) -> None:
    """As accurate as plain torch is on rows rounded to q's dtype, and what the CPU makes of the same rows."""
    inputs, scales = quantised(case.build(dtype))
    found = _on(device, inputs, scales)
    assert_all_as_accurate(found, _references(inputs, scales))
    for x, by_cpu in zip(found.values(), inputs.call(partial(OP, **scales)), strict=True):
        most = float(by_cpu[by_cpu.isfinite()].abs().max())
        torch.testing.assert_close(x, by_cpu, rtol=0, atol=8 * torch.finfo(dtype).eps * most + 1e-5)


@pytest.mark.parametrize(("case", "dtype"), ALIKE, ids=str)
def test_the_bits_of_rows(case: TargetAttentionCase, dtype: torch.dtype, device: str) -> None:
    """Those of q's dtype. Then a scale is no number."""
    if device != "emulator":
        pytest.skip("blocks of both kernels may run in other numbers")
    inputs, scales = quantised(case.build(dtype))
    found = _on(device, inputs, scales)
    kernel = _few_rows_kernel()
    assert_bitwise_equal(found, _on(device, in_float(inputs, scales, dtype), {}))
    assert _few_rows_kernel() == kernel == (dtype != torch.float32 and "33-of" not in case.name)
    assert found["out"].isfinite().all()
    for poison in NAN_AND_INFINITIES:
        scales["k_scale"][7, -1] = poison
        expected = _on(device, in_float(inputs, scales, dtype), {})
        for name, x in _on(device, inputs, scales).items():
            torch.testing.assert_close(x, expected[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [TARGET_ATTENTION_SMALL[1], WIDE[0], WIDE[-1]], ids=str)
def test_where_the_hardware_rounds_freely(case: TargetAttentionCase, dtype: torch.dtype, device: str) -> None:
    inputs, scales = quantised(case.build(dtype))
    assert_all_as_accurate(_on(device, inputs, scales, rough=True), _references(inputs, scales))


@pytest.mark.parametrize("case", [*TARGET_ATTENTION_SMALL[1:3], WIDE[1]], ids=str)
def test_the_same_bits_on_every_run(case: TargetAttentionCase, device: str) -> None:
    """In the emulator threads take turns in another order each time, and copies land at other moments."""
    inputs, scales = quantised(case.build(torch.bfloat16))
    expected = _on(device, inputs, scales)
    for seed in (0, 2, 3):
        assert_bitwise_equal(_on(device, inputs, scales, seed=seed), expected)


@pytest.mark.parametrize("targets", [2, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("width", "shift"), [(64, 0), (64, 3), (130, 16), (13, 0)])
def test_strides(width: int, shift: int, dtype: torch.dtype, targets: int, device: str) -> None:
    """Columns of wider rows, heads between heads, scales as a column; aligned rows are copied past the registers."""
    inputs, scales = quantised(TargetAttentionCase("", [(targets, 77), (1, 40)], 2, 2, width).build(dtype))
    where = torch.device("cpu" if device == "emulator" else "cuda")
    with emulated_device() if device == "emulator" else nullcontext(torch.ops.stca) as ops:
        wide = torch.full((len(inputs.k), 3, 192), 127, dtype=torch.int8, device=where)
        wide[:, ::2, shift : shift + width] = inputs.k.to(where)
        columns = torch.full((len(inputs.k), 5), torch.nan, device=where)
        columns[:, 1::2] = scales["k_scale"].to(where)
        q, targets_of, rows_of = (
            torch.empty_like(x, device=where).copy_(x)
            for x in (inputs.q, inputs.target_offsets, inputs.history_offsets)
        )
        options = None, None, None, False, columns[:, 1::2]
        out, lse, *_ = ops.target_attention(q, wide[:, ::2, shift : shift + width], None, targets_of, rows_of, *options)
        strided = {"out": out.clone().cpu(), "lse": lse.clone().cpu()}
    assert_bitwise_equal(strided, _on(device, inputs, scales))


@pytest.mark.parametrize("targets", [4, 30])
@pytest.mark.parametrize("poison", NAN_AND_INFINITIES)
def test_rows_that_nobody_sees_may_stand_for_anything(poison: float, targets: int, device: str) -> None:
    """Before and after all that is seen, and of the pool what the index leaves out."""
    case = TargetAttentionCase("", [(targets, 900)], 2, 1, 64, None, "shared", pool=700)
    inputs, scales = quantised(case.build(torch.bfloat16))
    assert inputs.visible is not None
    assert inputs.history_index is not None
    clean = _on(device, inputs, scales)
    seen = inputs.history_index[int(inputs.visible[:, 0].min()) : int(inputs.visible[:, 1].max())]
    unseen = torch.ones(700, dtype=torch.bool)
    unseen[seen] = False
    assert unseen.any()
    scales["k_scale"][unseen] = poison
    assert_bitwise_equal(_on(device, inputs, scales), clean)


@pytest.mark.parametrize("targets", [3, 30])
@pytest.mark.parametrize("name", ["k_scale", "v_scale"])
@pytest.mark.parametrize("row", [0, 31, 1500, 2999])
def test_a_scale_reaches_its_own_row_and_head_alone(row: int, name: str, targets: int, device: str) -> None:
    """A planted NaN is in all results of targets that see the row, through the heads that it belongs to."""
    case = TargetAttentionCase("", [(targets, 3000), (1, 4)], 4, 2, 16, 16)
    inputs, scales = quantised(case.build(torch.bfloat16))
    before = _on(device, inputs, scales)
    scales[name][row, 1] = torch.nan
    after = _on(device, inputs, scales)
    for each, reached in {"out": True, "lse": name == "k_scale"}.items():
        assert after[each][:targets, 2:].isnan().all() == reached
        assert reached or torch.equal(after[each], before[each])
        assert torch.equal(after[each][:, :2], before[each][:, :2])
        assert torch.equal(after[each][targets:], before[each][targets:])


@pytest.mark.parametrize(("m", "H", "D"), [(2, 4, 64), (3, 8, 32), (2, 2, 130)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_what_a_cache_selects(m: int, H: int, D: int, dtype: torch.dtype, device: str) -> None:
    """Pages of users lie apart, and what is nobody's stands for NaN."""
    cache = HistoryCache(1, D, 2048, dtype=dtype, page_rows=16, storage=torch.int8)
    pool, scale = cache._pool.rows[0].parts
    scale.fill_(torch.nan)
    for _ in range(3):
        for user, rows in {"ann": 230, "bob": 0, "eve": 20, "zoe": 87}.items():
            cache.append(user, [torch.randn(rows, D).to(dtype)])
    with cache.select(["zoe", "ann", "bob", "zoe"], last=[257, 500, 7, 100]) as chosen:
        [(pool, scale)], index = chosen.encoded, chosen.history_index
        assert index is not None
        offsets = torch.arange(5) * m, chosen.history_offsets
        q = torch.randn(4 * m, H, D).to(dtype)
        paged = q, pool[:, None], None, *offsets, None, index, None, False, scale
        found = call_on(device, "target_attention", *paged)
        in_order = q, pool[index][:, None], None, *offsets, None, None, None, False, scale[index]
    for a, b in zip(found, call_on(device, "target_attention", *in_order), strict=True):
        assert torch.equal(a, b)
    assert found[0].isfinite().all()  # lse is not, where there is no history
    rows = (pool[index] * scale[index]).to(dtype)
    exact = OP(q.double(), rows.double()[:, None], None, *offsets)
    assert ((found[0] - exact).abs() <= 16 * torch.finfo(dtype).eps * exact.abs().max()).all()


def test_hoppers_kernels_leave_them_to_the_common_ones(device: str) -> None:
    """Those would take rows of 256 of bfloat16."""
    inputs, scales = quantised(TargetAttentionCase("", [(9, 70)], 2, 1, 256).build(torch.bfloat16))
    expected = _on(device, inputs, scales)
    hopper = "hopper" if device == "emulator" else "hopper-gpu"
    assert_bitwise_equal(_on(hopper, inputs, scales), expected)
    rows = in_float(inputs, scales, torch.bfloat16)
    assert hopper_kernels(hopper, lambda: _on(hopper, rows, {}))
    assert not hopper_kernels(hopper, lambda: _on(hopper, inputs, scales))


K8, ONES = torch.ones(5, 1, 8, dtype=torch.int8), torch.ones(5, 1)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"v": K8.float()}, "v must have the dtype of k on CUDA, Char, got Float"),
    (
        {"k": K8.float(), "v": K8, "k_scale": None, "v_scale": ONES},
        "v must have the dtype of k on CUDA, Float, got Char",
    ),
    ({"k_scale": None}, "k_scale must be given where k is int8, got None"),
    ({"k_scale": ONES[1:]}, "k_scale must be float32 [N, Hk] = [5, 1], as k is, got Float [4, 1]"),
    ({"backward": True}, "no input must require a gradient where k or v is int8"),
    ({"q": torch.ones(2, 4, 8).double()}, "q must be float32, bfloat16 or float16 on CUDA, got Double"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_arguments(changes: dict[str, Any], message: str, device: str) -> None:
    q, offsets = torch.ones(2, 4, 8), {"target": torch.tensor([0, 2]), "history": torch.tensor([0, 5])}
    good = {"q": q, "k": K8, "v": None, **offsets, "visible": None, "index": None, "scale": None, "backward": False}
    with pytest.raises(ValueError, match=f"^target_attention: {re.escape(message)}"):
        call_on(device, "target_attention", *{**good, "k_scale": ONES, "v_scale": None, **changes}.values())
