"""Every operator once with its gradient, small: what a planted fault is found by, and what valgrind has time for.

python -m calls [DTYPE]... in a folder whose stca is to be tried.
"""

import sys

import torch
from cases import TARGET_ATTENTION_SMALL, TargetAttentionCase, offsets, swiglu_inputs

import stca

# The last two have histories that two threads share, forward and backward.
CASES = [
    *TARGET_ATTENTION_SMALL,
    TargetAttentionCase("cut", [(2, 1300), (1, 3)], 2, 1, 5, 3, "random"),
    TargetAttentionCase("cut-pool", [(2, 1300)], 2, 2, 5, 3, pool=90),
]


def check(*results: torch.Tensor) -> None:
    """Takes a branch on every bit, so that what was never written is seen where bits are followed."""
    for x in results:
        assert not x.isnan().any()


def rows(dtype: torch.dtype) -> None:
    """request_gather, request_reduce and jagged_select, and their gradients."""
    at, index = offsets([3, 0, 70, 1]), torch.tensor([3, 2, 2, 0])
    for width in (1, 9, 40):
        x = torch.randn(74, width).to(dtype).requires_grad_()
        means = stca.ops.request_reduce(x, at, "mean")
        again = stca.ops.request_gather(means, at)
        selected, ends = stca.ops.jagged_select(again, at, index, torch.tensor([1, 70, 20, 2]))
        (grad,) = torch.autograd.grad(selected.sum(), x)
        check(selected, ends, grad)


def swiglu(dtype: torch.dtype) -> None:
    """swiglu_ffn_norm, whose backward pass keeps the hidden rows or computes them again."""
    for recompute in (True, False):
        inputs = {name: x.requires_grad_() for name, x in swiglu_inputs(200, 9, 17, dtype=dtype).items()}
        y = stca.ops.swiglu_ffn_norm(**inputs, recompute=recompute)
        check(y, *torch.autograd.grad(y.sum(), list(inputs.values())))


def main() -> None:
    """Calls all of them, in each dtype of the command line."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    dtypes = sys.argv[1:] or ["float32", "bfloat16"]
    for name in dtypes:
        dtype = getattr(torch, name)
        rows(dtype)
        swiglu(dtype)
        for case in CASES:
            check(*(x.nan_to_num(neginf=0.0) for x in case.build(dtype).results().values()))
    print(f"calls: {len(dtypes) * (2 + len(CASES))} of all operators done")


if __name__ == "__main__":
    main()
