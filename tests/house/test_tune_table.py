"""The table that launchers read says what the files of results say, and calls nothing measured that is not."""

import json
import re
from typing import Any

import pytest
import tune_table

TUNED, SM90 = (json.loads((tune_table.RESULTS / name).read_text()) for name in tune_table.FILES)


def test_the_table_is_what_the_files_say() -> None:
    assert tune_table.HEADER.read_text() == tune_table.header(TUNED, SM90)
    names = re.findall(r"X\((\w+), \d\)", (tune_table.HEADER.parent / "choice.h").read_text())
    assert list(TUNED["choices"]) == names


@pytest.mark.parametrize("result", [TUNED, SM90])
def test_nothing_is_called_measured_that_no_gpu_has(result: dict[str, Any]) -> None:
    assert all(bool(result[name]) == bool(result["gpu"]) for name in ("driver", "date"))
    assert result["gpu"] or (not result.get("ms") and not result.get("confirmed"))


def test_what_the_table_says_of_its_source() -> None:
    measured = {"gpu": "A GPU", "driver": "1.2", "date": "2030-01-01"}
    text = tune_table.header(TUNED | measured, SM90 | measured | {"confirmed": ["swiglu_ffn_norm"]})
    assert text.count("Source: A GPU, 1.2, 2030-01-01.") == 2
    assert "X(swiglu_ffn_norm, true)" in text
    assert "X(target_attention, false)" in text
    with pytest.raises(ValueError, match=r"sm90.json: confirmed must be among .*, got other"):
        tune_table.header(TUNED, SM90 | {"confirmed": ["other"]})
