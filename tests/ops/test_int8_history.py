"""Rows of int8 with a scale for each and each head: the bits of the float rows that they stand for."""

import re
from functools import partial
from typing import Any

import pytest
import torch
from accuracy import assert_all_as_accurate
from cases import TARGET_ATTENTION_SMALL, TargetAttentionCase, TargetAttentionInputs
from int8_rows import in_float, quantised
from torch import Tensor

import stca

MORE = [
    TargetAttentionCase("few", [(2, 900), (1, 37), (3, 0)], 2, 1, 64),
    TargetAttentionCase("few-visible", [(6, 700)], 1, 1, 130, None, "random"),
    TargetAttentionCase("few-odd", [(1, 333)], 4, 1, 259),
    TargetAttentionCase("few-projected", [(1, 300), (2, 65)], 4, 2, 128, 40, "random"),
    TargetAttentionCase("few-paged", [(3, 700), (1, 9)], 2, 1, 128, pool=1000),
    TargetAttentionCase("some", [(3, 300)], 4, 1, 130, pool=301),
    TargetAttentionCase("many", [(40, 300), (33, 9)], 4, 2, 16, 24, "random", pool=90),
    TargetAttentionCase("narrow", [(2, 70)], 2, 1, 3),
]
CASES = [*TARGET_ATTENTION_SMALL, *MORE]
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
NAMES = "k", "v"
OP: Any = stca.ops.target_attention
ORACLE: Any = stca.reference.target_attention


def _call(inputs: TargetAttentionInputs, **options: Any) -> tuple[Tensor, Tensor]:
    return inputs.call(partial(OP, **options))


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_bits_of_float_rows(isa: str, case: TargetAttentionCase, dtype: torch.dtype) -> None:
    """Of q's dtype, or of float32 where the CPU converts 16 bits to that."""
    inputs, scales = quantised(case.build(dtype))
    multiplied = isa == "avx512bf16" and dtype == torch.bfloat16
    rows = dtype if multiplied or dtype == torch.float64 else torch.float32
    out, lse = _call(inputs, **scales)
    expected, expected_lse = _call(in_float(inputs, scales, rows))
    assert torch.equal(out, expected.to(dtype))
    assert torch.equal(lse, expected_lse)
    assert out.isfinite().all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_oracle(case: TargetAttentionCase, dtype: torch.dtype) -> None:
    """As accurate as plain torch in the same dtype is on rows rounded to it."""
    inputs, scales = quantised(case.build(dtype))
    results = dict(zip(("out", "lse"), _call(inputs, **scales), strict=True))

    def oracle(each: TargetAttentionInputs, scales: dict[str, Any]) -> dict[str, Tensor]:
        return dict(zip(("out", "lse"), each.call(partial(ORACLE, **scales)), strict=True))

    exact = oracle(inputs.but(q=inputs.q.double()), scales)
    plain = oracle(in_float(inputs, scales, dtype), {})
    assert_all_as_accurate(results, {name: (exact[name], plain[name]) for name in results})


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("page_rows", [1, 16, 64, 256])
@pytest.mark.parametrize("skipped", [0, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("m", "H"), [(1, 1), (1, 8), (3, 4)])
def test_pages(isa: str, page_rows: int, skipped: int, dtype: torch.dtype, m: int, H: int) -> None:
    """Rows of foreign pages stand for NaN."""
    P, D, lengths = 4096, 64, [900, 0, 37]
    k, k_scale = torch.full((P, 1, D), -1, dtype=torch.int8), torch.full((P, 1), torch.nan)
    pages = torch.randperm(P // page_rows)
    index, taken = [], 0
    for n in lengths:
        own = pages[taken : taken + (n + skipped) // page_rows + 1]
        taken += len(own)
        index.append((own[:, None] * page_rows + torch.arange(page_rows)).flatten()[skipped : skipped + n])
    rows = torch.cat(index)
    k[rows] = torch.randint(-127, 128, (len(rows), 1, D), dtype=torch.int8)
    k_scale[rows] = torch.rand(len(rows), 1) / 32
    q = torch.randn(3 * m, H, D).to(dtype)
    offsets = torch.arange(4) * m, torch.tensor([0, *lengths]).cumsum(0)
    found = OP(q, k, None, *offsets, history_index=rows, k_scale=k_scale)
    in_order = OP(q, k[rows], None, *offsets, k_scale=k_scale[rows])
    assert torch.equal(found, in_order)
    assert found.isfinite().all()


def test_rows_that_nobody_sees_may_stand_for_anything(isa: str) -> None:
    inputs, scales = quantised(TargetAttentionCase("", [(4, 900)], 1, 1, 128, None, "shared").build())
    assert inputs.visible is not None
    clean = _call(inputs, **scales)
    begin, end = int(inputs.visible[:, 0].min()), int(inputs.visible[:, 1].max())
    scales["k_scale"][:begin] = scales["k_scale"][end:] = torch.nan
    assert all(torch.equal(a, b) for a, b in zip(_call(inputs, **scales), clean, strict=True))


def test_one_of_both(isa: str) -> None:
    """v may be int8 where k is not, and the other way round."""
    inputs = TargetAttentionCase("", [(2, 300), (1, 70)], 2, 2, 64, 32).build()
    numbers, scales = quantised(inputs)
    whole = in_float(numbers, scales, torch.float32)
    for name in NAMES:
        mixed = inputs.but(**{name: getattr(numbers, name)})
        expected = _call(inputs.but(**{name: getattr(whole, name)}))
        found = _call(mixed, **{f"{name}_scale": scales[f"{name}_scale"]})
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides(dtype: torch.dtype) -> None:
    """A pool [P, D + 5] whose columns are taken, heads between heads, scales as a column."""
    inputs, scales = quantised(TargetAttentionCase("", [(2, 300)], 2, 2, 64).build(dtype))
    wide = torch.zeros(len(inputs.k), 3, 69, dtype=torch.int8)
    wide[:, ::2, 2:66] = inputs.k
    columns = torch.zeros(len(inputs.k), 5)
    columns[:, 1::2] = scales["k_scale"]
    strided = _call(inputs.but(k=wide[:, ::2, 2:66]), k_scale=columns[:, 1::2])
    assert all(torch.equal(a, b) for a, b in zip(strided, _call(inputs, **scales), strict=True))


def _arguments() -> tuple[Any, ...]:
    inputs, scales = quantised(TARGET_ATTENTION_SMALL[0].build())
    return *inputs.arguments(), False, scales["k_scale"], scales["v_scale"]


def _attend(q: Tensor, k: Tensor, targets: Tensor, offsets: Tensor, k_scale: Tensor) -> Tensor:
    return stca.ops.target_attention(q * 2, k, None, targets, offsets, k_scale=k_scale) + 1


class _Model(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor, targets: Tensor, offsets: Tensor, k_scale: Tensor) -> Tensor:
        return _attend(q, k, targets, offsets, k_scale)


def _small() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    case = TargetAttentionCase("", [(2, 9), (3, 4)], 4, 1, 16)
    inputs, scales = quantised(case.build())
    return inputs.q, inputs.k, inputs.target_offsets, inputs.history_offsets, scales["k_scale"]


def test_torch_library() -> None:
    passed = torch.library.opcheck(torch.ops.stca.target_attention, _arguments())
    assert set(passed.values()) == {"SUCCESS"}


def test_compile_and_export() -> None:
    torch.compiler.reset()
    arguments = _small()
    expected = _attend(*arguments)
    assert torch.equal(torch.compile(_attend, fullgraph=True, backend="aot_eager")(*arguments), expected)
    exported = torch.export.export(_Model(), arguments)
    assert torch.equal(exported.module()(*arguments), expected)


def test_vmap() -> None:
    *others, k_scale = _small()
    scales = torch.stack([k_scale, k_scale * 2, k_scale * 0])
    attend: Any = partial(_attend, *others)
    assert torch.equal(torch.vmap(attend)(scales), torch.stack([attend(scale) for scale in scales]))


def test_autocast() -> None:
    """q is converted; int8 rows and their scales are not."""
    q, k, targets, offsets, k_scale = _small()
    with torch.autocast("cpu", torch.bfloat16):
        found = OP(q, k, None, targets, offsets, k_scale=k_scale)
    assert torch.equal(found, OP(q.bfloat16(), k, None, targets, offsets, k_scale=k_scale))


K8, ONES = torch.ones(5, 1, 8, dtype=torch.int8), torch.ones(5, 1)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"k_scale": None}, "k_scale must be given where k is int8, got None"),
    ({"k": K8.float()}, "k must be int8 where k_scale is given, got Float"),
    ({"k": K8.to(torch.uint8)}, "k must be int8 where k_scale is given, got Byte"),
    ({"k_scale": torch.ones(4, 1)}, "k_scale must be float32 [N, Hk] = [5, 1], as k is, got Float [4, 1]"),
    ({"k_scale": torch.ones(5)}, "k_scale must be float32 [N, Hk] = [5, 1], as k is, got Float [5]"),
    ({"k_scale": ONES.double()}, "k_scale must be float32 [N, Hk] = [5, 1], as k is, got Double [5, 1]"),
    ({"k_scale": ONES.to("meta")}, "k_scale must be on the device of q, cpu, got meta"),
    ({"v_scale": ONES}, "v_scale must be None where v is None, got [5, 1]"),
    ({"v": K8}, "v_scale must be given where v is int8, got None"),
    ({"v": K8.float(), "v_scale": ONES}, "v must be int8 where v_scale is given, got Float"),
    ({"q": torch.ones(2, 4, 8, requires_grad=True)}, "no input must require a gradient where k or v is int8"),
    ({"k_scale": ONES.clone().requires_grad_()}, "no input must require a gradient where k or v is int8"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_arguments(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"q": torch.ones(2, 4, 8), "k": K8, "v": None, "k_scale": ONES}
    offsets = {"target_offsets": torch.tensor([0, 2]), "history_offsets": torch.tensor([0, 5])}
    with pytest.raises(ValueError, match=f"^target_attention: {re.escape(message)}"):
        OP(**{**good, **changes}, **offsets)
