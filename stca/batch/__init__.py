"""Request-level batching: batches that hold every history once, the way from and to point-wise samples, losses."""

from stca.batch.jagged import from_keyed, from_nested, to_keyed, to_nested
from stca.batch.loss import bce_loss
from stca.batch.pointwise import Sample, from_pointwise, to_pointwise
from stca.batch.ranges import ranges_to_index
from stca.batch.request_batch import RequestBatch

__all__ = [
    "RequestBatch",
    "Sample",
    "bce_loss",
    "from_keyed",
    "from_nested",
    "from_pointwise",
    "ranges_to_index",
    "to_keyed",
    "to_nested",
    "to_pointwise",
]
