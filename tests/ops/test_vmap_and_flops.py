"""The operators under torch.func.vmap and its Jacobians, and what FlopCounterMode counts of them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from cases import TARGET_ATTENTION_SMALL, TargetAttentionCase, offsets, swiglu_inputs
from registered import OPS, assert_has_each
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, jacrev, vmap
from torch.utils.flop_counter import FlopCounterMode

import stca

pytestmark = pytest.mark.filterwarnings("error:There is a performance drop")

AT = offsets([1, 0, 2])
INDEX, KEEP = torch.tensor([2, 0, 2, 1]), torch.tensor([1, 5, 2, 3])
Q, K = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(5, 1, 4, dtype=torch.float64)
WEIGHTS = list(swiglu_inputs(1, 4, 6).values())[1:]
ROWS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {  # of x [rows, 4], by the number of rows
    "request_gather": (lambda x: stca.ops.request_gather(x, AT), 3),
    "request_gather of several": (lambda x: stca.ops.request_gather([x[:, 0], torch.ones(3), x], AT, total=3)[2], 3),
    "request_reduce": (lambda x: stca.ops.request_reduce(x, AT), 3),
    "request_reduce mean": (lambda x: stca.ops.request_reduce(x, AT, "mean"), 3),
    "jagged_select": (lambda x: stca.ops.jagged_select(x, AT, INDEX, KEEP)[0], 3),
    "target_attention": (lambda x: stca.ops.target_attention(x[:, None], K, None, AT, offsets([2, 3, 0])), 3),
    "swiglu_ffn_norm": (lambda x: stca.ops.swiglu_ffn_norm(x, *WEIGHTS), 3),
}


def test_every_operator_is_mapped() -> None:
    assert_has_each({name.split()[0] for name in ROWS}, OPS, "tests/ops/test_vmap_and_flops.py: ROWS")


@pytest.mark.parametrize("name", ROWS)
def test_vmap_and_jacobians(name: str) -> None:
    f, rows = ROWS[name]
    xs = torch.randn(2, 5, rows, 4, dtype=torch.float64)
    each = torch.stack([torch.stack([f(x) for x in row]) for row in xs])
    assert torch.equal(vmap(vmap(f))(xs), each)
    assert torch.equal(vmap(f, in_dims=2)(xs[0].movedim(0, 2)), each[0])
    assert torch.equal(vmap(f, out_dims=1)(xs[0]), each[0].movedim(0, 1))
    assert torch.equal(vmap(lambda x, _: f(x), in_dims=(None, 0))(xs[0, 0], xs[0]), each[0, :1].expand_as(each[0]))

    def loss(x: Tensor) -> Tensor:
        return f(x).square().sum()

    gradients = torch.stack([torch.autograd.functional.jacobian(loss, x) for x in xs[0]])  # type: ignore[no-untyped-call]
    assert bool(gradients.any())
    assert torch.equal(vmap(grad(loss))(xs[0]), gradients)
    one = torch.autograd.functional.jacobian(f, xs[0, 0])  # type: ignore[no-untyped-call]
    assert torch.equal(jacrev(f)(xs[0, 0]), one)
    assert torch.equal(torch.autograd.functional.jacobian(f, xs[0, 0], vectorize=True), one)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", [name for name in ROWS if "_attention" not in name and "swiglu" not in name])
def test_second_derivatives(name: str) -> None:
    f, rows = ROWS[name]
    x = torch.randn(rows, 4, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return f(x).pow(3).sum()

    expected = torch.autograd.functional.hessian(loss, x)  # type: ignore[no-untyped-call]
    assert bool(expected.any())
    torch.testing.assert_close(jacrev(jacrev(loss))(x), expected)


def test_a_batch_of_offsets_or_indices() -> None:
    """Each member is a call of its own, and says so where they do not give as many rows."""
    x, ats = torch.randn(4, 3), torch.stack([offsets([1, 0, 2]), offsets([0, 3, 0])])
    calls: list[Callable[..., Tensor]] = [
        lambda x, at: stca.ops.request_gather(x, at, total=3),
        lambda x, at: stca.ops.request_gather(x, at),
        lambda x, at: stca.ops.request_reduce(x, at, "mean"),
    ]
    for f in calls:
        xs: Tensor = x[:2]
        each = torch.stack([f(a, at) for a, at in zip(xs, ats, strict=True)])
        assert torch.equal(vmap(f)(xs, ats), each)
        assert torch.equal(vmap(f, in_dims=(None, 0))(x[0], ats), torch.stack([f(x[0], at) for at in ats]))

        def loss(a: Tensor, at: Tensor, f: Callable[..., Tensor] = f) -> Tensor:
            return f(a, at).square().sum()

        gradients = torch.stack([grad(loss)(a, at) for a, at in zip(xs, ats, strict=True)])
        assert torch.equal(vmap(grad(loss))(xs, ats), gradients)
    index = torch.tensor([[0, 2], [2, 0]])
    selected, ends = vmap(lambda i: stca.ops.jagged_select(x[0], AT, i))(index)
    for i in range(2):
        expected = stca.ops.jagged_select(x[0], AT, index[i])
        assert torch.equal(selected[i], expected[0])
        assert torch.equal(ends[i], expected[1])
    with pytest.raises(ValueError, match="request_gather: under vmap all members must give as many rows, got shapes"):
        vmap(lambda at: stca.ops.request_gather(x[0, :1], at))(torch.tensor([[0, 1], [0, 2]]))
    with pytest.raises(ValueError, match="request_gather: under vmap there must be a member, got a dimension"):
        vmap(lambda at: stca.ops.request_gather(x[0, :1], at))(torch.zeros(0, 2, dtype=torch.int64))


@pytest.mark.parametrize("recompute", [True, False, "auto"])
def test_a_batch_of_attention(recompute: Any) -> None:
    """Whatever differs between the members, and however many scores each has: the bits of a call for each."""
    q, k = torch.randn(2, 40, 2, 4), torch.randn(2, 30, 1, 4)
    at, ends = torch.stack([offsets([25, 15]), offsets([0, 40])]), torch.stack([offsets([10, 20]), offsets([30, 0])])
    both = q, k, at, ends

    def loss(q: Tensor, k: Tensor, at: Tensor, ends: Tensor) -> Tensor:
        return stca.ops.target_attention(q, k, None, at, ends, recompute=recompute).square().sum()

    for dims in ((0, 0, 0, 0), (None, None, 0, None), (None, None, None, 0), (0, None, None, None), (None, 0, 0, 0)):
        args = [x if dim == 0 else x[0] for x, dim in zip(both, dims, strict=True)]
        members = [[x if dim is None else x[i] for x, dim in zip(args, dims, strict=True)] for i in range(2)]
        together = vmap(grad(loss, argnums=(0, 1)), in_dims=dims)(*args)
        for i, member in enumerate(members):
            leaves = [x.detach().requires_grad_() for x in member[:2]]
            expected = torch.autograd.grad(loss(*leaves, *member[2:]), leaves)
            for actual, one in zip(together, expected, strict=True):
                assert torch.equal(actual[i], one)
        losses = vmap(loss, in_dims=dims)(*(x.requires_grad_(x.is_floating_point()) for x in args))
        sums = torch.autograd.grad(losses.sum(), args[:2])
        for dim, actual, summed in zip(dims, together, sums, strict=False):
            torch.testing.assert_close(summed, actual if dim == 0 else actual.sum(0))
        for x in both[:2]:
            x.requires_grad_(False)


def test_gradients_of_each_sample_of_a_stack() -> None:
    model = stca.nn.STCA(8, num_layers=1, num_heads=2).double()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    xs, hs = torch.randn(3, 3, 8, dtype=torch.float64), torch.randn(3, 5, 8, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], x: Tensor, h: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(model, parameters, (x, h, AT, offsets([2, 3, 0])))
        return y.square().sum()

    together = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, xs, hs)
    for i in range(3):
        for name, expected in grad(loss)(parameters, xs[i], hs[i]).items():
            torch.testing.assert_close(together[name][i], expected)


def _counted(f: Callable[[], Any]) -> dict[str, int]:
    with FlopCounterMode(display=False) as counter:
        f()
    return {str(op).removeprefix("stca."): n for op, n in counter.get_flop_counts().get("Global", {}).items()}


@pytest.mark.parametrize("case", TARGET_ATTENTION_SMALL, ids=str)
def test_flops_of_attention(case: TargetAttentionCase) -> None:
    """2 FLOPs for each multiplication and addition, of the targets with the rows that they see and no others."""
    inputs = case.build()
    rows = torch.tensor([n for m, n in case.requests for _ in range(m)])
    seen = int(rows.sum() if inputs.visible is None else inputs.visible.diff(dim=1).sum())
    H, Dk, Dv = case.heads, case.key_dim, case.value_dim or case.key_dim
    counted = _counted(inputs.results)
    assert counted["target_attention"] == 2 * H * (Dk + Dv) * seen
    assert counted["target_attention_backward"] == 2 * H * (3 * Dk + 2 * Dv) * seen
    q = inputs.q.requires_grad_()
    frozen = _counted(lambda: inputs.but(q=q).call(stca.ops.target_attention)[0].sum().backward())  # type: ignore[no-untyped-call]
    assert frozen["target_attention_backward"] == 2 * H * (2 * Dk + Dv) * seen


def test_tensors_without_values_count_as_requests_that_are_alike() -> None:
    q, k, at = torch.randn(12, 2, 8), torch.randn(60, 1, 8), torch.zeros(4, dtype=torch.int64)
    fake = FakeTensorMode()
    for change in (lambda x: x.to("meta"), fake.from_tensor):
        inputs: list[Any] = [change(x) for x in (q, k, at)]
        counted = _counted(partial(stca.ops.target_attention, *inputs[:2], None, inputs[2], inputs[2]))
        assert counted == {"target_attention": 2 * 2 * 16 * 12 * 20}


@pytest.mark.parametrize("norm", [0, 2])
@pytest.mark.parametrize("frozen", [False, True])
def test_flops_of_the_network(frozen: bool, norm: int) -> None:
    inputs = {name: x.requires_grad_() for name, x in swiglu_inputs(50, 8, 12, norm, torch.float32).items()}
    inputs["x"].requires_grad_(not frozen)
    dy = torch.randn(50, 8)
    dy[:20] = 0
    counted = _counted(lambda: stca.ops.swiglu_ffn_norm(**inputs).backward(dy))  # type: ignore[no-untyped-call]
    assert counted["swiglu_ffn_norm"] == 6 * 50 * 8 * 12
    assert counted["swiglu_ffn_norm_backward"] == 2 * (6 if frozen else 8) * 30 * 8 * 12
    half = {name: x.detach().bfloat16().requires_grad_() for name, x in inputs.items()}
    counted = _counted(lambda: stca.ops.swiglu_ffn_norm(**half).backward(dy.bfloat16()))  # type: ignore[no-untyped-call]
    assert counted["swiglu_ffn_norm_backward"] == 2 * (8 + (norm > 0)) * 30 * 8 * 12  # the norm's input again


@pytest.mark.parametrize("order", ["reordered", "projected"])
def test_flops_of_a_stack_by_the_papers_formulas(order: Any) -> None:
    """Per layer and request: history FFN 6 L D F; attention 4 L D H m reordered; 4 L D^2 and 4 L D m projected."""
    D, H, R, m, L, layers = 64, 4, 3, 2, 500, 2
    model = stca.nn.STCA(D, num_layers=layers, num_heads=H, order=order)
    F = model.output_ffn.w_u.shape[1]
    call = torch.randn(R * m, D), torch.randn(R * L, D), torch.arange(R + 1) * m, torch.arange(R + 1) * L
    with torch.no_grad():
        counted = _counted(lambda: model(*call))
    small = 6 * R * m * D * F * (layers + 1)  # the networks of the targets
    assert counted["swiglu_ffn_norm"] == layers * R * 6 * L * D * F + small
    attention = 4 * L * D * H * m if order == "reordered" else 4 * L * D * m
    assert counted["target_attention"] == layers * R * attention
    products = sum(n for op, n in counted.items() if op.startswith("aten."))
    history = layers * R * 4 * L * D * D if order == "projected" else 0
    assert history <= products <= history + layers * R * m * 2 * D * D * (2 * H + 4) + 2 * R * m * 9 * D * D
