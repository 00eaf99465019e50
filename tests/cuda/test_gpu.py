"""What only a GPU can show: streams, graphs, no waiting for the device, sizes beyond 32 bits, and the module on top."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from accuracy import assert_bitwise_equal
from cases import TargetAttentionCase
from cuda_devices import families_of, needs_gpu, on_gpu
from torch import Tensor

import stca

pytestmark = needs_gpu

CASE = TargetAttentionCase("", [(3, 900), (2, 0), (0, 5), (5, 4000)], 4, 1, 64, None, "prefix", pool=700)


class Step(NamedTuple):
    """Forward and backward of an operator on the same inputs, and other values for them, offsets included."""

    run: Callable[[], dict[str, Tensor]]
    change: Callable[[], None]


def _attention() -> Step:
    inputs = CASE.build(torch.bfloat16).on(on_gpu)

    def change() -> None:
        inputs.q.mul_(0.5)
        inputs.history_offsets.copy_(torch.tensor([0, 100, 3000, 3005, 4905]))
        if inputs.visible is not None:
            inputs.visible.clamp_(max=90)

    return Step(inputs.results, change)


def _with_gradients(f: Callable[..., list[Tensor]], leaves: list[Tensor]) -> dict[str, Tensor]:
    own = [x.detach().requires_grad_() for x in leaves]
    outs = f(*own)
    grads = torch.autograd.grad(outs, own, [x.detach() * 0.25 for x in outs])
    return {str(i): x.detach() for i, x in enumerate([*outs, *grads])}


def _feed_forward() -> Step:
    D, F = 64, 96
    shapes = (20_000, D), (D, F), (D, F), (F, D), (D,), (D,)  # more rows than a chunk has
    leaves = [torch.randn(shape, device="cuda").bfloat16() for shape in shapes]

    def change() -> None:
        leaves[0].mul_(0.5)

    return Step(lambda: _with_gradients(lambda *x: [stca.ops.swiglu_ffn_norm(*x)], leaves), change)


def _gathers() -> Step:
    x, wide, values = (torch.randn(n, d, device="cuda").bfloat16() for n, d in ((4, 33), (4, 256), (4905, 64)))
    targets = torch.tensor([0, 5, 5, 9, 300], device="cuda")
    offsets = torch.tensor([0, 100, 3000, 3005, 4905], device="cuda")
    index, keep = torch.tensor([3, 0, 3], device="cuda"), torch.tensor([700, 50, 2], device="cuda")

    def run(x: Tensor, wide: Tensor, values: Tensor) -> list[Tensor]:
        selected, _ = stca.ops.jagged_select(values, offsets, index, keep, total=752)
        gathered = stca.ops.request_gather([x, wide], targets, total=300)
        return [selected, *gathered, stca.ops.request_reduce(gathered[0], targets, "mean")]

    def change() -> None:
        values.mul_(0.5)
        targets.copy_(torch.tensor([0, 0, 100, 250, 300]))
        offsets.copy_(torch.tensor([0, 2000, 2001, 2002, 4905]))

    return Step(lambda: _with_gradients(run, [x, wide, values]), change)


def _padded() -> Step:
    model = stca.nn.STCA(64, 2, 4).cuda().bfloat16()
    x, history = (torch.randn(3, n, 64, device="cuda").bfloat16() for n in (20, 500))
    lengths = {name: torch.tensor([n, 3, 0], device="cuda") for name, n in (("target", 20), ("history", 500))}

    def run(x: Tensor, history: Tensor, *_: Tensor) -> list[Tensor]:
        z: Tensor = model(x, history, target_lengths=lengths["target"], history_lengths=lengths["history"])
        return [z]

    def change() -> None:
        x.mul_(0.5)
        lengths["history"].copy_(torch.tensor([30, 400, 2]))

    return Step(lambda: _with_gradients(run, [x, history]), change)


@pytest.fixture(params=[_attention, _feed_forward, _gathers, _padded], ids=lambda made: made.__name__.strip("_"))
def step(request: pytest.FixtureRequest) -> Step:
    """A step on the GPU that has run once."""
    made: Step = request.param()
    made.run()
    return made


def _on_host(results: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.cpu() for name, x in results.items()}


def test_the_build_has_cuda_kernels() -> None:
    major, minor = torch.cuda.get_device_capability()
    archs = [arch.removesuffix("a") for arch in stca.build_info()["cuda_archs"]]
    assert any(int(arch[:-1]) <= major for arch in archs), f"built for {archs}, the GPU is {major}.{minor}"


def test_nothing_waits_for_the_device(step: Step) -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_graph_replays_it_for_other_values_and_offsets(step: Step) -> None:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        before = step.run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step.run()
    step.change()
    graph.replay()
    after = _on_host(step.run())
    assert_bitwise_equal(_on_host(captured), after)
    assert any(not torch.equal(x.cpu(), after[name]) for name, x in before.items())


def test_another_stream(step: Step) -> None:
    expected = step.run()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        actual = step.run()
    stream.synchronize()
    assert_bitwise_equal(_on_host(actual), _on_host(expected))


def test_more_elements_than_an_int_counts() -> None:
    """The last request lies beyond 2^31 elements of k."""
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GB of free GPU memory")
    L, D, R = 3000, 1024, 720
    one = torch.randn(L, 1, D, device="cuda").bfloat16()
    k = one.repeat(R, 1, 1)
    assert k.numel() > 2**31
    k.requires_grad_()
    q = torch.randn(1, 4, D, device="cuda").bfloat16().repeat(R, 1, 1).requires_grad_()
    with families_of("gpu"):
        out = stca.ops.target_attention(q, k, None, torch.arange(R + 1).cuda(), torch.arange(R + 1).cuda() * L)
    out.backward(torch.ones_like(out))  # type: ignore[no-untyped-call]
    assert k.grad is not None
    assert q.grad is not None
    for x in (out.detach(), q.grad, k.grad.view(R, L, D)):
        assert torch.equal(x[0], x[-1])
        assert bool(x[-1].any())


def test_a_cache_stays_on_its_gpu() -> None:
    """Whichever GPU is the current one, in this thread or another."""
    count = torch.cuda.device_count()
    with torch.cuda.device(count - 1):
        cache = stca.serving.HistoryCache(1, 8, 100, device="cuda")
    rows = torch.randn(3, 8, device=f"cuda:{count - 1}")
    cache.append(1, [rows])
    with cache.select([1]) as found:
        assert found.history_index is not None
        assert torch.equal(found.encoded[0][found.history_index], rows)


def test_the_stack_trains_and_compiles() -> None:
    model = stca.nn.STCA(dim=64, num_layers=2, num_heads=4).cuda().bfloat16()
    targets = torch.randn(24, 64, device="cuda").bfloat16()
    history = torch.randn(3000, 64, device="cuda").bfloat16()
    offsets = torch.tensor([0, 8, 20, 24]).cuda(), torch.tensor([0, 1000, 1000, 3000]).cuda()
    eager = model(targets, history, *offsets)
    eager.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    compiled = torch.compile(model, fullgraph=True)(targets, history, *offsets)
    torch.testing.assert_close(compiled, eager, rtol=0.05, atol=0.05)
