"""What `make test` runs of a product of parameters holds each value, or each pair of values, and little more."""

from itertools import combinations, product

import pytest
from covering import covering


@pytest.mark.parametrize("strength", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(5,), (1, 4, 1), (3, 4), (7, 2, 4, 3, 4), (4, 4, 4, 4)])
def test_each_combination_is_held(sizes: tuple[int, ...], strength: int) -> None:
    rows = list(product(*map(range, sizes)))
    chosen = [rows[i] for i in covering(rows, strength)]
    for columns in combinations(range(len(sizes)), min(strength, len(sizes))):
        found = {tuple(row[c] for c in columns) for row in chosen}
        assert found == set(product(*(range(sizes[c]) for c in columns)))


@pytest.mark.parametrize(
    ("sizes", "strength", "least"), [((84, 3), 1, 84), ((87, 4, 4), 2, 348), ((6, 4, 3, 4), 2, 24)]
)
def test_the_fewest_are_chosen(sizes: tuple[int, ...], strength: int, least: int) -> None:
    rows = list(product(*map(range, sizes)))
    assert len(covering(rows, strength)) == least


def test_what_a_product_lacks_is_not_asked_for() -> None:
    assert len(covering([(0, 0), (0, 1), (1, 1)], 2)) == 3


def test_values_come_up_equally_often() -> None:
    rows = list(product(range(84), range(3)))
    dtypes = [rows[i][1] for i in covering(rows)]
    assert [dtypes.count(dtype) for dtype in range(3)] == [28, 28, 28]
