"""target_attention where nothing is seen, where memory holds NaN, and where NaN is in the inputs."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import cases
import pytest
import torch
from accuracy import assert_bitwise_equal
from cases import (
    DTYPES,
    ISAS,
    NAN_AND_INFINITIES,
    TARGET_ATTENTION,
    TARGET_ATTENTION_SMALL,
    TargetAttentionCase,
)
from torch import Tensor

import stca

EMPTY = [case for case in TARGET_ATTENTION if not any(m * rows for m, rows in case.requests)]
SEPARATE = [case for case in TARGET_ATTENTION_SMALL if case.pool is None]  # no row belongs to two requests
EMPTY += [case for case in TARGET_ATTENTION if case.visible == "none"]
LONG = TargetAttentionCase("split", [(2, 4000), (1, 0), (3, 2600)], 2, 1, 5, 3, "random")


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", EMPTY, ids=str)
@pytest.mark.usefixtures("uninitialized_is_nan")
def test_seeing_nothing_is_exactly_zero(case: TargetAttentionCase, dtype: torch.dtype, isa: str) -> None:
    inputs = case.build(dtype)
    actual = inputs.results()
    for name, x in actual.items():
        expected = torch.full_like(x, -torch.inf if name == "lse" else 0)
        assert torch.equal(x, expected), name
    like = {"out": inputs.dout, "dq": inputs.q, "dk": inputs.k, "dv": inputs.v}
    for name, model in like.items():
        assert model is None or actual[name].shape == model.shape, name


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_seeing_nothing_is_still_differentiable(case: TargetAttentionCase) -> None:
    inputs = case.build()
    q = inputs.q.requires_grad_()
    out, lse = inputs.call(stca.ops.target_attention)
    assert out.requires_grad
    assert lse.requires_grad
    assert torch.equal(torch.autograd.grad(out.sum() + lse.sum(), q)[0], torch.zeros_like(q))


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*TARGET_ATTENTION_SMALL, LONG], ids=str)
@pytest.mark.usefixtures("uninitialized_is_nan")
def test_no_uninitialized_memory_is_used(case: TargetAttentionCase, dtype: torch.dtype, isa: str) -> None:
    inputs = case.build(dtype)
    poisoned = inputs.results()
    torch.use_deterministic_algorithms(False)
    assert_bitwise_equal(poisoned, inputs.results())
    assert not any(x.isnan().any() for x in poisoned.values())


def _spans(offsets: Tensor) -> list[slice]:
    ends = pairwise(offsets.tolist())
    return [slice(begin, end) for begin, end in ends]


def _outside(span: slice, length: int) -> Tensor:
    return torch.tensor([not span.start <= i < span.stop for i in range(length)], dtype=torch.bool)


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("poison", NAN_AND_INFINITIES)
@pytest.mark.parametrize("case", [*SEPARATE, LONG], ids=str)
def test_other_requests_do_not_matter(case: TargetAttentionCase, poison: float, isa: str) -> None:
    """Whatever every other request holds, and whatever comes back for it, a request's bits stay the same."""
    clean = case.build()
    expected = clean.results()
    for targets, rows in zip(_spans(clean.target_offsets), _spans(clean.history_offsets), strict=True):
        dirty = case.build()
        for tensor in (dirty.q, dirty.dout, dirty.dlse):
            tensor[_outside(targets, len(tensor))] = poison
        for tensor in [dirty.k] if dirty.v is None else [dirty.k, dirty.v]:
            tensor[_outside(rows, len(tensor))] = poison
        own = {"out": targets, "lse": targets, "dq": targets, "dk": rows, "dv": rows}
        actual = {name: x[own[name]] for name, x in dirty.results().items()}
        assert_bitwise_equal(actual, {name: x[own[name]] for name, x in expected.items()})


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("poison", NAN_AND_INFINITIES)
@pytest.mark.parametrize("visible", ["random", "prefix", "suffix", "shared"])
@pytest.mark.parametrize("value_dim", [None, 3])
def test_rows_outside_visible_do_not_matter(value_dim: int | None, visible: str, poison: float, isa: str) -> None:
    case = TargetAttentionCase("", [(5, 70), (2, 700)], 4, 2, 5, value_dim, visible)
    clean = case.build()
    assert clean.visible is not None
    expected = clean.results()
    rows_of_request = _spans(clean.history_offsets)
    for t, (begin, end) in enumerate(clean.visible.tolist()):
        first = rows_of_request[0 if t < 5 else 1].start
        seen = slice(first + begin, first + end)
        dirty = case.build()
        for tensor in [dirty.k] if dirty.v is None else [dirty.k, dirty.v]:
            tensor[_outside(seen, len(tensor))] = poison
        actual = dirty.results()
        assert_bitwise_equal(
            {name: actual[name][t] for name in ("out", "lse", "dq")},
            {name: expected[name][t] for name in ("out", "lse", "dq")},
        )


@pytest.mark.parametrize("poison", NAN_AND_INFINITIES)
def test_rows_that_no_target_sees_get_no_gradient(poison: float, isa: str) -> None:
    case = TargetAttentionCase("", [(4, 900)], 2, 1, 5, 3, "shared")
    clean, dirty = case.build(), case.build()
    assert clean.visible is not None
    unseen = _outside(slice(int(clean.visible[:, 0].min()), int(clean.visible[:, 1].max())), 900)
    assert 0 < int(unseen.sum()) < 900
    assert dirty.v is not None
    dirty.k[unseen] = dirty.v[unseen] = poison
    actual = dirty.results()
    assert_bitwise_equal(actual, clean.results())
    assert not actual["dk"][unseen].any()
    assert not actual["dv"][unseen].any()


@pytest.mark.exhaustive(2)
@pytest.mark.parametrize("row", [0, 31, 256, 1500, 2999])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_in_a_seen_row_reaches_every_result(dtype: torch.dtype, row: int, isa: str) -> None:
    case = TargetAttentionCase("", [(2, 3000), (1, 4)], 2, 1, 4, 3)
    in_key, in_value = case.build(dtype), case.build(dtype)
    assert in_value.v is not None
    in_key.k[row, 0, 1] = torch.nan
    in_value.v[row, 0, 1] = torch.nan
    actual = in_key.results()
    for name in ("out", "lse", "dq"):
        assert actual[name][:2].isnan().all(), name
        assert actual[name][2:].isfinite().all(), name
    assert actual["dk"][:3000].isnan().all()
    assert in_value.results()["out"][:2, :, 1].isnan().all()
    assert in_value.results()["dq"][:2].isnan().all()


@pytest.mark.exhaustive
@pytest.mark.parametrize("scale", [1e6, -1e10, 2.0**63])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("targets", [1, 3, 40])
def test_scores_of_any_size_leave_the_largest_its_weight(
    targets: int, dtype: torch.dtype, scale: float, isa: str
) -> None:
    """What rounding takes from scores of 10^8 is much in an exponent: the largest one's weight is 2^0 all the same."""
    case = TargetAttentionCase("", [(targets, 300), (1, 1)], 2, 1, 17)
    inputs = case.build(dtype).but(scale=scale)
    actual = inputs.results()
    oracle = inputs.to(torch.float64).call(stca.reference.target_attention)[1]
    torch.testing.assert_close(actual["lse"].double(), oracle, rtol=32 * torch.finfo(torch.bfloat16).eps, atol=0)
    assert actual["out"].isfinite().all()
    assert actual["out"].any(dim=2).all()
    assert torch.equal(actual["out"][-1], inputs.k[-1].expand(2, 17))
    assert all(actual[name].isfinite().all() for name in ("dq", "dk"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinite_scores_do_not_give_finite_results(dtype: torch.dtype, isa: str) -> None:
    """As in torch.softmax, a score of +inf has no weight that could be told: NaN, not a number."""
    inputs = TargetAttentionCase("", [(2, 600)], 2, 1, 4, 3).build(dtype)
    inputs.k[77] = 0
    inputs.k[77, 0, 0] = torch.inf
    inputs.q[..., 0] = 1
    out, lse = inputs.call(stca.ops.target_attention)
    assert out.isnan().all()
    assert not lse.isfinite().any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_score_of_minus_infinity_has_weight_zero(dtype: torch.dtype, isa: str) -> None:
    inputs = TargetAttentionCase("", [(2, 600)], 2, 1, 4, 3, "suffix").build(dtype)
    assert inputs.v is not None
    inputs.q[..., 0] = 1
    inputs.visible = torch.tensor([[0, 600], [0, 600]])
    inputs.k[:200, 0, 0] = -torch.inf
    out, lse = inputs.call(stca.ops.target_attention)
    inputs.visible = torch.tensor([[200, 600], [200, 600]])
    expected_out, expected_lse = inputs.call(stca.ops.target_attention)
    torch.testing.assert_close(out, expected_out)
    torch.testing.assert_close(lse, expected_lse)


_GUARDED = """
import ctypes, mmap, sys, torch
sys.path.insert(0, sys.argv[1])
from cases import DTYPES, TARGET_ATTENTION, TargetAttentionCase
import stca

libc = ctypes.CDLL(None, use_errno=True)
kept = []

def guarded(x):
    "x copied to the very end of its pages, or to their very start, with an unreadable page beyond."
    size = x.numel() * x.element_size()
    pages = size // mmap.PAGESIZE + 3
    memory = mmap.mmap(-1, pages * mmap.PAGESIZE)
    kept.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages - 1):
        failed = libc.mprotect(ctypes.c_void_p(start + page * mmap.PAGESIZE), mmap.PAGESIZE, 0)
        assert failed == 0
    offset = mmap.PAGESIZE if at_start else (pages - 1) * mmap.PAGESIZE - size
    copy = torch.frombuffer(memory, dtype=x.dtype, count=x.numel(), offset=offset).view(x.shape)
    return copy.copy_(x)

for case in [case for case in TARGET_ATTENTION if case.name in sys.argv[3:]]:
    for dtype in DTYPES:
        for isa in sys.argv[2].split():
            for at_start in (False, True):
                stca.set_cpu_isa(isa)
                inputs = case.build(dtype)
                actual, expected = inputs.map(guarded).results(), inputs.results()
                assert all(torch.equal(actual[name], expected[name]) for name in expected)
                print("guarded")
"""


def test_nothing_is_read_beyond_the_tensors() -> None:
    """Every tensor ends, then starts, at an unreadable page: one element more would kill the process."""
    names = [
        "column-edges",
        "width-13",
        "width-1-3",
        "width-65-67",
        "Hk2-Dv5-random",
        "block-edges-reordered",
    ]
    assert {case.name for case in TARGET_ATTENTION} >= set(names)
    command = [sys.executable, "-c", _GUARDED, str(Path(cases.__file__).parent), " ".join(ISAS), *names]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("guarded") == len(names) * len(DTYPES) * len(ISAS) * 2
