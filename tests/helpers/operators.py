"""The operators of the package, as the dispatcher knows them."""

import torch

import stca

assert stca.ops.__all__, "importing stca registers the operators"
REGISTERED = {
    schema.name.removeprefix("stca::") for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("stca::")
}
OPS = sorted(name for name in REGISTERED if not name.endswith("_backward"))
