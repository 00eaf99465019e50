"""The CUDA kernels of target_attention agree with its oracle, in the emulator and on a GPU."""

import re
from typing import Any

import pytest
import torch
from accuracy import assert_all_as_accurate, assert_bitwise_equal
from cases import NAN_AND_INFINITIES, TARGET_ATTENTION, TARGET_ATTENTION_SMALL, TargetAttentionCase
from cuda_devices import DEVICES, DTYPES, supported, target_attention_on
from emulated import emulated_target_attention, launched_kernels
from layouts import LAYOUTS
from plain import references_of_case, target_attention_references

CASES = [case for case in TARGET_ATTENTION if supported(case)]
SPLIT = TargetAttentionCase("split", [(2, 4000), (1, 0), (3, 2600)], 2, 1, 5, 3, "random")

pytestmark = pytest.mark.parametrize("device", DEVICES)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_backward(case: TargetAttentionCase, dtype: torch.dtype, device: str) -> None:
    """New memory is NaN in the emulator, so none of it is used."""
    assert_all_as_accurate(target_attention_on(device, case.build(dtype)), references_of_case(case.name, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*TARGET_ATTENTION_SMALL, SPLIT], ids=str)
def test_where_the_hardware_rounds_freely(case: TargetAttentionCase, dtype: torch.dtype, device: str) -> None:
    """Tensor cores cut low bits of sums, and exponentials are off by up to 2 units in the last place."""
    inputs = case.build(dtype)
    actual = (
        emulated_target_attention(inputs, rough=True) if device == "emulator" else target_attention_on(device, inputs)
    )
    assert_all_as_accurate(actual, target_attention_references(inputs))


@pytest.mark.parametrize("case", [*TARGET_ATTENTION_SMALL, SPLIT], ids=str)
def test_the_same_bits_on_every_run(case: TargetAttentionCase, device: str) -> None:
    """In the emulator threads take turns in another order each time."""
    inputs = case.build(torch.bfloat16)
    expected = target_attention_on(device, inputs)
    for seed in (0, 2, 3):
        again = emulated_target_attention(inputs, seed) if device == "emulator" else target_attention_on(device, inputs)
        assert_bitwise_equal(again, expected)


@pytest.mark.parametrize(
    ("requests", "width", "dtype", "few"),
    [
        ([(4, 40), (12, 9)], 64, torch.bfloat16, True),
        ([(4, 40), (12, 9)], 128, torch.float16, True),
        ([(4, 40), (12, 9)], 129, torch.bfloat16, False),
        ([(4, 40), (12, 9)], 64, torch.float32, False),
        ([(4, 40), (13, 9)], 64, torch.bfloat16, False),
        ([(4, 40), (13, 9)], 128, torch.float16, False),
    ],
)
@pytest.mark.parametrize("shared", [False, True])
def test_few_query_rows_take_a_kernel_of_their_own(
    requests: list[tuple[int, int]], width: int, dtype: torch.dtype, few: bool, shared: bool, device: str
) -> None:
    """Its results are right wherever it runs; which kernels run is seen in the emulator."""
    case = TargetAttentionCase("few", requests, 4, 2, width, None if shared else width)
    inputs = case.build(dtype)
    assert_all_as_accurate(target_attention_on(device, inputs), target_attention_references(inputs))
    assert device != "emulator" or few == any("fwd_few" in name for name in launched_kernels())


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype, device: str) -> None:
    """Rows that start at multiples of 16 bytes are copied past the registers, others element by element."""
    inputs = TargetAttentionCase("", [(2, 40), (2, 65)], 4, 2, 16, 24, "random").build(dtype)
    strided = inputs.map(lambda x: LAYOUTS[layout](x) if x.dim() == 3 else x.t().contiguous().t())
    assert_bitwise_equal(target_attention_on(device, strided), target_attention_on(device, inputs))


@pytest.mark.parametrize("scale", [0.0, -0.7, 3.5])
def test_scale(scale: float, device: str) -> None:
    inputs = TARGET_ATTENTION_SMALL[0].build().but(scale=scale)
    assert_all_as_accurate(target_attention_on(device, inputs), target_attention_references(inputs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_scores(dtype: torch.dtype, device: str) -> None:
    inputs = SPLIT.build(dtype)
    inputs = inputs.but(scale=1e4 / float(inputs.q.double().norm(dim=2).max()))
    actual = target_attention_on(device, inputs)
    assert_all_as_accurate(actual, target_attention_references(inputs), sensitivity=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("poison", NAN_AND_INFINITIES)
def test_other_requests_do_not_matter(poison: float, dtype: torch.dtype, device: str) -> None:
    clean, dirty = SPLIT.build(dtype), SPLIT.build(dtype)
    targets, rows = slice(*clean.target_offsets[2:4].tolist()), slice(*clean.history_offsets[2:4].tolist())
    assert dirty.v is not None
    for tensor in (dirty.q, dirty.dout, dirty.dlse):
        tensor[: targets.start] = poison
    for tensor in (dirty.k, dirty.v):
        tensor[: rows.start] = poison
    own = {"out": targets, "lse": targets, "dq": targets, "dk": rows, "dv": rows}
    actual, expected = (target_attention_on(device, inputs) for inputs in (dirty, clean))
    assert_bitwise_equal({n: actual[n][at] for n, at in own.items()}, {n: expected[n][at] for n, at in own.items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("poison", NAN_AND_INFINITIES)
def test_rows_before_and_after_all_that_is_seen_do_not_matter(poison: float, dtype: torch.dtype, device: str) -> None:
    case = TargetAttentionCase("", [(4, 900)], 2, 1, 5, 3, "shared")
    clean, dirty = case.build(dtype), case.build(dtype)
    assert clean.visible is not None
    assert dirty.v is not None
    begin, end = int(clean.visible[:, 0].min()), int(clean.visible[:, 1].max())
    for tensor in (dirty.k, dirty.v):
        tensor[:begin] = tensor[end:] = poison
    assert_bitwise_equal(target_attention_on(device, dirty), target_attention_on(device, clean))


@pytest.mark.parametrize("row", [0, 31, 1500, 2999])
def test_nan_in_a_seen_row_reaches_every_result(row: int, device: str) -> None:
    inputs = TargetAttentionCase("", [(2, 3000), (1, 4)], 2, 1, 4, 3).build(torch.bfloat16)
    inputs.k[row, 0, 1] = torch.nan
    actual = target_attention_on(device, inputs)
    for name in ("out", "lse", "dq"):
        assert actual[name][:2].isnan().all(), name
        assert actual[name][2:].isfinite().all(), name
    assert actual["dk"][:3000].isnan().all()


WIDTHS = [
    (
        {"key_dim": 1032},
        torch.bfloat16,
        "on CUDA must be given a width of at most 1024 when v is None, got bfloat16 with Dk = 1032",
    ),
    (
        {"key_dim": 257, "value_dim": 4},
        torch.float16,
        "on CUDA must be given widths of at most 256 when v is given, got float16",
    ),
    ({"value_dim": 4}, torch.float64, "q must be float32, bfloat16 or float16 on CUDA, got Double"),
]


@pytest.mark.parametrize(("changes", "dtype", "message"), WIDTHS)
def test_what_is_not_supported(changes: dict[str, Any], dtype: torch.dtype, message: str, device: str) -> None:
    inputs = TargetAttentionCase("", [(2, 3)], **changes).build(dtype)
    with pytest.raises(ValueError, match=f"^target_attention: {re.escape(message)}"):
        target_attention_on(device, inputs)


BAD_VALUES = [
    ("target_offsets", [0, 3, 2, 6], "target_offsets must not decrease, got 3 then 2 at index 2"),
    ("history_offsets", [1, 3, 9, 9], "history_offsets must start at 0, got 1"),
    (
        "visible",
        [[0, 3], [1, 2], [0, 6], [2, 1], [0, 0], [0, 0]],
        "visible[3] must be a range within the 6 history rows",
    ),
    ("history_index", [0, 1, 2, 3, 4, 5, 6, 9, -1], "history_index[7] must be a row of k in [0, 9), got 9"),
]


@pytest.mark.parametrize(("name", "values", "message"), BAD_VALUES)
def test_values_are_checked_where_asked(
    name: str, values: list[Any], message: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie in the GPU's memory: looking at them waits for it."""
    inputs = TargetAttentionCase("", [(2, 3), (3, 6), (1, 0)], 2, 1, 5, 3).build()
    bad = inputs.but(**{name: torch.tensor(values)})
    monkeypatch.setenv("STCA_DEBUG", "1")
    with pytest.raises(ValueError, match=f"^target_attention: {re.escape(message)}"):
        target_attention_on(device, bad)
