"""Errors name the module, the argument and the value. What symbolic tracing does with the modules."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import offsets
from torch import Tensor, nn
from torch.fx.proxy import TraceError

from stca.nn import STCA, RankMixer, STCALayer, SwiGLUFFN, TargetAttention

X, ROWS = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
FLAT = X.view(6, 16), ROWS.view(10, 16), offsets([3, 3]), offsets([5, 5])


def _nested(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    parts = [*x] if lengths is None else list(torch.split(x, lengths.tolist()))
    return torch.nested.nested_tensor(parts, layout=torch.jagged)


RANGES = torch.zeros(2, 3, 2, dtype=torch.int64)
PADDED: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"target_lengths": torch.tensor([3, -1])},
        ValueError,
        "target_lengths must be from 0 to m = 3, got target_lengths[1] = -1",
    ),
    (
        {"target_lengths": torch.tensor([9, 0])},
        ValueError,
        "target_lengths must be from 0 to m = 3, got target_lengths[0] = 9",
    ),
    (
        {"history_lengths": torch.tensor([6, 2])},
        ValueError,
        "history_lengths must be from 0 to L = 5, got history_lengths[0] = 6",
    ),
    (
        {"history_lengths": torch.tensor([2, -7], dtype=torch.int32), "visible": RANGES},
        ValueError,
        "history_lengths must be from 0 to L = 5, got history_lengths[1] = -7",
    ),
    ({"history_lengths": [3, 4]}, TypeError, "history_lengths must be a Tensor, got list [3, 4]"),
    ({"target_lengths": 3}, TypeError, "target_lengths must be a Tensor, got int 3"),
    ({"visible": [[0, 1]]}, TypeError, "visible must be a Tensor, got list [[0, 1]]"),
    ({"visible": _nested(RANGES)}, ValueError, "visible must be nested only where targets are, got [2, 3, 16] targets"),
    ({"visible": RANGES + 9, "history_lengths": torch.tensor([3, 4])}, ValueError, "visible[0] must be"),
    ({"visible": RANGES - 1, "target_lengths": torch.tensor([3, 3])}, ValueError, "visible[0] must be"),
]


@pytest.mark.parametrize(("options", "error", "message"), PADDED)
def test_padded_inputs_that_are_wrong(options: dict[str, Any], error: type[Exception], message: str) -> None:
    for module in (STCA(16, 1, 2), TargetAttention(16, 2)):
        with pytest.raises(error, match=re.escape(message)) as raised:
            module(X, ROWS, **options)
        assert str(raised.value).startswith((f"{type(module).__name__}: ", "target_attention: "))


@pytest.mark.parametrize(
    "name", ["targets", "history", "target_offsets", "history_offsets", "visible", "history_index"]
)
@pytest.mark.parametrize("value", [[1, 2], 7, "abc"])
def test_what_is_no_tensor(name: str, value: Any) -> None:
    arguments = {
        **dict(zip(("targets", "history", "target_offsets", "history_offsets"), FLAT, strict=True)),
        name: value,
    }
    for module in (STCA(16, 1, 2), TargetAttention(16, 2)):
        expected = f"{type(module).__name__}: {name} must be a Tensor, got {type(value).__name__} {value!r}"
        with pytest.raises(TypeError, match=f"^{re.escape(expected)}$"):
            module(**arguments)


def test_nothing_in_place_of_rows() -> None:
    model: Any = STCA(16, 1, 2)
    calls: tuple[tuple[Callable[[], Any], str], ...] = (
        (lambda: model(FLAT[0], None, *FLAT[2:]), "STCA: history"),
        (lambda: model(None, *FLAT[1:]), "STCA: targets"),
        (lambda: model.encode_history(None), "STCA.encode_history: history"),
        (lambda: model.encode_history([1.0]), "STCA.encode_history: history"),
        (lambda: model.attend(FLAT[0], [None], *FLAT[2:]), r"STCA.attend: encoded\[0\]"),
        (lambda: SwiGLUFFN(16)([1.0]), "SwiGLUFFN: x"),
        (lambda: RankMixer(4, 16)(None), "RankMixer: tokens"),
    )
    for call, name in calls:
        with pytest.raises(TypeError, match=f"^{name} must be a Tensor, got "):
            call()


def test_what_is_kept_for_serving() -> None:
    model: Any = STCA(16, 2, 2)
    with pytest.raises(TypeError, match=r"STCA\.attend: encoded must be a sequence of tensors, got int 7"):
        model.attend(FLAT[0], 7, *FLAT[2:])
    encoded = model.encode_history(FLAT[1])
    with pytest.raises(ValueError, match=r"STCA.encode_history: history must be \[N, D\] with D = 16, got \[10, 8\]"):
        model.encode_history(FLAT[1][:, :8])
    with pytest.raises(ValueError, match=r"STCA.encode_history: history must be \[N, D\] with D = 16, got nested"):
        model.encode_history(_nested(ROWS))
    with pytest.raises(ValueError, match=r"encoded\[1\] must be \[10, 16\], as encoded\[0\], got \[9, 16\]"):
        model.attend(FLAT[0], [encoded[0], encoded[1][:9]], *FLAT[2:])
    with pytest.raises(ValueError, match="history must be None where encoded is given, got both"):
        model(*FLAT, encoded=encoded)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_nested_visible_is_the_flat_one(kind: torch.dtype) -> None:
    model, counts = STCA(16, 1, 2), torch.tensor([4, 2])
    visible = torch.tensor([[0, 5], [1, 3], [2, 2], [0, 1], [4, 5], [0, 2]], dtype=kind)
    x, rows = _nested(FLAT[0], counts), _nested(ROWS)
    expected = model(*FLAT[:2], offsets([4, 2]), FLAT[3], visible=visible)
    for each in (visible, _nested(visible, counts)):
        assert torch.equal(model(x, rows, visible=each).values(), expected)
    with pytest.raises(
        ValueError, match=r"nested visible must have the offsets of targets, \[0, 4, 6\], got \[0, 3, 6\]"
    ):
        model(x, rows, visible=_nested(visible, torch.tensor([3, 3])))
    strided = torch.nested.nested_tensor([*torch.split(visible, [4, 2])])
    with pytest.raises(ValueError, match=r"nested visible must have layout torch\.jagged"):
        model(x, rows, visible=strided)


SIZES: list[tuple[Callable[[], Any], str]] = [
    (lambda: TargetAttention(0, 1), "TargetAttention: dim must be at least 1, got 0"),
    (lambda: TargetAttention(-4, 2), "TargetAttention: dim must be at least 1, got -4"),
    (lambda: TargetAttention(8, 0), "TargetAttention: num_heads must divide dim = 8, got 0"),
    (lambda: RankMixer(4, 16, ffn_ratio=0), "RankMixer: dim and ffn_ratio * dim must be at least 1, got 16 and 0"),
    (lambda: RankMixer(4, 16, ffn_ratio=0.05), "RankMixer: dim and ffn_ratio * dim must be at least 1, got 16 and 0.8"),
    (lambda: RankMixer(4, 0), "RankMixer: dim and ffn_ratio * dim must be at least 1, got 0 and 0"),
    (lambda: RankMixer(4, 16, num_layers=0), "RankMixer: num_layers must be at least 1, got 0"),
    (lambda: SwiGLUFFN(0), "SwiGLUFFN: dim and ffn_ratio * dim must be at least 1, got 0 and 0"),
    (lambda: SwiGLUFFN(8, -1), "SwiGLUFFN: dim and ffn_ratio * dim must be at least 1, got 8 and -8"),
    (lambda: SwiGLUFFN(8, float("nan")), "SwiGLUFFN: dim and ffn_ratio * dim must be at least 1, got 8 and nan"),
    (lambda: STCA(0, 1, 1), "SwiGLUFFN: dim and ffn_ratio * dim must be at least 1, got 0 and 0"),
    (lambda: STCA(8, 1, 2, ffn_ratio=0), "SwiGLUFFN: dim and ffn_ratio * dim must be at least 1, got 8 and 0"),
    (lambda: STCA(8, -1, 2), "STCA: num_layers must be at least 1, got -1"),
    (lambda: STCALayer(8, 2, position=0), "STCALayer: position must be at least 1, got 0"),
]


@pytest.mark.parametrize(("build", "message"), SIZES)
def test_sizes_that_no_module_has(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build()


class _Ranker(nn.Module):
    """Modules of every kind among torch's own, in every way of calling them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 16)
        self.stca = STCA(16, 2, 2)
        self.parts = nn.ModuleList([TargetAttention(16, 2), SwiGLUFFN(16), RankMixer(2, 16)])

    def forward(self, x: Tensor, rows: Tensor, targets: Tensor, own: Tensor) -> Tensor:
        x, rows = self.embed(x).relu(), self.embed(rows)
        z = self.stca(x, rows, target_offsets=targets, history_offsets=own)
        served = self.stca.attend(x, self.stca.encode_history(rows), targets, own)
        attention, ffn, mixer = self.parts
        tokens = torch.stack([z + served, ffn(attention(x, rows, targets, own))], dim=1)
        y: Tensor = mixer(tokens)
        return y


class _NoLeaves(torch.fx.Tracer):
    """As torchrec's, which looks into every module that it does not know."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return False


@pytest.mark.parametrize("tracer", [torch.fx.Tracer, _NoLeaves])
def test_traced_as_parts_of_a_model(tracer: type[torch.fx.Tracer]) -> None:
    model = _Ranker()
    args = torch.randn(6, 4), torch.randn(10, 4), *FLAT[2:]
    traced = torch.fx.GraphModule(model, tracer().trace(model))
    called = [node.target for node in traced.graph.nodes if node.op == "call_module" and node.target != "embed"]
    assert called == ["stca"] * 3 + ["parts.0", "parts.1", "parts.2"]
    assert torch.equal(traced(*args), model(*args))
    grads = [torch.autograd.grad(each(*args).square().sum(), list(model.parameters())) for each in (traced, model)]
    assert all(map(torch.equal, *grads))


@pytest.mark.parametrize("build", [lambda: STCA(16, 1, 2), lambda: TargetAttention(16, 2), lambda: SwiGLUFFN(16)])
def test_the_root_cannot_be_traced(build: Callable[[], nn.Module]) -> None:
    module = build()
    name = type(module).__name__
    with pytest.raises(TraceError, match=f"^{name}: .* must be a Tensor, got Proxy.*trace a model that contains"):
        torch.fx.symbolic_trace(module)


class _Doubled(STCA):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return 2 * super().forward(*args, **kwargs)


def test_a_subclass_is_one_call_with_all_it_adds() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Identity())
    model[1] = _Doubled(8, 1, 2)
    rows, own = torch.randn(10, 8), {"target_offsets": offsets([3, 3]), "history_offsets": offsets([5, 5])}

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, x: Tensor, rows: Tensor) -> Tensor:
            y: Tensor = self.parts[1](self.parts[0](x), rows, **own)
            return y

    whole, x = Model(), torch.randn(6, 4)
    assert torch.equal(torch.fx.symbolic_trace(whole)(x, rows), whole(x, rows))


def test_a_traced_model_goes_on_to_be_compiled_and_traced_again() -> None:
    model = _Ranker()
    args = torch.randn(6, 4), torch.randn(10, 4), *FLAT[2:]
    traced = torch.fx.symbolic_trace(torch.fx.symbolic_trace(model))
    torch.testing.assert_close(torch.compile(traced, backend="aot_eager")(*args), model(*args))
