"""A benchmark case: the same inputs, several ways to compute the same result, and what it costs at least."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from stca.nn.product import SLOW_ON_CPU

Direction = Literal["forward", "forward+backward"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "forward+backward")
Form = Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    """The form of a way that takes rows as they are."""
    return x


@dataclass(frozen=True)
class Implementation:
    """One way to compute a case.

    A way gets its inputs in the form that suits it best, at no charge: padded, repeated or nested before the clock
    starts, and in `peer_dtype` where a peer multiplies. `ours` marks variants of stca: measured, but no peers.
    """

    run: Callable[..., Tensor]  # its own leaves -> its own result
    forms: Sequence[Form] = ()  # the case's leaves -> its own, differentiable; missing ones: as they are
    flat: Form = same  # its own result -> the case's
    no_backward: str = ""  # why it has none
    ours: bool = False


@dataclass
class Problem:
    """What a case is made of, built when its turn comes."""

    leaves: Sequence[Tensor]  # everything that gets a gradient
    ways: dict[str, Implementation]  # the first is "stca"
    flops: float  # of the forward pass
    bytes: float  # read and written by the forward pass at least
    backward_factor: float = 2.5  # FLOPs of the backward pass over those of the forward pass
    backward_bytes_factor: float = 2.0
    cannot: dict[str, str] = field(default_factory=dict)  # peers that cannot do this, and why
    # Leaves whose gradient torch itself loses: in bfloat16 its layer_norm adds up those of weight and bias in bfloat16.
    # Against float64, in four layers: 0.06 and 0.49 off, of point-wise copies 0.19 and 0.71; stca 0.008.
    lost_by_torch: frozenset[int] = frozenset()

    def cost(self, direction: Direction) -> tuple[float, float]:
        """FLOPs and bytes of a direction."""
        if direction == "forward":
            return self.flops, self.bytes
        return self.flops * (1 + self.backward_factor), self.bytes * (1 + self.backward_bytes_factor)


@dataclass(frozen=True)
class Case:
    """A named problem; `quick` ones also run with --quick."""

    op: str
    name: str
    dtype: torch.dtype
    build: Callable[[], Problem]
    quick: bool = False
    directions: tuple[Direction, ...] = DIRECTIONS


class Runner:
    """One way with its leaves in its own form, and both directions as calls."""

    def __init__(self, way: Implementation, leaves: Sequence[Tensor], dout: Tensor | None = None) -> None:
        self.way = way
        self._leaves = leaves
        self._forms = [*way.forms, *(same for _ in leaves[len(way.forms) :])]
        self.own = [form(x).detach().requires_grad_() for form, x in zip(self._forms, leaves, strict=True)]
        self._dout = dout
        self._own_dout: Tensor | None = None
        self.checked_s = 0.0  # how long its check took, once it was checked

    def forward(self) -> Tensor:
        """The result in the way's own form, without gradients."""
        with torch.no_grad():
            return self.way.run(*self.own)

    def both(self) -> tuple[Tensor, ...]:
        """Gradients of its own leaves."""
        out = self.way.run(*self.own)
        if self._own_dout is None:
            self._own_dout = self._own_gradient(out.detach().requires_grad_())
        return torch.autograd.grad(out, self.own, self._own_dout)

    def call(self, direction: Direction) -> Callable[[], object]:
        """A direction as a call without arguments."""
        return self.forward if direction == "forward" else self.both

    def result(self) -> Tensor:
        """The case's result."""
        return self.way.flat(self.forward())

    def gradients(self) -> list[Tensor]:
        """The gradients of the case's leaves."""
        pairs = zip(self._forms, self._leaves, self.both(), strict=True)
        return [_pull_back(form, x, own) for form, x, own in pairs]

    def _own_gradient(self, out: Tensor) -> Tensor:
        (own,) = torch.autograd.grad(self.way.flat(out), out, self._dout)
        return own


def peer_dtype(x: Tensor) -> torch.dtype:
    """Of peers that multiply x: float32 where torch would multiply its 16-bit numbers one by one (see SLOW_ON_CPU).

    6.4 GFLOP took 4.4 seconds there; a careful user would not let it.
    """
    return torch.float32 if x.is_cpu and x.dtype in SLOW_ON_CPU else x.dtype


def _pull_back(form: Form, x: Tensor, gradient: Tensor) -> Tensor:
    leaf = x.detach().requires_grad_()
    own = form(leaf)
    if own is leaf:
        return gradient
    (flat,) = torch.autograd.grad(own, leaf, gradient)
    return flat


def check(problem: Problem, direction: Direction, limit: float) -> tuple[dict[str, Runner], dict[str, str]]:
    """Runners of all ways that compute the direction and agree with stca, and why the others do not run.

    A difference whose norm is more than `limit` of the result's raises AssertionError: such a case measures nothing.
    """
    ours, cannot = Runner(problem.ways["stca"], problem.leaves), dict(problem.cannot)
    result = ours.result()
    dout = torch.randn(result.shape, generator=torch.Generator("cpu").manual_seed(1), device="cpu").to(result)
    theirs = [x.to(peer_dtype(x)) for x in problem.leaves] if problem.flops > 0 else problem.leaves
    runners, expected = {}, None
    for name, way in problem.ways.items():
        if direction != "forward" and way.no_backward:
            cannot[name] = way.no_backward
            continue
        leaves = problem.leaves if way.ours or name == "stca" else theirs
        runner = Runner(way, leaves, dout.to(leaves[0].dtype))
        began = time.perf_counter()
        try:
            found = [runner.result()] if direction == "forward" else runner.gradients()
        except (RuntimeError, NotImplementedError, ValueError, torch._dynamo.exc.TorchDynamoException) as error:
            if name == "stca":
                raise
            cannot[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:100]}"
            continue
        runner.checked_s = time.perf_counter() - began
        expected = expected or found
        for leaf, (a, b) in enumerate(zip(expected, found, strict=True)):
            if direction != "forward" and leaf in problem.lost_by_torch:
                continue
            off = float((a.float() - b.float()).norm() / b.float().norm().clamp(min=1e-30))
            assert off < limit, f"{name}, {direction}: differs from stca by {off:.1e}"
        runners[name] = runner
    return runners, cannot
