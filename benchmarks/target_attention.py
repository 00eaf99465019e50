"""Reordered `target_attention` against plain torch, one request: time, peak memory and share of the machine's floor.

    python benchmarks/target_attention.py [--targets 16 --heads 8 --dim 256 --rows 10000]

The floor is the larger of the FLOPs of the two products over this machine's sgemm speed, and the bytes of the history
over its read bandwidth. Peers: the same composition in eager torch, and SDPA on projected keys and values, projection
included.
"""

import argparse

import torch
import torch.nn.functional as F
from measure import gemm_gflops, interleaved_ms, peak_extra_mb, read_gbs

import stca


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", type=int, default=16, help="m, targets of the request")
    parser.add_argument("--heads", type=int, default=8, help="H")
    parser.add_argument("--dim", type=int, default=256, help="D, width of a history row")
    parser.add_argument("--rows", type=int, default=10_000, help="L, history rows of the request")
    args = parser.parse_args()
    m, H, D, L = args.targets, args.heads, args.dim, args.rows

    torch.manual_seed(0)
    history = torch.randn(L, D)
    w_q, w_k, w_v = (torch.randn(D, D) * D**-0.5 for _ in range(3))
    q = (torch.randn(m, D) @ w_q).view(m, H, D // H)
    u = torch.einsum("thd,khd->thk", q, w_k.view(D, H, D // H))  # [m, H, D]
    scale = (D // H) ** -0.5
    target_offsets, history_offsets = torch.tensor([0, m]), torch.tensor([0, L])

    def reordered() -> torch.Tensor:
        return stca.ops.target_attention(u, history[:, None], None, target_offsets, history_offsets, scale=scale)

    def eager() -> torch.Tensor:
        return torch.softmax(u.reshape(m * H, D) @ history.T * scale, dim=1) @ history

    def sdpa() -> torch.Tensor:
        k = (history @ w_k).view(1, L, H, D // H).transpose(1, 2)
        v = (history @ w_v).view(1, L, H, D // H).transpose(1, 2)
        return F.scaled_dot_product_attention(q.transpose(0, 1)[None], k, v, scale=scale)

    out = reordered()
    torch.testing.assert_close(out.reshape(m * H, D), eager(), rtol=1e-4, atol=1e-5)
    projected = torch.einsum("thk,khd->thd", out, w_v.view(D, H, D // H))
    torch.testing.assert_close(projected, sdpa()[0].transpose(0, 1), rtol=1e-3, atol=1e-4)

    gflops, gbs = gemm_gflops(), read_gbs()
    floor_ms = max(4e-6 * m * H * D * L / gflops, 4e-6 * L * D / gbs)
    calls = {"stca reordered": reordered, "eager reordered": eager, "sdpa, projection included": sdpa}
    times = interleaved_ms(calls)
    print(f"m={m} H={H} D={D} L={L} float32, {torch.get_num_threads()} threads, {stca.cpu_isa()}")
    print(f"this machine: sgemm {gflops:.0f} GFLOP/s, reads {gbs:.0f} GB/s, floor {floor_ms:.2f} ms")
    for name, call in calls.items():
        print(f"  {name:28s} {times[name]:8.2f} ms   peak extra memory {peak_extra_mb(call):7.1f} MB")
    best_peer = min(ms for name, ms in times.items() if name != "stca reordered")
    ours = times["stca reordered"]
    print(f"  share of the floor {floor_ms / ours:.0%}, time of the best peer {best_peer / ours:.2f} x ours")


if __name__ == "__main__":
    main()
