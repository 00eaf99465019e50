"""What the choice between the two orders of attention rests on."""

from typing import Literal, NamedTuple

Order = Literal["auto", "reordered", "projected"]


class Costs(NamedTuple):
    """Time of a FLOP of attention, in each order, over that of a FLOP of the products that project keys and values."""

    reordered: float
    projected: float


# CPU: what makes fewest wrong choices in the cases of benchmarks/results (see "order" in benchmarks/NOTES.md). CUDA: a
# prediction, for the orders have not been compared on a GPU: mma.sync runs at about half of cuBLAS's rate in either.
CPU_COSTS, CUDA_COSTS = Costs(1.2, 2.0), Costs(2.0, 2.0)
ROWS_OF_A_GROUP = 10_000  # of a history, for the choice of order where no rank knows its length


def compiled_choice(R: int, cheaper: bool) -> bool:
    """Whether a program that is being compiled takes the reordered form; `cheaper` becomes one of its guards.

    Not where R is the size of a nested tensor: of the two names that dynamo has for it, the offsets' length minus 1 and
    the nested tensor's own, a set's order says which stays, and the latter ends in an AssertionError when guards are
    made. It is known to be at least 2, since 0 and 1 are constants; of the length of other offsets just that is known.
    Nor where `cheaper` depends on data, as the length of selected histories does.
    """
    from torch.fx.experimental.symbolic_shapes import guard_or_true, has_static_value, statically_known_true

    return (not has_static_value(R) and statically_known_true(R >= 2)) or guard_or_true(cheaper)
