"""How a call is cut over a GPU: every tile meets its whole history once, and all ranges take about equally long."""

import random
from collections import defaultdict
from collections.abc import Sequence

import pytest
from cases import offsets
from emulated import Item, Tiling, emulated_items

TILE_COST = 4  # history blocks that loading a tile's queries and writing its results takes, as in schedule.cuh
WIDE = Tiling(tile_rows=32, block_rows=16, num_ranges=132)  # one history of width 1024, 16 bits, on an H100
PROJECTED = Tiling(tile_rows=64, block_rows=32, num_ranges=4 * 132)  # 16 heads of width 64

Batch = Sequence[tuple[int, int]]  # targets and history rows of each request


def _items(batch: Batch, heads: int, kv_heads: int, tiling: Tiling) -> list[list[Item]]:
    target_offsets, history_offsets = (offsets(lengths) for lengths in zip(*batch, strict=True))
    return emulated_items(target_offsets, history_offsets, heads, kv_heads, tiling)


def _blocks(item: Item, tiling: Tiling) -> int:
    return max(1, -(-(item.split_end - item.split_begin) // tiling.block_rows))


def _times(ranges: list[list[Item]], tiling: Tiling) -> tuple[float, int]:
    """How many blocks' time the average range takes, and the longest."""
    times = [sum(TILE_COST + _blocks(item, tiling) for item in items) for items in ranges]
    return sum(times) / tiling.num_ranges, max(times)


def _random_batch(seed: int) -> Batch:
    """A few requests or many, with few or many targets and rows."""
    rng = random.Random(seed)
    requests = round(10 ** rng.uniform(1, 2.5))
    most_targets, most_rows = 10 ** rng.uniform(0, 2), 10 ** rng.uniform(2.5, 4)
    return [(round(rng.uniform(1, most_targets)), round(rng.betavariate(2, 3) * most_rows)) for _ in range(requests)]


FULL = {f"m {m}": [(m, 10_000)] * 64 for m in (1, 2, 4, 8, 16, 64)}
SERVING = {f"R {r}": [(1, 10_000)] * r for r in (1, 2, 4, 8, 20, 50, 100)}
TRAINING = {"training": [(8, round(10_000 * random.Random(r).betavariate(2, 3))) for r in range(32)]}
GIVEN = {f"projected, m {m}": [(m, 5_000 + 5_000 * r // 15) for r in range(16)] for m in (1, 8, 64, 300)}
CASES = [(name, batch, 1, WIDE) for name, batch in (FULL | SERVING | TRAINING).items()]
CASES += [(name, batch, 16, PROJECTED) for name, batch in GIVEN.items()]


@pytest.mark.parametrize(("batch", "kv_heads", "tiling"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_machine_is_busy(batch: Batch, kv_heads: int, tiling: Tiling) -> None:
    """But for one block, where a range has few of them."""
    average, longest = _times(_items(batch, 16, kv_heads, tiling), tiling)
    assert average >= 0.97 * (longest - (longest < 30))


def test_the_machine_is_busy_with_random_batches() -> None:
    busy = []
    for seed in range(300):
        ranges = _items(_random_batch(seed), 16, 1, WIDE)
        average, longest = _times(ranges, WIDE)
        uncut = sum(_blocks(i, WIDE) + TILE_COST * (i.split_begin == 0) for items in ranges for i in items)
        share = uncut / WIDE.num_ranges
        assert longest <= max(share, 8) + TILE_COST + 1
        busy += [average / longest] if share >= 16 else []
    assert len(busy) > 200
    assert min(busy) >= 0.9


EDGES: list[Batch] = [
    [(0, 0)],
    [(1, 0)],
    [(0, 5), (3, 0), (0, 0), (2, 1), (0, 9)],
    [(1, 1)] * 700,
    [(0, 3)] * 600 + [(5, 999), (0, 0), (0, 0), (70, 33)],
    [(90, 2000), (1, 16), (1, 17)],
]


@pytest.mark.parametrize("batch", [*EDGES, *map(_random_batch, range(4))])
@pytest.mark.parametrize("tiling", [WIDE, Tiling(16, 32, 7), Tiling(16, 16, 2), Tiling(64, 32, 1)], ids=str)
def test_every_tile_meets_its_history_once(batch: Batch, tiling: Tiling) -> None:
    heads, kv_heads = 4, 2
    met: dict[tuple[int, int, int, int], list[Item]] = defaultdict(list)
    ranges = _items(batch, heads, kv_heads, tiling)
    for number, items in enumerate(ranges):
        for item in items:
            met[item.target_begin, item.row_begin, item.kv_head, item.tile].append(item)
            assert item.partial in (-1, 2 * number, 2 * number + 1)
    expected, targets, rows = {}, 0, 0
    for m, length in batch:
        for kv_head in range(kv_heads):
            for tile in range(-(-m * heads // kv_heads // tiling.tile_rows)):
                expected[targets, rows, kv_head, tile] = length
        targets, rows = targets + m, rows + length
    assert list(met) == list(expected)
    for at, items in met.items():
        _check_splits(items, expected[at])


def _check_splits(items: list[Item], history_rows: int) -> None:
    """The parts of a tile follow each other, and so do the places of their results: all between are added up."""
    assert [item.split_begin for item in items] == [0, *(item.split_end for item in items[:-1])]
    assert items[-1].split_end == history_rows
    first = items[0].partial // 2
    split = [2 * first + 1, *(2 * (first + s) for s in range(1, len(items)))]
    assert [item.partial for item in items] == ([-1] if len(items) == 1 else split)


# Few requests of many query rows among many of few: a block of their history takes longer than most ranges.
UNEQUAL: list[Batch] = [
    [(64, 640), (1, 7808)],
    [(1, 3), (64, 66), (1, 254)],
    [(48, 1280), *[(1, 64)] * 100],
    [(16, 3000), (60, 2000), *[(2, 500)] * 30],
]


@pytest.mark.parametrize("tiling", [Tiling(48, 32, 13, False, 16), Tiling(128, 64, 132, False, 8)], ids=str)
@pytest.mark.parametrize("batch", [*EDGES, *UNEQUAL, *map(_random_batch, range(4))])
def test_tiles_of_all_query_rows_have_every_history_row_once(batch: Batch, tiling: Tiling) -> None:
    """However many query rows they have; a range's time goes by them."""
    ranges = _items(batch, 4, 2, tiling)
    owned = [(i.row_begin + n, i.kv_head) for items in ranges for i in items for n in range(i.split_begin, i.split_end)]
    assert sorted(owned) == [(n, head) for n in range(sum(length for _, length in batch)) for head in range(2)]
    assert all(
        item.tile == 0 and item.partial in (-1, 2 * r, 2 * r + 1) for r, items in enumerate(ranges) for item in items
    )
    met: dict[tuple[int, int, int], list[Item]] = defaultdict(list)
    for items in ranges:
        for item in items:
            met[item.target_begin, item.row_begin, item.kv_head].append(item)
    first = zip(*(offsets(lengths).tolist() for lengths in zip(*batch, strict=True)), strict=True)
    requests = [(at, *request) for at, request in zip(first, batch, strict=False) if request[0]]
    for at, m, length in requests:
        for kv_head in range(2):
            if 2 * m <= tiling.tile_rows:  # nothing partial is kept of more
                _check_splits(met[*at, kv_head], length)
    query_rows = {at: 2 * m for at, m, _ in requests}
    units = [
        sum(
            max(1, -(-query_rows.get((i.target_begin, i.row_begin), 0) // tiling.unit_rows))
            * (TILE_COST + _blocks(i, tiling))
            for i in items
        )
        for items in ranges
    ]
    most = max(1, -(-max(query_rows.values(), default=0) // tiling.unit_rows)) * (TILE_COST + 1)
    least = max(4, -(-tiling.tile_rows // tiling.unit_rows))
    assert max(units) <= max(2 * least, sum(units) / tiling.num_ranges) + most


@pytest.mark.parametrize("batch", EDGES)
def test_requests_of_few_query_rows_are_left_out(batch: Batch) -> None:
    items = [item for items in _items(batch, 4, 2, Tiling(16, 32, 7, left_out=10)) for item in items]
    targets = offsets([m for m, _ in batch]).tolist()
    expected = {target for (m, _), target in zip(batch, targets, strict=False) if 2 * m > 10}
    assert {item.target_begin for item in items} == expected


@pytest.mark.parametrize("batch", [*EDGES, _random_batch(0)])
def test_tiles_of_history_stay_whole(batch: Batch) -> None:
    tiling = Tiling(tile_rows=32, block_rows=16, num_ranges=13, history=True)
    items = [item for items in _items(batch, 4, 2, tiling) for item in items]
    owned = [(i.row_begin + n, i.kv_head) for i in items for n in range(i.split_begin, i.split_end)]
    assert all(item.partial == -1 for item in items)
    assert sorted(owned) == [(n, head) for n in range(sum(length for _, length in batch)) for head in range(2)]
