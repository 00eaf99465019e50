"""stca.nn.STCA against its equations, its three forms of input, and what must not change a result."""

from typing import Any

import pytest
import torch
from cases import NAN_AND_INFINITIES, offsets
from torch import Tensor

import stca
from stca.nn import STCA

M_TARGETS, LENGTHS = [3, 0, 2, 4, 1], [5, 4, 0, 33, 1]
TARGETS, ROWS = offsets(M_TARGETS), offsets(LENGTHS)
T, N, D = sum(M_TARGETS), sum(LENGTHS), 12


def _inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(T, D, dtype=dtype, requires_grad=True), torch.randn(N, D, dtype=dtype, requires_grad=True)


def _visible() -> Tensor:
    length = torch.repeat_interleave(ROWS.diff(), TARGETS.diff())
    ends = torch.stack([(torch.rand(T) * (length + 1)).long() for _ in range(2)], dim=1)
    return ends.sort(dim=1).values


@pytest.mark.parametrize("order", ["reordered", "projected"])
@pytest.mark.parametrize(
    "options", [{}, {"share_ffn": True}, {"final_norm": True}, {"ffn_ratio": 3, "checkpoint": True}, {"use_lse": True}]
)
@pytest.mark.parametrize("ranges", [False, True])
def test_equations(order: Any, options: dict[str, Any], ranges: bool) -> None:
    model = STCA(D, 3, 2, order=order, dtype=torch.float64, **options)
    x, rows = _inputs()
    visible = _visible() if ranges else None
    leaves = [x, rows, *model.parameters()]
    weight = torch.randn(T, D, dtype=torch.float64)
    results = []
    for f in (model, lambda *args, **kwargs: stca.reference.stca_forward(model, *args, **kwargs)):
        z = f(x, rows, TARGETS, ROWS, visible=visible)
        results.append(
            [z.detach(), *torch.autograd.grad((z * weight).sum(), leaves, materialize_grads=True, allow_unused=True)]
        )
    for ours, oracle in zip(*results, strict=True):
        torch.testing.assert_close(ours, oracle, rtol=1e-8, atol=1e-9)


def _padded(values: Tensor, lengths: list[int]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(torch.split(values, lengths)), batch_first=True)


def test_flat_padded_and_nested_agree() -> None:
    model = STCA(D, 2, 3, dtype=torch.float64)
    x, rows = _inputs()
    flat = model(x, rows, TARGETS, ROWS)
    lengths = {"target_lengths": TARGETS.diff(), "history_lengths": ROWS.diff()}
    padded = model(_padded(x, M_TARGETS), _padded(rows, LENGTHS), **lengths)
    real = torch.arange(max(M_TARGETS)) < TARGETS.diff()[:, None]
    assert padded.shape == (len(M_TARGETS), max(M_TARGETS), D)
    assert torch.equal(padded[~real], torch.zeros_like(padded[~real]))
    nested = model(
        torch.nested.nested_tensor_from_jagged(x, TARGETS), torch.nested.nested_tensor_from_jagged(rows, ROWS)
    )
    assert nested.is_nested
    grads = []
    for z in (flat, padded[real], nested.values()):
        torch.testing.assert_close(z, flat)
        grads.append(torch.autograd.grad(z.square().sum(), [x, rows]))
    for other in grads[1:]:
        torch.testing.assert_close(other, grads[0])


def test_nested_with_holes_is_refused() -> None:
    """`torch.nested.narrow` takes a part of every row of a padded batch; its offsets may fit all the same."""
    model, rows = STCA(D, 2, 3), torch.randn(3, 7, D)
    history = torch.nested.narrow(rows, 1, torch.zeros(3).long(), torch.tensor([4, 1, 7]), layout=torch.jagged)
    targets = torch.nested.nested_tensor_from_jagged(torch.randn(5, D), offsets([2, 0, 3]))
    with pytest.raises(ValueError, match="STCA: nested history must have no holes between its rows"):
        model(targets, history)


def test_padded_without_lengths_and_with_visible() -> None:
    model = STCA(D, 2, 3, dtype=torch.float64)
    x, rows = torch.randn(2, 3, D, dtype=torch.float64), torch.randn(2, 7, D, dtype=torch.float64)
    visible = torch.tensor([[[0, 7], [2, 5], [3, 3]], [[0, 1], [1, 7], [6, 7]]])
    flat = x.view(6, D), rows.view(14, D), offsets([3, 3]), offsets([7, 7])
    assert torch.equal(model(x, rows).view(6, D), model(*flat))
    assert torch.equal(model(x, rows, visible=visible).view(6, D), model(*flat, visible=visible.view(6, 2)))
    cut = torch.minimum(visible, torch.tensor([4, 6])[:, None, None])
    z = model(x, rows, visible=visible, history_lengths=torch.tensor([4, 6]))
    assert torch.equal(z.view(6, D), model(*flat, visible=cut.view(6, 2)))


def test_wrong_forms() -> None:
    model, x, rows = STCA(D, 1, 2), torch.randn(2, 3, D), torch.randn(2, 7, D)
    nested = torch.nested.nested_tensor_from_jagged(x[0], offsets([1, 2]))
    bad: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((x, rows[0]), {}, r"STCA: targets and history must both be .* got \[2, 3, 12\] and \[7, 12\]"),
        ((nested, rows), {}, r"got nested and \[2, 7, 12\]"),
        ((x[0], rows[0]), {}, r"STCA: flat rows need target_offsets and history_offsets"),
        ((x, rows, offsets([3]), offsets([7])), {}, r"STCA: offsets must be None unless rows are flat"),
        (
            (x[0], rows[0], offsets([3]), offsets([7])),
            {"target_lengths": torch.tensor([3])},
            r"STCA: lengths must be None",
        ),
        ((x, rows[:1]), {}, r"STCA: history must be padded \[B, L, D\] with B = 2, got \[1, 7, 12\]"),
        ((x, rows), {"history_lengths": torch.tensor([7])}, r"STCA: history_lengths must be \[B\] = \[2\], got \[1\]"),
        ((x, rows), {"history_lengths": torch.tensor([7.5, 1])}, "STCA: history_lengths must be int32 or int64, got "),
        (
            (x, rows),
            {"target_lengths": torch.tensor([True, False])},
            "STCA: target_lengths must be int32 or int64, got",
        ),
        ((x, rows), {"visible": torch.zeros(3, 2, 2).long()}, r"STCA: visible must be \[B, m, 2\] = \[2, 3, 2\], got"),
        ((x, rows), {"history_index": torch.zeros(14).long()}, "STCA: history_index must be None unless rows are flat"),
        ((x[..., :6], rows), {}, r"STCA: targets must have rows of width D = 12, got \[2, 3, 6\]"),
        ((x, rows.view(2, 14, 6)), {}, r"STCA: history must have rows of width D = 12, got \[2, 14, 6\]"),
        # Twice as wide and half as many: the rows would fit the offsets.
        ((x[0], torch.randn(4, 24), offsets([3]), offsets([8])), {}, "STCA: history must have rows of width D = 12"),
        ((nested.mT, nested.mT), {}, r"STCA: targets must have rows of width D = 12, got \[2, 12, j\d+\]"),
        ((nested, torch.nested.nested_tensor([x[0]] * 2)), {}, "STCA: nested history must have layout torch.jagged"),
    ]
    for args, options, message in bad:
        with pytest.raises(ValueError, match=message):
            model(*args, **options)
    with pytest.raises(ValueError, match=r"STCA\.attend: encoded must hold 1 tensors, one a layer, got 2"):
        model.attend(x[0], [rows[0]] * 2, offsets([3]), offsets([7]))
    with pytest.raises(ValueError, match="STCA: num_layers must be at least 1, got 0"):
        STCA(D, 0)


def test_nothing_at_all() -> None:
    model = STCA(D, 2, 2)
    for targets, lengths in (([], []), ([0, 0], [4, 0]), ([2, 1], [0, 0])):
        x = torch.randn(sum(targets), D, requires_grad=True)
        rows = torch.randn(sum(lengths), D, requires_grad=True)
        z = model(x, rows, offsets(targets), offsets(lengths))
        z.sum().backward()
        assert z.shape == x.shape
        assert z.isfinite().all()
        assert rows.grad is not None
        assert (rows.grad == 0).all()


@pytest.mark.parametrize("poison", NAN_AND_INFINITIES)
def test_requests_do_not_touch_each_other(poison: float) -> None:
    model = STCA(D, 2, 2)
    x, rows = (each.detach() for each in _inputs(torch.float32))
    z = model(x, rows, TARGETS, ROWS)
    poisoned = rows.clone()
    poisoned[ROWS[3] : ROWS[4]] = poison
    assert torch.equal(model(x, poisoned, TARGETS, ROWS)[:5], z[:5])
    visible = torch.stack([torch.zeros(T, dtype=torch.int64), torch.repeat_interleave(ROWS.diff(), TARGETS.diff())], 1)
    visible[5:9] = torch.tensor([3, 20])
    inside = rows.clone()
    inside[ROWS[3] : ROWS[3] + 3] = poison
    inside[ROWS[3] + 20 : ROWS[4]] = poison
    assert torch.equal(model(x, inside, TARGETS, ROWS, visible=visible), model(x, rows, TARGETS, ROWS, visible=visible))


def test_order_of_rows_and_prefixes() -> None:
    model = STCA(D, 2, 2, dtype=torch.float64)
    x, rows = torch.randn(3, D, dtype=torch.float64), torch.randn(20, D, dtype=torch.float64)
    z = model(x, rows, offsets([3]), offsets([20]))
    torch.testing.assert_close(model(x, rows[torch.randperm(20)], offsets([3]), offsets([20])), z)
    prefix = model(x, rows, offsets([3]), offsets([20]), visible=torch.tensor([[0, 9]] * 3))
    torch.testing.assert_close(prefix, model(x, rows[:9], offsets([3]), offsets([9])))


def test_an_encoded_history_serves_later_requests() -> None:
    model = STCA(D, 3, 2)
    x, rows = _inputs(torch.float32)
    encoded = model.encode_history(rows)
    assert torch.equal(model.attend(x, encoded, TARGETS, ROWS), model(x, rows, TARGETS, ROWS))
    extended = [
        torch.cat(pair) for pair in zip(model.encode_history(rows[:30]), model.encode_history(rows[30:]), strict=True)
    ]
    for whole, parts in zip(encoded, extended, strict=True):
        torch.testing.assert_close(parts, whole)


def test_distinct_rows_are_the_expanded_history() -> None:
    model = STCA(D, 2, 2, dtype=torch.float64)
    x, rows = _inputs()
    distinct, index = rows[:6], torch.randint(0, 6, (N,))
    results = [
        model(x, distinct, TARGETS, ROWS, history_index=index),
        model(x, distinct[index], TARGETS, ROWS),
    ]
    torch.testing.assert_close(*results)
    grads = [torch.autograd.grad(z.square().sum(), [rows, *model.parameters()]) for z in results]
    torch.testing.assert_close(*grads)
