"""order="auto" weighs FLOPs with costs that were measured once, kept, and can be replaced."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import stca
from stca.nn import OrderCosts, TargetAttention, order_costs
from stca.nn import order as order_module

CPU = torch.device("cpu")


@pytest.fixture
def cache_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of an empty cache, and nothing remembered."""
    monkeypatch.delenv("STCA_ORDER_COSTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    order_module._costs.cache_clear()
    yield tmp_path / "stca" / "order.json"
    order_module._costs.cache_clear()


@pytest.mark.parametrize("training", [False, True])
def test_measured_once(cache_file: Path, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_rng_state()
    costs = order_costs(CPU, torch.float32, training)
    assert torch.equal(torch.get_rng_state(), before)
    assert costs.reordered > 0
    assert costs.projected > 0
    ((name, kept),) = json.loads(cache_file.read_text()).items()
    assert kept == list(costs)
    assert stca.cpu_isa() in name
    assert stca.__version__ in name
    assert "float32" in name
    order_module._costs.cache_clear()
    monkeypatch.setattr(order_module, "_measure", None)  # whatever calls it fails
    assert order_costs(CPU, torch.float32, training) == costs


@pytest.mark.parametrize("text", ["", "no json", "[1, 2]", '{"a": 3}', '{"a": [1]}'])
def test_a_file_of_something_else_is_measured_again(cache_file: Path, text: str) -> None:
    cache_file.parent.mkdir()
    cache_file.write_text(text)
    costs = order_costs(CPU, torch.float32, False)
    assert list(costs) in json.loads(cache_file.read_text()).values()


def test_a_place_that_cannot_be_written(cache_file: Path) -> None:
    cache_file.parent.write_text("a file where the folder should be")
    costs = order_costs(CPU, torch.float32, False)
    assert order_costs(CPU, torch.float32, False) == costs


@pytest.mark.parametrize("text", ["fast", "1", "1,2,3", "1,0", "-1,1", "nan,1"])
def test_what_is_given_is_checked(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STCA_ORDER_COSTS", text)
    with pytest.raises(ValueError, match=r"^STCA_ORDER_COSTS must be two positive numbers"):
        order_costs(CPU, torch.float32, False)


def test_costs_decide_near_the_crossover(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = TargetAttention(256, 8)
    monkeypatch.setenv("STCA_ORDER_COSTS", "2,1")
    assert attention.chosen_order(20, 100_000, 1) == "projected"
    monkeypatch.setenv("STCA_ORDER_COSTS", "1,4")
    assert attention.chosen_order(60, 100_000, 1) == "reordered"


def test_every_size_has_its_own_costs(cache_file: Path) -> None:
    narrow, wide = (order_costs(CPU, torch.float32, False, dim, 4) for dim in (32, 64))
    kept = json.loads(cache_file.read_text())
    assert {name[-8:]: costs for name, costs in kept.items()} == {"D=32 H=4": list(narrow), "D=64 H=4": list(wide)}


@pytest.mark.parametrize(("dim", "heads"), [(10, 3), (0, 1), (8, 0)])
def test_sizes_that_no_module_has(dim: int, heads: int) -> None:
    with pytest.raises(ValueError, match=rf"^order_costs: heads must divide dim, got dim {dim} and heads {heads}$"):
        order_costs(CPU, torch.float32, False, dim, heads)


def test_one_head(cache_file: Path) -> None:
    costs = order_costs(CPU, torch.float32, True, 1, 1)
    assert costs.reordered > 0
    assert costs.projected > 0


def test_clear_and_small_cases_are_not_measured(cache_file: Path) -> None:
    assert TargetAttention(256, 8).chosen_order(2, 100_000, 1) == "reordered"
    assert TargetAttention(256, 8).chosen_order(300, 30, 1) == "projected"
    assert not cache_file.exists()


def test_nothing_is_measured_while_torch_compiles(cache_file: Path) -> None:
    attention = TargetAttention(64, 4)
    x, rows = torch.randn(60, 64), torch.randn(4000, 64)
    offsets = torch.tensor([0, 60]), torch.tensor([0, 4000])
    torch.compiler.reset()
    compiled = torch.compile(attention, fullgraph=True)(x, rows, *offsets)
    assert not cache_file.exists()
    torch.testing.assert_close(compiled, attention(x, rows, *offsets), rtol=1e-4, atol=1e-5)
    assert cache_file.exists()


def test_nothing_is_measured_inside_a_transform(cache_file: Path) -> None:
    def loss(x: torch.Tensor) -> torch.Tensor:
        assert order_costs(CPU, torch.float32, True) == OrderCosts(1, 1)
        return x.sum()

    torch.func.grad(loss)(torch.ones(2))
    assert not cache_file.exists()


def test_tensors_without_values_are_not_measured(cache_file: Path) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert order_costs(CPU, torch.float32, False) == OrderCosts(1, 1)
    assert not cache_file.exists()
