"""Every dtype, instruction set and shape that the tests use, and the seeded inputs made of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate, product
from typing import Any

import torch
from torch import Tensor

import stca

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ISAS: list[str] = stca.build_info()["cpu_isas_supported"]
NAN_AND_INFINITIES = (float("nan"), float("inf"), -float("inf"))


def accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def offsets(lengths: Sequence[int], dtype: torch.dtype = torch.int64) -> Tensor:
    """Lengths [R] as offsets [R + 1]."""
    return torch.tensor(list(accumulate(lengths, initial=0)), dtype=dtype)


def moved(x: Tensor, move: Callable[[torch.UntypedStorage], torch.UntypedStorage]) -> Tensor:
    """A copy that lies where `move` puts its storage, at the same offset and strides."""
    storage = move(x.untyped_storage())
    copy = torch.empty(0, dtype=x.dtype, device=storage.device)
    return copy.set_(storage, x.storage_offset(), x.shape, x.stride())


@dataclass
class TargetAttentionInputs:
    """Arguments of target_attention, and the gradients that come in from above."""

    q: Tensor
    k: Tensor
    v: Tensor | None
    target_offsets: Tensor
    history_offsets: Tensor
    visible: Tensor | None
    history_index: Tensor | None
    scale: float | None
    dout: Tensor
    dlse: Tensor

    def to(self, dtype: torch.dtype) -> "TargetAttentionInputs":
        return self.map(lambda x: x.to(dtype))

    def map(self, f: Callable[[Tensor], Tensor]) -> "TargetAttentionInputs":
        """A copy with f of every floating-point tensor."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        floating = {n: x for n, x in values.items() if isinstance(x, Tensor) and x.is_floating_point()}
        return self.but(**{name: f(x) for name, x in floating.items()})

    def on(self, move: Callable[[torch.UntypedStorage], torch.UntypedStorage]) -> "TargetAttentionInputs":
        """A copy whose tensors lie where `move` puts their storage, at the same offsets and strides."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return self.but(**{name: moved(x, move) if isinstance(x, Tensor) else x for name, x in found.items()})

    def but(self, **changes: Any) -> "TargetAttentionInputs":
        return replace(self, **changes)

    def arguments(self) -> tuple[Any, ...]:
        """As the operator torch.ops.stca.target_attention takes them."""
        tensors = self.q, self.k, self.v, self.target_offsets, self.history_offsets
        return *tensors, self.visible, self.history_index, self.scale

    def call(self, f: Callable[..., Any]) -> tuple[Tensor, Tensor]:
        """f is stca.ops.target_attention or anything with its signature; out and lse."""
        tensors = self.q, self.k, self.v, self.target_offsets, self.history_offsets
        options = {"visible": self.visible, "history_index": self.history_index, "scale": self.scale}
        out, lse = f(*tensors, **options, return_lse=True)
        return out, lse

    def results(self, f: Callable[..., Any] = stca.ops.target_attention) -> dict[str, Tensor]:
        """out, lse, dq, dk and, where v is given, dv."""
        leaves = {"q": self.q, "k": self.k} | ({} if self.v is None else {"v": self.v})
        leaves = {name: x.detach().requires_grad_() for name, x in leaves.items()}
        out, lse = self.but(**leaves).call(f)
        incoming = [(out, self.dout), (lse, self.dlse.to(lse.dtype))]
        incoming = [(y, dy) for y, dy in incoming if y.requires_grad]  # an oracle's may be constant
        xs = tuple(leaves.values())
        grads = tuple(torch.zeros_like(x) for x in xs)
        if incoming:
            ys, dys = zip(*incoming, strict=True)
            grads = torch.autograd.grad(ys, list(leaves.values()), dys, allow_unused=True, materialize_grads=True)
        named = {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}
        return {"out": out.detach(), "lse": lse.detach()} | named


@dataclass(frozen=True)
class TargetAttentionCase:
    """One shape: (targets, history rows) of each request, heads and widths, and what the targets see."""

    name: str
    requests: Sequence[tuple[int, int]] = field(repr=False)
    heads: int = 2
    kv_heads: int = 1
    key_dim: int = 8
    value_dim: int | None = None  # None: v is k
    visible: str = "all"
    pool: int | None = None  # rows of k and v that history_index draws from; None: no index
    index: torch.dtype = torch.int64

    def __str__(self) -> str:
        return self.name

    def build(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> TargetAttentionInputs:
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        T, N = (sum(each) for each in zip((0, 0), *self.requests, strict=True))
        P = N if self.pool is None else self.pool
        width = self.key_dim if self.value_dim is None else self.value_dim
        inputs = TargetAttentionInputs(
            q=2 * randn(T, self.heads, self.key_dim),
            k=randn(P, self.kv_heads, self.key_dim),
            v=None if self.value_dim is None else randn(P, self.kv_heads, self.value_dim),
            target_offsets=offsets([targets for targets, _ in self.requests], self.index),
            history_offsets=offsets([rows for _, rows in self.requests], self.index),
            visible=self._visible(generator),
            history_index=None if self.pool is None else self._index(generator, N),
            scale=None,
            dout=randn(T, self.heads, width),
            dlse=randn(T, self.heads),
        )
        return inputs.to(dtype)

    def _index(self, generator: torch.Generator, rows: int) -> Tensor:
        return torch.randint(self.pool or 1, (rows,), generator=generator).to(self.index)

    def _visible(self, generator: torch.Generator) -> Tensor | None:
        if self.visible == "all":
            return None
        lengths = torch.tensor([rows for targets, rows in self.requests for _ in range(targets)])
        cuts = torch.rand(len(lengths), 2, generator=generator).sort(dim=1).values
        ranges = (cuts * (lengths[:, None] + 1)).long()
        if self.visible == "prefix":
            ranges[:, 0] = 0
        elif self.visible == "suffix":
            ranges[:, 1] = lengths
        elif self.visible == "none":
            ranges[:, 1] = ranges[:, 0]
        elif self.visible == "shared":  # neighbours see the same rows
            ranges = ranges[torch.arange(len(lengths)) // 3 * 3]
            ranges = torch.minimum(ranges, lengths[:, None])
        return ranges.to(self.index)


def _combinations() -> list[TargetAttentionCase]:
    requests = [(3, 37), (1, 1), (0, 6), (5, 64), (2, 0), (4, 300), (0, 0), (1, 129)]
    options = product((1, 2, 6), (None, 8, 5), ("all", "random", "prefix", "suffix", "shared"))
    indices = (torch.int32, torch.int64)
    return [
        TargetAttentionCase(f"Hk{Hk}-Dv{Dv}-{seen}", requests, 6, Hk, 8, Dv, seen, index=indices[i % 2])
        for i, (Hk, Dv, seen) in enumerate(options)
    ]


_LENGTHS = (1, 2, 15, 16, 17, 31, 32, 33, 63, 65, 127, 129, 255, 256, 257, 511, 512, 513, 1023, 1025, 2000)

TARGET_ATTENTION = [
    *_combinations(),
    TargetAttentionCase("no-requests", [], value_dim=3),
    TargetAttentionCase("no-targets", [(0, 4), (0, 70)]),
    TargetAttentionCase("no-history", [(2, 0), (1, 0)], value_dim=3),
    TargetAttentionCase("all-empty", [(0, 0)] * 3),
    TargetAttentionCase("nothing-visible", [(2, 5), (3, 600)], value_dim=3, visible="none"),
    TargetAttentionCase("tile-edges", [(2, rows) for rows in _LENGTHS]),
    TargetAttentionCase("tile-edges-grouped", [(1, rows) for rows in _LENGTHS], 4, 2, 4, 6, "random"),
    TargetAttentionCase("one-long", [(3, 6000)], 4, 1, 16),
    TargetAttentionCase("one-long-projected", [(2, 5000)], 2, 2, 8, 8, "shared"),
    TargetAttentionCase("long-and-short", [(1, 3), (9, 4100), (2, 40)], 2, 1, 12, 7, "prefix"),
    TargetAttentionCase("block-edges-reordered", [(m, 40) for m in (31, 32, 33, 63, 65)], 8, 1, 4),
    TargetAttentionCase("block-edges-projected", [(m, 40) for m in (255, 256, 257)], 2, 2, 4, 4),
    TargetAttentionCase("block-edges-visible", [(m, 300) for m in (85, 86, 171)], 6, 2, 3, 5, "random"),
    TargetAttentionCase("pool", [(3, 70), (0, 5), (2, 0), (4, 300)], 4, 1, 8, pool=90),
    TargetAttentionCase("pool-projected", [(3, 40), (2, 600)], 2, 2, 5, 7, "random", 33, torch.int32),
    TargetAttentionCase("pool-of-one", [(3, 6), (2, 2)], 4, 2, 5, 7, "suffix", 1),
    TargetAttentionCase("pool-mostly-unused", [(3, 9), (1, 5)], 2, 1, 5, pool=2000),
    TargetAttentionCase("pool-without-history", [(3, 0), (0, 0)], 2, 1, 5, pool=4),
    TargetAttentionCase("pool-split", [(2, 5000)], 2, 1, 5, 3, pool=700),
    TargetAttentionCase("column-edges", [(m, 21) for m in (*range(1, 10), 15, 16, 17, 31, 32, 33)], 1),
    TargetAttentionCase("many-targets", [(300, 70), (2, 9)], 4, 1, 8),
    TargetAttentionCase("many-targets-pool", [(20, 70), (33, 300)], 4, 2, 5, 7, "random", pool=90),
    TargetAttentionCase("many-heads", [(2, 20)], 260, 1, 3, 2),
    TargetAttentionCase("wide", [(1, 33), (2, 40)], 2, 1, 1024),
    TargetAttentionCase("wide-block-edge", [(17, 5)], 16, 1, 1024),
    TargetAttentionCase("wide-projected", [(2, 70), (1, 31)], 2, 2, 1024, 512, "random"),
    TargetAttentionCase("value-wider", [(5, 130)], 2, 1, 3, 260),
    TargetAttentionCase("key-wider", [(5, 130)], 2, 2, 260, 3),
    *[TargetAttentionCase(f"width-{D}", [(3, 30), (1, 65)], 2, 1, D) for D in (1, 3, 5, 7, 13, 65, 128, 255, 257, 513)],
    *[TargetAttentionCase(f"width-{D}-{D + 2}", [(3, 70)], 2, 2, D, D + 2) for D in (1, 3, 5, 7, 13, 65)],
    *[TargetAttentionCase(f"heads-of-{D}", [(9, 150), (4, 70)], 4, 2, D, D, "random") for D in (64, 128)],
    *[TargetAttentionCase(f"many-targets-of-{D}", [(33, 150), (4, 70)], 4, 2, D, D, "random") for D in (64, 128)],
]

# A few that touch everything once, for tests that are slow or repeat themselves.
TARGET_ATTENTION_SMALL = [
    TargetAttentionCase("reordered", [(3, 37), (2, 0), (0, 5), (1, 300)], 4, 1, 8),
    TargetAttentionCase("projected", [(2, 9), (3, 70)], 2, 2, 5, 7, "random"),
    TargetAttentionCase("grouped", [(1, 40), (6, 130)], 4, 2, 3, 4, "shared", index=torch.int32),
    TargetAttentionCase("pool", [(2, 40), (3, 70)], 2, 1, 5, 4, "prefix", pool=30),
]


SWIGLU_SHAPES = [(0, 8, 8), (1, 1, 1), (5, 8, 16), (95, 33, 70), (97, 64, 128), (200, 40, 17), (300, 256, 40)]


def swiglu_inputs(N: int, D: int, F: int, norm: int = 2, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Arguments of swiglu_ffn_norm; norm: 0 none, 1 with a weight, 2 with weight and bias."""
    shapes = {"x": (N, D), "w_u": (D, F), "w_v": (D, F), "w_o": (F, D), "norm_weight": (D,), "norm_bias": (D,)}
    scales = {"w_u": D**-0.5, "w_v": D**-0.5, "w_o": F**-0.5}
    drawn = {name: torch.randn(shape) * scales.get(name, 1.0) for name, shape in shapes.items()}
    return {name: drawn[name].to(dtype) for name in list(shapes)[: 4 + norm]}


def swiglu_inputs_of_equal_columns(N: int, D: int, F: int) -> dict[str, Any]:
    """In float32. The norm sees D times one number, a large one, and gradients are what rounding leaves of 0."""
    inputs = swiglu_inputs(N, D, F, 2, torch.float32)
    return inputs | {"x": 8 * inputs["x"], "w_o": inputs["w_o"][:, :1].expand(F, D).contiguous()}
