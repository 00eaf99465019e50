"""Private names of torch: each is there in the torch that runs, and functions are called in one file only."""

import ast
import importlib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "stca").rglob("*.py"))


def _is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def _private_names(path: Path) -> set[str]:
    """Dotted names below torch that a file imports or uses, those with a private part."""
    tree = ast.parse(path.read_text())
    imported = {"torch": "torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            imported |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    heads = ((name.partition("."), name) for name in used)
    dotted = {imported[head] + dot + rest for (head, dot, rest), _ in heads if head in imported}
    return {name for name in dotted | set(imported.values()) if _is_private(name)}


def _exists(name: str) -> bool:
    module, *attributes = name.split(".")
    value: object = importlib.import_module(module)
    for attribute in attributes:
        module = f"{module}.{attribute}"
        if not hasattr(value, attribute):
            return False
        value = getattr(value, attribute)
    return True


def _missing() -> list[str]:
    return [
        f"torch {torch.__version__} has no {name}, which {path.relative_to(ROOT)} needs"
        for path in SOURCES
        for name in sorted(_private_names(path))
        if not _exists(name)
    ]


def test_this_torch_has_them_all() -> None:
    assert not _missing()


def test_one_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, "_any_requires_grad")
    found = _missing()
    assert found == [f"torch {torch.__version__} has no torch._C._any_requires_grad, which stca/ops/_autograd.py needs"]


def test_private_functions_are_called_in_one_file() -> None:
    def is_function(name: str) -> bool:
        return name.startswith(("torch._C.", "torch.autograd.forward_ad._"))

    users = {path.relative_to(ROOT).as_posix() for path in SOURCES if any(map(is_function, _private_names(path)))}
    assert users == {"stca/ops/_autograd.py"}
