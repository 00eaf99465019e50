"""The examples take from the package what it offers everyone: names that a package lists, or a module of its own."""

import ast
import importlib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODULES = {"stca.files", "stca.lengths"}  # every name in them without an underscore is offered


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: path.name)
def test_examples_import_public_names_alone(path: Path) -> None:
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    for node in imports:
        module = node.module or ""
        if module.split(".")[0] == "stca":
            offered = importlib.import_module(module)
            for name in (alias.name for alias in node.names):
                listed = name in getattr(offered, "__all__", ())
                assert listed or (module in MODULES and not name.startswith("_")), f"{module}.{name}"


def test_a_name_by_the_back_door_is_seen(tmp_path: Path) -> None:
    for line in (
        "from stca.data.group import part_of_user",
        "from stca.data import group",
        "from stca.files import _FULL",
    ):
        path = tmp_path / "example.py"
        path.write_text(f"{line}\n")
        with pytest.raises(AssertionError):
            test_examples_import_public_names_alone(path)
