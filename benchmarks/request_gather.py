"""`request_gather` against the ways torch and fbgemm repeat rows: forward, and forward with backward.

    python benchmarks/request_gather.py [--requests 64 --targets 200 --width 1024]

fbgemm-gpu-cpu is a peer where it is installed (`pip install --no-deps fbgemm-gpu-cpu==1.8.0`). The floor is the bytes
written (and, backward, read) over what a copy of the same tensor reaches here.
"""

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial

import torch
from measure import interleaved_ms

import stca

Gather = Callable[[torch.Tensor], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=64, help="R")
    parser.add_argument("--targets", type=int, default=200, help="of each request")
    parser.add_argument("--width", type=int, default=1024)
    args = parser.parse_args()
    R, m = args.requests, args.targets
    counts = torch.full((R,), m)
    offsets, index = torch.arange(R + 1) * m, torch.repeat_interleave(torch.arange(R), counts)
    print(f"R={R}, {m} targets each, width {args.width}, {torch.get_num_threads()} threads, {stca.cpu_isa()}")
    gathers: dict[str, Gather] = {
        "stca": lambda x: stca.ops.request_gather(x, offsets),
        "repeat_interleave": lambda x: torch.repeat_interleave(x, counts, 0),
        "index_select": lambda x: x.index_select(0, index),
        "x[index]": lambda x: x[index],
    }
    if importlib.util.find_spec("fbgemm_gpu") is not None:
        import fbgemm_gpu  # noqa: F401

        gathers["fbgemm index_select_dim0"] = lambda x: torch.ops.fbgemm.index_select_dim0(x, index)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(R, args.width).to(dtype)
        compare(gathers, x, torch.randn(R * m, args.width).to(dtype))


def compare(gathers: dict[str, Gather], x: torch.Tensor, dy: torch.Tensor) -> None:
    """Prints the times of all forms for one x [R, width] and gradient dy [T, width]."""
    leaf = x.clone().requires_grad_()
    for gather in gathers.values():
        assert torch.equal(gather(x), gathers["stca"](x))
    copied = interleaved_ms({"copy": dy.clone})["copy"]
    print(f"{str(x.dtype)[6:]}: a copy of the result takes {copied:.2f} ms")
    forward = interleaved_ms({name: partial(gather, x) for name, gather in gathers.items()})
    both = interleaved_ms({name: partial(_with_backward, gather, leaf, dy) for name, gather in gathers.items()})
    for name in gathers:
        print(f"  {name:26s} forward {forward[name]:7.2f} ms   with backward {both[name]:7.2f} ms")
    for what, ms in (("forward", forward), ("with backward", both)):
        best = min(value for name, value in ms.items() if name != "stca")
        print(f"  {what}: time of the best peer {best / ms['stca']:.2f} x ours")


def _with_backward(gather: Gather, leaf: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(gather(leaf), leaf, dy)


if __name__ == "__main__":
    main()
