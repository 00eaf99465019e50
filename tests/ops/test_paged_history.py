"""An index of rows that follow one another in pieces: the bits are those of the same rows copied into order."""

import pytest
import torch
from torch import Tensor

import stca


def _pages(N: int, page_rows: int, P: int, skipped: int) -> Tensor:
    pages = torch.randperm(P // page_rows)[: (N + skipped) // page_rows + 1]
    return (pages[:, None] * page_rows + torch.arange(page_rows)).flatten()[skipped : skipped + N]


@pytest.mark.exhaustive
@pytest.mark.parametrize("page_rows", [1, 16, 64, 256])
@pytest.mark.parametrize("skipped", [0, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("m", "H", "Hk", "D"), [(1, 1, 1, 64), (8, 1, 1, 40), (1, 8, 8, 16), (3, 4, 2, 130), (9, 1, 1, 8)]
)
@pytest.mark.parametrize("shared", [True, False])
def test_bits_of_rows_in_order(
    isa: str, page_rows: int, skipped: int, dtype: torch.dtype, m: int, H: int, Hk: int, D: int, shared: bool
) -> None:
    P, lengths = 4096, [900, 0, 37]
    k, v = (torch.full((P, Hk, D), torch.nan, dtype=dtype) for _ in range(2))
    index = torch.cat([_pages(n, page_rows, P, skipped) for n in lengths])
    for x in (k, v):
        x[index] = torch.randn(len(index), Hk, D).to(dtype)
    q = torch.randn(3 * m, H, D).to(dtype)
    offsets = torch.arange(4) * m, torch.tensor([0, *lengths]).cumsum(0)
    begin = torch.randint(0, 30, (3 * m,)).sort().values * torch.tensor([1, 0, 1]).repeat_interleave(m)
    ends = torch.tensor(lengths).repeat_interleave(m)
    for visible in (None, torch.stack([begin, ends], dim=1)):
        expected = stca.ops.target_attention(q, k[index], None if shared else v[index], *offsets, visible=visible)
        found = stca.ops.target_attention(q, k, None if shared else v, *offsets, visible=visible, history_index=index)
        assert torch.equal(found, expected)
        assert torch.isfinite(found).all()


@pytest.mark.parametrize("wrong", [-1, 7, -(2**63), 2**63 - 1])
def test_an_index_outside_is_named(wrong: int) -> None:
    index = torch.arange(5)
    index[3] = wrong
    with pytest.raises(ValueError, match=rf"history_index\[3\] must be a row of k in \[0, 7\), got {wrong}"):
        stca.ops.target_attention(
            torch.randn(1, 1, 4),
            torch.randn(7, 1, 4),
            None,
            *(torch.tensor([0, n]) for n in (1, 5)),
            history_index=index,
        )
