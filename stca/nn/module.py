"""What the modules share: how `torch.fx.symbolic_trace` passes them, and what they say of a wrong tensor."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.proxy import Proxy, TraceError
from torch.overrides import has_torch_function

from stca.ops._autograd import within_autocast


class Module(nn.Module):
    """A module that symbolic tracing records as one call, whichever tracer is at work.

    Its forward looks at shapes and values, which a `torch.fx.Proxy` does not have.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`forward` with hooks, or its record in the graph that is being traced."""
        # Tells in a fraction of a microsecond that there is no proxy: proxies take part in __torch_function__.
        if has_torch_function(args) or (kwargs and has_torch_function(tuple(kwargs.values()))):
            for argument in (*args, *kwargs.values()):
                if isinstance(argument, Proxy):
                    path = argument.tracer.path_of_module(self)  # type: ignore[attr-defined]
                    return argument.tracer.create_proxy("call_module", path, args, kwargs)
        return super().__call__(*args, **kwargs)


def check_tensor(owner: str, name: str, value: object) -> None:
    """Raises TypeError unless the value is a tensor, TraceError where it stands for one in `torch.fx`."""
    if isinstance(value, Tensor):
        return
    if isinstance(value, Proxy):
        raise TraceError(
            f"{owner}: {name} must be a Tensor, got {value!r} of torch.fx, which records the module as one call and "
            "cannot look into it: trace a model that contains the module, not the module itself"
        )
    raise TypeError(f"{owner}: {name} must be a Tensor, got {type(value).__name__} {value!r}")


def check_like(owner: str, weight: Tensor, **given: Tensor | None) -> None:
    """Raises ValueError unless what is given has the weights' device and dtype, or one that autocast converts."""
    for name, rows in given.items():
        if rows is None or (rows.device == weight.device and rows.dtype == weight.dtype):
            continue
        converted = within_autocast() and torch.float64 not in (rows.dtype, weight.dtype)
        if rows.device != weight.device or not converted:
            raise ValueError(
                f"{owner}: {name} must be {weight.dtype} on {weight.device}, as the module's weights, got {rows.dtype} "
                f"on {rows.device}"
            )
