"""stca.nn modules inside what torch offers around modules: saving, compiling, exporting, autocast, many processes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import offsets
from processes import run_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from stca.nn import STCA, RankMixer, STCALayer, TargetAttention

TARGETS, ROWS = offsets([3, 1, 2]), offsets([9, 0, 14])


def _inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.randn(6, 16), torch.randn(23, 16), TARGETS, ROWS


def _gradients(
    model: Callable[..., Tensor], parameters: Iterator[Tensor], *args: Tensor, **options: Any
) -> list[Tensor]:
    return list(torch.autograd.grad(model(*args, **options).square().sum(), list(parameters)))


def test_state_dict_round_trip(tmp_path: Path) -> None:
    model, args = STCA(16, 2, 4), _inputs()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = STCA(16, 2, 4)
    assert not torch.equal(other(*args), model(*args))
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
    assert torch.equal(other(*args), model(*args))


def test_shared_networks_are_saved_and_counted_once() -> None:
    model, twice = STCA(16, 1, 2, share_ffn=True), STCA(16, 1, 2)
    layer = model.layers[0]
    assert isinstance(layer, STCALayer)
    ffn = sum(p.numel() for p in layer.history_ffn.parameters())
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in twice.parameters()) - ffn


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_into_one_graph(backend: str) -> None:
    model, args = STCA(16, 2, 4), _inputs()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(*args), model(*args))
    torch.testing.assert_close(
        _gradients(compiled, model.parameters(), *args),
        _gradients(model, model.parameters(), *args),
        rtol=1e-4,
        atol=1e-4,
    )


def test_padded_form_compiles_into_one_graph() -> None:
    model, x, rows = STCA(16, 2, 4), torch.randn(3, 4, 16), torch.randn(3, 7, 16)
    lengths = {"target_lengths": torch.tensor([4, 0, 2]), "history_lengths": torch.tensor([0, 7, 3])}
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, rows, **lengths), model(x, rows, **lengths))


def test_exports_for_any_number_of_rows() -> None:
    model, args = STCA(16, 2, 4).eval(), _inputs()
    dim = torch.export.Dim.DYNAMIC
    program = torch.export.export(model, args, dynamic_shapes=({0: dim}, {0: dim}, {0: dim}, {0: dim}))
    few = torch.randn(5, 16), torch.randn(31, 16), offsets([2, 1, 0, 2]), offsets([9, 0, 14, 8])
    many = torch.randn(300, 16), torch.randn(31, 16), offsets([300]), offsets([31])
    attention = TargetAttention(16, 4)
    assert [attention.chosen_order(m, 31, 1) for m in (2, 300)] == ["reordered", "projected"]
    for each in (args, few, many):
        torch.testing.assert_close(program.module()(*each), model(*each))


def test_autocast() -> None:
    model, args = STCA(16, 2, 4), _inputs()
    with torch.autocast("cpu", torch.bfloat16):
        z = model(*args)
    assert z.dtype == torch.bfloat16
    exact = model(*args)
    # A dozen roundings to 8 bits in a row, each of 2^-9 of values of about 1.
    assert (z - exact).abs().max() < 0.1 * exact.abs().max()
    z.float().square().sum().backward()
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters()
    )


def test_autocast_of_a_float64_model() -> None:
    """As everywhere in torch, autocast is for what is float32."""
    model, (x, rows, *rest) = STCA(16, 2, 4, dtype=torch.float64), _inputs()
    expected = model(x.double(), rows.double(), *rest)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x.double(), rows.double(), *rest), expected)


def test_checkpoint_keeps_less_and_gives_the_same_gradients() -> None:
    model = STCA(16, 2, 4)
    args = torch.randn(6, 16), torch.randn(500, 16), TARGETS, offsets([300, 0, 200])
    kept: dict[bool, int] = {}
    gradients = {}
    for checkpoint in (False, True):
        model.checkpoint = checkpoint
        sizes: list[int] = []

        def pack(x: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(x.nbytes)
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            z = model(*args)
        kept[checkpoint] = sum(sizes)
        gradients[checkpoint] = torch.autograd.grad(z.square().sum(), list(model.parameters()))
    torch.testing.assert_close(gradients[True], gradients[False])
    assert kept[True] < kept[False]


def _rank_case(*ranks: int) -> tuple[STCA, tuple[Tensor, ...]]:
    """The model, and what these ranks have of the batch, of 3 and 2 requests, together."""
    torch.manual_seed(0)
    targets, rows = [[3, 1, 2], [4, 0]], [[9, 0, 14], [30, 5]]
    model = STCA(16, 2, 4, use_lse=True, dtype=torch.float64)
    xs, histories = (
        [torch.randn(sum(lengths), 16, dtype=torch.float64) for lengths in parts] for parts in (targets, rows)
    )
    x, history = (torch.cat([parts[rank] for rank in ranks]) for parts in (xs, histories))
    joined = [offsets([n for rank in ranks for n in parts[rank]]) for parts in (targets, rows)]
    return model, (x, history, *joined)


def _distributed_gradients(rank: int) -> list[Tensor | None]:
    model, args = _rank_case(rank)
    parallel = nn.parallel.DistributedDataParallel(model)  # must live until backward is done
    parallel(*args).square().sum().backward()
    return [p.grad for p in model.parameters()]


def _sharded_gradients(rank: int) -> list[Tensor]:
    mesh = init_device_mesh("cpu", (2,))
    model, args = _rank_case(rank)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model(*args).square().sum().backward()
    return [p.grad.full_tensor() for p in model.parameters()]  # type: ignore[union-attr]


def _gradients_of_rank(rank: int) -> dict[str, Any]:
    return {"DistributedDataParallel": _distributed_gradients(rank), "FSDP2": _sharded_gradients(rank)}


def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    model, joined = _rank_case(0, 1)
    expected = [grad / 2 for grad in _gradients(model, model.parameters(), *joined)]  # ranks take the mean
    for rank in run_ranks(_gradients_of_rank, 2, tmp_path):
        torch.testing.assert_close(rank, dict.fromkeys(rank, expected), rtol=1e-10, atol=1e-12)


def test_device_and_dtype() -> None:
    assert {p.dtype for p in STCA(16, 2, 4, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    assert {p.device.type for p in STCA(16, 2, 4, device="meta").parameters()} == {"meta"}
    half = STCA(16, 2, 4, dtype=torch.bfloat16)
    x, rows, *rest = _inputs()
    assert half(x.bfloat16(), rows.bfloat16(), *rest).dtype == torch.bfloat16


def test_rank_mixer_equations() -> None:
    mixer = RankMixer(4, 8, num_layers=2, dtype=torch.float64)
    tokens = torch.randn(3, 4, 8, dtype=torch.float64)
    expected = []
    for x in tokens:
        for layer in mixer.layers:
            mixed = torch.stack([torch.cat([token[2 * k : 2 * k + 2] for token in x]) for k in range(4)])
            s: Tensor = layer.mix_norm(mixed + x)  # type: ignore[operator]
            rows = []
            for k in range(4):
                hidden = nn.functional.gelu(s[k] @ layer.w_in[k] + layer.b_in[k])  # type: ignore[index]
                rows.append(hidden @ layer.w_out[k] + layer.b_out[k])  # type: ignore[index]
            x = layer.ffn_norm(torch.stack(rows) + s)  # type: ignore[operator]
        expected.append(x.mean(dim=0))
    torch.testing.assert_close(mixer(tokens), torch.stack(expected))


def test_rank_mixer_refuses() -> None:
    with pytest.raises(ValueError, match="RankMixer: num_tokens must divide dim = 10, got 4"):
        RankMixer(4, 10)
    with pytest.raises(ValueError, match=r"RankMixer: tokens must be \[B, 4, 8\], got \[2, 3, 8\]"):
        RankMixer(4, 8)(torch.randn(2, 3, 8))
