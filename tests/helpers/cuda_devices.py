"""Where the CUDA kernels run: the emulator, on any machine, and a GPU, where there is one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import TargetAttentionCase, TargetAttentionInputs, moved
from emulated import emulated_device, emulated_target_attention, in_new_memory, launched_kernels
from torch import Tensor

# A machine that has a GPU must run these tests: a driver or a build that does not work is a failure, not a skip.
HAS_GPU = Path("/dev/nvidiactl").exists() or torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")

DEVICES = ["emulator", *(["gpu"] if HAS_GPU else [])]
# Where Hopper's own kernels run, whether a GPU has confirmed them or not: in the emulator, and on a Hopper GPU.
HOPPERS = ["hopper", *(["hopper-gpu"] if HAS_GPU else [])]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def target_attention_on(
    device: str, inputs: TargetAttentionInputs, seed: int = 1, rough: bool = False, multiprocessors: int | None = None
) -> dict[str, Tensor]:
    """What `TargetAttentionInputs.results` gives, by the CUDA kernels; all after `inputs` is of the emulator."""
    if device in ("emulator", "hopper"):
        hopper = device == "hopper"
        return emulated_target_attention(inputs, seed, rough, hopper=hopper, multiprocessors=multiprocessors)
    with families_of(device):
        results = inputs.on(on_gpu).results()
    return {name: x.cpu() for name, x in results.items()}


@contextmanager
def families_of(device: str) -> Iterator[None]:
    """Has a GPU take Hopper's kernels, all of them, where they are asked for, and those that are on elsewhere.

    A test of what this GPU has too little shared memory for is skipped, but on those that have the most.
    """
    with pytest.MonkeyPatch.context() as patch:
        if device == "hopper-gpu":
            if torch.cuda.get_device_capability()[0] != 9:
                pytest.skip("needs a Hopper GPU")
            patch.setenv("STCA_SM90", "1")  # each call looks at it
        try:
            yield
        except ValueError as error:
            has_all = torch.cuda.get_device_capability()[0] in (9, 10)  # 227 KB a block
            if has_all or "of shared memory of a block on this GPU" not in str(error):
                raise
            pytest.skip(str(error))


def hopper_kernels(device: str, call: Callable[[], object]) -> list[str]:
    """Names of Hopper's own kernels that a call on the device ran, in the emulator's last device or on the GPU."""
    if device == "hopper-gpu":
        names = kernels_on_gpu(call)
    else:
        call()
        names = launched_kernels()
    return [name for name in names if "sm90_kernel" in name]


def kernels_on_gpu(call: Callable[[], object]) -> list[str]:
    """Names of all that a call ran on the GPU, which torch's profiler has from CUDA; a test fails where it has none.

    Tests that ask this are not for compute-sanitizer, which listens to CUDA in the profiler's place.
    """
    profiler = torch.profiler
    supported = profiler.supported_activities()  # type: ignore[no-untyped-call]
    if profiler.ProfilerActivity.CUDA not in supported:
        pytest.fail("this torch cannot trace a GPU: nothing shows which kernels ran")
    torch.cuda.synchronize()
    with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as trace:
        call()
        torch.cuda.synchronize()
    names = [event.name for event in trace.events() if event.device_type.name == "CUDA"]
    if not names:
        pytest.fail("torch's profiler saw nothing run on the GPU: nothing shows which kernels ran")
    return names


def on_gpu(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """A copy in the GPU's memory."""
    return torch.empty(len(storage), dtype=torch.uint8, device="cuda").untyped_storage().copy_(storage)


def call_on(device: str, op: str, *arguments: Any, seed: int = 1, rough: bool = False) -> Any:
    """The operator's results by the CUDA kernels, on the CPU; `seed` is the emulator's order of threads.

    Where `device` is "hopper" or "hopper-gpu", Hopper's own kernels are taken.
    """
    if device in ("emulator", "hopper"):
        with emulated_device(seed, rough=rough, hopper=device == "hopper") as ops:
            results = getattr(ops, op)(*tree_map(lambda x: moved(x, in_new_memory), arguments))
        return tree_map(torch.clone, results)
    with families_of(device):
        results = getattr(torch.ops.stca, op)(*tree_map(lambda x: moved(x, on_gpu), arguments))
    return tree_map(lambda x: x.cpu(), results)


def swiglu_on(
    device: str, inputs: dict[str, Tensor], dy: Tensor, keep: bool = False, **options: Any
) -> dict[str, Tensor]:
    """y of swiglu_ffn_norm and the gradients, by the CUDA kernels; `inputs` are those of `swiglu_inputs`."""
    arguments = [inputs.get(name) for name in ("x", "w_u", "w_v", "w_o", "norm_weight", "norm_bias")]
    y, mean, rstd, *kept = call_on(device, "swiglu_ffn_norm", *arguments, 1e-5, keep, **options)
    kept = kept if keep else [None, None]
    grads = call_on(device, "swiglu_ffn_norm_backward", dy, *arguments, mean, rstd, None, True, *kept, **options)
    return {"y": y} | {f"d{name}": grad for name, grad in zip(inputs, grads[: len(inputs)], strict=True)}


def tree_map(f: Callable[[Tensor], Tensor], values: Any) -> Any:
    """f of every tensor in nested lists and tuples."""
    return torch.utils._pytree.tree_map_only(Tensor, f, values)


def supported(case: TargetAttentionCase) -> bool:
    """Whether the CUDA kernels take the case's widths."""
    if case.value_dim is None:
        return case.key_dim <= 1024
    return max(case.key_dim, case.value_dim) <= 256
