"""The operators of the package, as the dispatcher knows them."""

from collections.abc import Collection

import torch

import stca

assert stca.ops.__all__, "importing stca registers the operators"
REGISTERED = sorted(
    schema.name.removeprefix("stca::") for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("stca::")
)
OPS = [name for name in REGISTERED if not name.endswith("_backward")]


def assert_has_each(table: Collection[str], operators: Collection[str], where: str) -> None:
    """Asserts that a table of a test has an entry for each operator, and no other; `where` is its file and name."""
    missing, others = sorted({*operators} - {*table}), sorted({*table} - {*operators})
    assert not missing, f"{where} must have an entry for each operator: add one for {', '.join(missing)}"
    assert not others, f"{where} must have an entry for each operator: {', '.join(others)} is none"
