"""What batches are made of, and what is written of them, in place of tensors and batches."""

from pathlib import Path

import pytest
import torch

from stca.batch import RequestBatch
from stca.data import write_requests


def test_what_is_no_tensor(tmp_path: Path) -> None:
    """Said by its name, by whatever takes batches."""
    offsets = torch.tensor([0, 1])
    for parts, name, kind in (
        (({}, [0, 5], {}, offsets), "history_offsets", "list"),
        (({}, offsets, {}, None), "target_offsets", "NoneType"),
        (({}, offsets, {"item_id": [1]}, offsets), "targets.item_id", "list"),
    ):
        with pytest.raises(TypeError, match=f"RequestBatch: {name} must be a tensor, got {kind}"):
            RequestBatch(*parts).validate()
    with pytest.raises(TypeError, match=r"write_requests: batches must give RequestBatch, .*group_log.*, got dict"):
        write_requests([{}], tmp_path / "none.parquet")  # type: ignore[list-item]
