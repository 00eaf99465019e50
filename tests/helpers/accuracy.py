"""When is a result accurate enough, and when are two the same."""

import torch
from torch import Tensor


def ulps(dtype: torch.dtype) -> int:
    """The few ulp that a result may be off; in float64 the oracle's own rounding is part of every distance from it."""
    return 64 if dtype == torch.float64 else 8


def assert_as_accurate(
    actual: Tensor, oracle: Tensor, plain: Tensor, name: str = "result", *, sensitivity: float = 1.0
) -> None:
    """Asserts that `actual` errs at most twice as much as plain PyTorch in the same dtype, plus a few ulp.

    No fixed tolerance fits every dtype, width and length. Plain eager PyTorch in the same dtype shows what
    rounding costs for the very same inputs, so it sets the scale. With e(x) the largest distance of x from
    the oracle, which is computed in float64 from the same (already rounded) inputs,

        e(actual) <= 2 e(plain) + ulps * eps * sensitivity * max(max |oracle|, smallest normal number)

    and the same for the root mean square of the distances, which no single outlier of `plain` can widen. The
    last term is there because plain PyTorch may be exact by luck; below the smallest normal number an ulp shrinks no
    more. Infinities and NaN must stand exactly where
    the oracle has them.

    Args:
        actual: the result to judge.
        oracle: the same from the oracle, float64.
        plain: the same from plain PyTorch in the dtype of `actual`.
        name: what the message calls it.
        sensitivity: a factor of the few ulp, for inputs that magnify rounding far more than usual.
    """
    assert oracle.dtype == torch.float64
    assert (actual.shape, actual.dtype) == (oracle.shape, plain.dtype), name
    if actual.numel() == 0:
        return
    finite = oracle.isfinite()
    assert torch.equal(actual.isfinite(), finite), f"{name}: not finite in other places than the oracle"
    specials = (x.double()[~finite].nan_to_num(7) for x in (actual, oracle))
    assert torch.equal(*specials), f"{name}: infinities or NaN differ"
    if not finite.any():
        return
    ours, theirs = ((x.double() - oracle)[finite] for x in (actual, plain))
    limits = torch.finfo(actual.dtype)
    slack = (
        ulps(actual.dtype) * sensitivity * limits.eps * max(float(oracle[finite].abs().max()), limits.smallest_normal)
    )
    for measure, of in (("largest", torch.amax), ("root mean square", _root_mean_square)):
        error, bound = float(of(ours.abs())), 2 * float(of(theirs.abs())) + slack
        assert error <= bound, f"{name}: {measure} error {error:.3g}, plain PyTorch allows {bound:.3g}"


def assert_all_as_accurate(
    actual: dict[str, Tensor], references: dict[str, tuple[Tensor, Tensor]], *, sensitivity: float = 1.0
) -> None:
    """`assert_as_accurate` of each named result, `references` being its (oracle, plain)."""
    assert actual.keys() == references.keys()
    for name, (oracle, plain) in references.items():
        assert_as_accurate(actual[name], oracle, plain, name, sensitivity=sensitivity)


def _root_mean_square(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def assert_bitwise_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Asserts that named results are the same bits, so that -0 is not 0 and a NaN equals the same NaN."""
    assert actual.keys() == expected.keys()
    for name, x in actual.items():
        as_bytes = (y.contiguous().view(torch.uint8) if y.numel() else y for y in (x, expected[name]))
        assert torch.equal(*as_bytes), name
