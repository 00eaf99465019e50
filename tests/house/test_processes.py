"""A test in several processes ends, whatever its ranks do."""

import time
from pathlib import Path

import pytest
from processes import run_ranks


def _sleep(rank: int) -> None:
    time.sleep(600 * rank)


def _fail(rank: int) -> None:
    if rank == 1:
        raise ArithmeticError("rank 1 has failed")
    time.sleep(600)


def test_a_rank_that_hangs_ends_the_test(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match=r"_sleep: ranks .* of 2 were not done after 3 s"):
        run_ranks(_sleep, 2, tmp_path, seconds=3)


def test_a_rank_that_fails_ends_the_test(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="rank 1 has failed"):
        run_ranks(_fail, 2, tmp_path)
