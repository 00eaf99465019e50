"""Request-level batches on disk: Parquet with every history once. Needs pyarrow."""

from stca.data.dataset import RequestDataset
from stca.data.write import write_requests

__all__ = ["RequestDataset", "write_requests"]
