"""`swiglu_ffn_norm` against eager torch: time forward and with backward, peak memory, share of the machine's floor.

    python benchmarks/swiglu_ffn_norm.py [--rows 16384 --dim 256 --hidden 512]

The floor is 6 N D F FLOPs forward, 18 N D F with backward, over this machine's sgemm speed. Backward recomputes the
hidden rows, 6 N D F FLOPs more, instead of keeping them.
"""

import argparse

import torch
import torch.nn.functional as F
from measure import gemm_gflops, interleaved_ms, peak_extra_mb

import stca


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16_384, help="N")
    parser.add_argument("--dim", type=int, default=256, help="D")
    parser.add_argument("--hidden", type=int, default=512, help="F")
    args = parser.parse_args()
    N, D, hidden = args.rows, args.dim, args.hidden
    x, dy = torch.randn(N, D, requires_grad=True), torch.randn(N, D)
    w_u, w_v, w_o = (torch.randn(a, b) * a**-0.5 for a, b in ((D, hidden), (D, hidden), (hidden, D)))
    gamma, beta = torch.ones(D), torch.zeros(D)
    leaves = [x, *(w.requires_grad_() for w in (w_u, w_v, w_o, gamma, beta))]

    def fused() -> torch.Tensor:
        return stca.ops.swiglu_ffn_norm(x, w_u, w_v, w_o, gamma, beta)

    def eager() -> torch.Tensor:
        return F.layer_norm(((x @ w_u) * F.silu(x @ w_v)) @ w_o, (D,), gamma, beta)

    torch.testing.assert_close(fused(), eager(), rtol=1e-3, atol=1e-4)
    calls = {"stca": fused, "eager": eager}
    forward = {name: torch.no_grad()(call) for name, call in calls.items()}
    both = {name: (lambda call=call: torch.autograd.grad(call(), leaves, dy)) for name, call in calls.items()}
    gflops = gemm_gflops()
    print(f"N={N} D={D} F={hidden} float32, {torch.get_num_threads()} threads, {stca.cpu_isa()}")
    print(f"this machine: sgemm {gflops:.0f} GFLOP/s")
    for what, chosen, flops in (("forward", forward, 6), ("with backward", both, 18)):
        ms, floor = interleaved_ms(chosen, rounds=7, warmup=1), 1e-6 * flops * N * D * hidden / gflops
        print(f"{what}: floor {floor:.1f} ms")
        for name, call in chosen.items():
            print(f"  {name:6s} {ms[name]:8.1f} ms   peak extra memory {peak_extra_mb(call):7.1f} MB")
        print(f"  share of the floor {floor / ms['stca']:.0%}, eager takes {ms['eager'] / ms['stca']:.2f} x our time")


if __name__ == "__main__":
    main()
