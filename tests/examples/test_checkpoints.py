"""Checkpoints of strangers: no code runs, no memory is taken that the file does not fill, and the file is named."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from ranker.checkpoint import check_settings, load_checkpoint, whole_checkpoint
from serve.scorer import Scorer
from serve.store import SQLiteStore
from service_process import write_checkpoint
from torch.distributed.checkpoint.state_dict_loader import load as load_parts
from torch.distributed.checkpoint.state_dict_saver import save as save_parts


class Code:
    """What runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_code_does_not_run(tmp_path: Path) -> None:
    torch.save({"model": Code(tmp_path / "ran")}, path := tmp_path / "x.pt")
    with pytest.raises(ValueError, match=f"^{path}: must be a whole checkpoint"):
        load_checkpoint(path, ["model"])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"a": 1}, "must be of b = None (or another), got b = missing"),
        ({"a": 1, "b": None, "c": 2}, "must be of c = missing (or another), got c = 2"),
        ({"a": torch.zeros(2), "b": None}, "must be of a = 1 (or another), got a = tensor([0., 0.])"),
        ("a = 1", "must hold settings (or another), got 'a = 1'"),
    ],
)
def test_settings_that_differ(tmp_path: Path, found: Any, says: str) -> None:
    check_settings(tmp_path, {"a": 1, "b": None}, {"b": None, "a": 1}, " (or another)")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}: {says}")):
        check_settings(tmp_path, {"a": 1, "b": None}, found, " (or another)")


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata"])
def test_parts_that_are_cut(tmp_path: Path, name: str) -> None:
    """Of torch's distributed checkpoints, whose errors are no `Exception`."""
    save_parts({"model": torch.rand(64, 64)}, checkpoint_id=(folder := tmp_path / "checkpoint-8"))
    os.truncate(folder / name, (folder / name).stat().st_size // 2)
    with pytest.raises(ValueError, match=f"^{folder}: must be a whole checkpoint"), whole_checkpoint(folder):
        load_parts({"model": torch.zeros(64, 64)}, checkpoint_id=folder)


def test_an_interrupted_reader_is_no_broken_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole_checkpoint(tmp_path):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "content",
    [
        {"model": torch.zeros(1).expand(2**36, 4)},
        {"model": {"deep": [torch.zeros(8)[::2].expand(9, 4)]}},
        {"model": torch.eye(3).to_sparse()},
        {"model": torch.zeros(3, device="meta")},
        {"weights": 1},
        [1],
    ],
)
def test_contents_that_are_none(tmp_path: Path, content: Any) -> None:
    torch.save(content, path := tmp_path / "x.pt")
    with pytest.raises(ValueError, match=f"^{path}: must be a whole checkpoint of it: "):
        load_checkpoint(path, ["model"], " of it")
    torch.save({"model": torch.zeros(8, 4)[:2]}, path)
    assert load_checkpoint(path, ["model"])["model"].shape == (2, 4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("time_parts", None),
        ("time_parts", torch.arange(9)),
        ("time_parts", torch.rand(63)),
        ("settings", 3),
        ("state", {}),
        ("candidate.weight", torch.zeros(10**9, 0)),
        ("user.weight", torch.zeros(10**9, 0)),
        ("candidate.weight", torch.zeros(1, 10**6)),
        ("logit.bias", torch.zeros(2)),
        ("stca.layers.0.history_ffn.w_u", torch.zeros(16, 32)),  # query_ffn has the same
    ],
)
def test_what_the_service_cannot_take(tmp_path: Path, name: str, value: Any) -> None:
    saved = torch.load(write_checkpoint(path := tmp_path / "ranker.pt"), weights_only=True)
    (saved["model"] if name in saved["model"] else saved)[name] = value
    torch.save(saved, path)
    with pytest.raises(
        ValueError, match=rf"^{path}: must be a whole checkpoint of STCA by train_ranker.py --event-time"
    ):
        Scorer(path, SQLiteStore(tmp_path / "events.sqlite"), 64, 8, page_rows=16)
