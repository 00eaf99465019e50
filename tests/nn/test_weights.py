"""Where weights come from: what meta tensors are filled with, and what other modules' weights bring along."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import stca
from stca.nn import STCA, RankMixer, STCALayer, SwiGLUFFN, TargetAttention

MODULES: dict[type[nn.Module], Any] = {
    STCA: lambda **kind: STCA(16, num_layers=3, num_heads=2, use_lse=True, final_norm=True, **kind),
    STCALayer: lambda **kind: STCALayer(16, 2, position=3, **kind),
    RankMixer: lambda **kind: RankMixer(4, 16, **kind),
    SwiGLUFFN: lambda **kind: SwiGLUFFN(16, norm=True, **kind),
    TargetAttention: lambda **kind: TargetAttention(16, 2, bias=True, **kind),
}


def _reset(model: Any) -> None:
    for part in model.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()


def test_every_exported_module_is_built_here() -> None:
    assert {each.__name__ for each in MODULES} == {*stca.nn.__all__} - {"Keep"}  # a type


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("kind", MODULES)
def test_meta_to_empty_reset(kind: type[nn.Module], sharded: bool, request: pytest.FixtureRequest) -> None:
    with torch.device("meta"):
        model = MODULES[kind]()
    if sharded:
        fully_shard(model, mesh=request.getfixturevalue("mesh"))
    assert isinstance(model, nn.Module)
    model.to_empty(device="cpu")
    for p in model.parameters():
        nn.init.constant_(p, torch.nan)
    _reset(model)
    fresh = MODULES[kind]()
    for (name, p), like in zip(model.named_parameters(), fresh.parameters(), strict=True):
        values = p.detach().full_tensor() if sharded else p.detach()  # type: ignore[attr-defined]
        assert values.isfinite().all(), name
        if like.std() == 0:  # biases and weights of norms
            assert torch.equal(values, like), name
        else:  # each has 256 values or more, 96 of w_l
            torch.testing.assert_close(values.std(), like.std().detach(), rtol=0.25, atol=0, msg=name)


def test_a_part_resets_its_own_weights_and_no_others() -> None:
    for build in MODULES.values():
        model = build()
        for part in model.modules():
            if hasattr(part, "reset_parameters"):
                before = {name: p.clone() for name, p in model.named_parameters()}
                for p in part.parameters(recurse=False):
                    nn.init.constant_(p, torch.nan)
                part.reset_parameters()
                own = {id(p) for p in part.parameters(recurse=False)}
                for name, p in model.named_parameters():
                    assert p.isfinite().all(), name
                    assert id(p) in own or torch.equal(p, before[name]), name


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", ["in_proj", "out_proj", "in_proj_weight", "out_proj.bias", "none", "all"])
@pytest.mark.parametrize("training", [False, True])
def test_frozen_stays_frozen(frozen: str, bias: bool, training: bool) -> None:
    mha = nn.MultiheadAttention(16, 4, bias=bias, dtype=torch.float64).train(training)
    for name, p in mha.named_parameters():
        p.requires_grad_(not (name.startswith(frozen) or frozen == "all"))
    trained = {name: p.requires_grad for name, p in mha.named_parameters()}
    before = {name: p.clone() for name, p in mha.named_parameters()}
    taken = TargetAttention.from_multihead_attention(mha)
    assert taken.training == training
    sources = {"w_q": "in_proj_weight", "w_k": "in_proj_weight", "w_v": "in_proj_weight", "w_o": "out_proj.weight"}
    if bias:
        sources |= {"b_q": "in_proj_bias", "b_v": "in_proj_bias", "b_o": "out_proj.bias"}
    assert {n: p.requires_grad for n, p in taken.named_parameters()} == {n: trained[sources[n]] for n in sources}
    assert all(p.is_leaf for p in taken.parameters())
    nn.init.zeros_(taken.w_q.requires_grad_(False))
    for name, p in mha.named_parameters():
        assert torch.equal(p, before[name]), name  # nothing is shared
        assert p.requires_grad == trained[name]


class _Scaled(nn.MultiheadAttention):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out, weights = super().forward(*args, **kwargs)
        return 2 * out, weights


class _Named(nn.MultiheadAttention):
    """A subclass that computes the same."""


def _other(mha: nn.MultiheadAttention, **parts: Any) -> nn.MultiheadAttention:
    for name, part in parts.items():
        setattr(mha, name, part)
    return mha


@pytest.mark.parametrize(
    ("mha", "error", "message"),
    [
        (nn.Linear(4, 4), TypeError, "mha must be a torch.nn.MultiheadAttention, got Linear"),
        (None, TypeError, "mha must be a torch.nn.MultiheadAttention, got NoneType"),
        (nn.MultiheadAttention, TypeError, "mha must be a torch.nn.MultiheadAttention, got type"),
        (TargetAttention(16, 4), TypeError, "mha must be a torch.nn.MultiheadAttention, got TargetAttention"),
        (_Scaled(16, 4), ValueError, "must compute what .* got _Scaled with its own forward"),
        (
            _other(nn.MultiheadAttention(16, 4), in_proj_bias=None),
            ValueError,
            r"both of in_proj_bias and out_proj.bias or neither, got \[False, True\]",
        ),
        (
            _other(nn.MultiheadAttention(16, 4), out_proj=nn.Linear(16, 16, dtype=torch.float64)),
            ValueError,
            "out_proj must have the dtype .* torch.float32 on cpu, got torch.float64 on cpu",
        ),
    ],
)
def test_weights_of_something_else(mha: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^TargetAttention\.from_multihead_attention: .*{message}"):
        TargetAttention.from_multihead_attention(mha)


def test_a_subclass_and_a_parametrized_one_are_taken() -> None:
    mha = _Named(16, 4, bias=False, dtype=torch.float64, batch_first=True)
    nn.utils.parametrizations.weight_norm(mha, "in_proj_weight")
    x, rows = torch.randn(2, 3, 16, dtype=torch.float64), torch.randn(2, 7, 16, dtype=torch.float64)
    expected: Tensor = mha(x, rows, rows, need_weights=False)[0]
    torch.testing.assert_close(TargetAttention.from_multihead_attention(mha)(x, rows), expected)
