"""What only a GPU can show: streams, graphs, no waiting for the device, sizes beyond 32 bits, and the module on top."""

from collections.abc import Callable

import pytest
import torch
from accuracy import assert_bitwise_equal
from cases import TargetAttentionCase, TargetAttentionInputs
from cuda_devices import needs_gpu, on_gpu
from torch import Tensor

import stca

pytestmark = needs_gpu

CASE = TargetAttentionCase("", [(3, 900), (2, 0), (0, 5), (5, 4000)], 4, 1, 64, None, "prefix", pool=700)


def _inputs() -> TargetAttentionInputs:
    return CASE.build(torch.bfloat16).on(on_gpu)


def _step(inputs: TargetAttentionInputs) -> Callable[[], dict[str, Tensor]]:
    return lambda: inputs.results()


def test_the_build_has_cuda_kernels() -> None:
    major, minor = torch.cuda.get_device_capability()
    archs = [arch.removesuffix("a") for arch in stca.build_info()["cuda_archs"]]
    assert any(int(arch[:-1]) <= major for arch in archs), f"built for {archs}, the GPU is {major}.{minor}"


def test_nothing_waits_for_the_device() -> None:
    inputs = _inputs()
    inputs.results()
    torch.cuda.set_sync_debug_mode("error")
    try:
        inputs.results()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_graph_replays_it_for_other_values_and_offsets() -> None:
    inputs = _inputs()
    step = _step(inputs)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    inputs.q.mul_(0.5)
    inputs.history_offsets.copy_(torch.tensor([0, 100, 3000, 3005, 4905]))
    inputs.visible = None if inputs.visible is None else inputs.visible.clamp_(max=90)
    graph.replay()
    assert_bitwise_equal({n: x.cpu() for n, x in captured.items()}, {n: x.cpu() for n, x in step().items()})


def test_another_stream() -> None:
    inputs = _inputs()
    expected = inputs.results()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        actual = inputs.results()
    stream.synchronize()
    assert_bitwise_equal({n: x.cpu() for n, x in actual.items()}, {n: x.cpu() for n, x in expected.items()})


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
    out = stca.ops.target_attention(q, k, None, torch.arange(R + 1).cuda(), torch.arange(R + 1).cuda() * L)
    out.backward(torch.ones_like(out))  # type: ignore[no-untyped-call]
    assert k.grad is not None
    assert q.grad is not None
    for x in (out.detach(), q.grad, k.grad.view(R, L, D)):
        assert torch.equal(x[0], x[-1])
        assert bool(x[-1].any())


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
