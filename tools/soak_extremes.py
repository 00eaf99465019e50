"""Sizes at the ends of what may come, each compared with what must come out, for `soak.py`."""

import resource
import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from stca.ops import jagged_select, request_gather, request_reduce, target_attention

GIGABYTE = 10**9
HUGE = 300 * GIGABYTE


def check_close(name: str, found: Tensor, expected: Tensor, bound: float) -> None:
    """Refuses a result that is too far off."""
    distance = float((found.detach().double() - expected).abs().max())
    if not distance <= bound:
        raise AssertionError(f"{name}: must be within {bound} of the expected values, got {distance}")


def many_requests() -> int:
    """200,000 requests of one target and one row: what a target finds is its row."""
    R = 200_000
    q, k = torch.randn(R, 2, 8, requires_grad=True), torch.randn(R, 1, 8, requires_grad=True)
    offsets = torch.arange(R + 1)
    out, lse = target_attention(q, k, None, offsets, offsets, return_lse=True)
    check_close("many_requests, out", out, k.detach().double().expand(R, 2, 8), 0)
    check_close("many_requests, lse", lse, (q.detach().double() * k.detach()).sum(-1) * 8**-0.5, 1e-5)
    (dk,) = torch.autograd.grad(out, k, torch.ones_like(out))
    check_close("many_requests, dk", dk, torch.full((R, 1, 8), 2.0, dtype=torch.float64), 1e-6)
    return R


def one_long_history() -> int:
    """One history of 10 million rows, forward and backward."""
    N, m = 10**7, 2
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(m, 1, 8, generator=generator)
    k = torch.randn(N, 1, 8, generator=generator).requires_grad_()
    out, lse = target_attention(q, k, None, torch.tensor([0, m]), torch.tensor([0, N]), return_lse=True)
    (dk,) = torch.autograd.grad(lse.sum(), k)
    parts = k.detach().squeeze(1).chunk(10)
    scores = [q.squeeze(1).double() @ part.double().T * 8**-0.5 for part in parts]
    expected = torch.stack([score.logsumexp(1) for score in scores]).logsumexp(0)
    weights = [(score - expected[:, None]).exp() for score in scores]
    check_close("one_long_history, lse", lse, expected[:, None], 1e-4)
    attended = sum(w @ part.double() for w, part in zip(weights, parts, strict=True))
    assert isinstance(attended, Tensor)
    check_close("one_long_history, out", out, attended[:, None], 1e-4)
    wanted = torch.cat([w.T @ q.squeeze(1).double() * 8**-0.5 for w in weights])
    check_close("one_long_history, dk", dk, wanted[:, None], 1e-8)
    return N


def _of_targets() -> Tensor:
    T = HUGE // 32
    return target_attention(torch.zeros(1, 1, 8).expand(T, 1, 8), torch.zeros(3, 1, 8), None, *_offsets(T, 3))


def _of_history() -> Tensor:
    k = torch.zeros(1, 1, 8, requires_grad=True).expand(HUGE // 32, 1, 8)
    out = target_attention(torch.ones(1, 1, 8), k, None, *_offsets(1, 3), history_index=torch.arange(3))
    return torch.autograd.grad(out.sum(), k)[0]


def _of_rows() -> Tensor:
    return request_gather(torch.zeros(1, 8), torch.tensor([0, HUGE // 32]))


def _of_sums() -> Tensor:
    R = HUGE // 32
    return request_reduce(torch.zeros(1, 8), torch.zeros(1, dtype=torch.int64).expand(R + 1))


def _of_selected() -> Tensor:
    index = torch.zeros(1, dtype=torch.int64).expand(HUGE // 32)
    return jagged_select(torch.zeros(3, 8), torch.tensor([0, 3]), index)[0]


def _offsets(T: int, N: int) -> tuple[Tensor, Tensor]:
    return torch.tensor([0, T]), torch.tensor([0, N])


TOO_LARGE: list[Callable[[], Tensor]] = [_of_targets, _of_history, _of_rows, _of_sums, _of_selected]


def refused_memory() -> int:
    """Calls that would take 300 GB, of a few bytes by expanded views, are refused, and the process goes on."""
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise AssertionError(f"refused_memory: the process must go on, got {done.returncode}: {done.stderr[-2000:]}")
    return len(TOO_LARGE)


EXTREMES = [many_requests, one_long_history, refused_memory]


def main() -> None:
    """Tries all of `TOO_LARGE` with 20 GB of address space, whatever the machine would promise."""
    resource.setrlimit(resource.RLIMIT_AS, (20 * GIGABYTE, 20 * GIGABYTE))
    for call in TOO_LARGE:
        try:
            call()
        except (RuntimeError, MemoryError, ValueError) as error:
            print(f"{call.__name__}: {type(error).__name__}: {str(error).splitlines()[0]}")
        else:
            sys.exit(f"{call.__name__}: must be refused")
    if target_attention(torch.zeros(1, 1, 8), torch.ones(1, 1, 8), None, *_offsets(1, 1)).tolist() != [[[1.0] * 8]]:
        sys.exit("the call after those that were refused is wrong")


if __name__ == "__main__":
    main()
