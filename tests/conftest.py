"""What tests rely on: the same seed, two threads unless it asks for others, an instruction set."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import ISAS
from covering import mark_what_is_covered
from hypothesis import HealthCheck, settings
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

import stca

# The default draws the same examples every time, `pytest --hypothesis-profile=thorough` more and others.
_patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
settings.register_profile("fast", _patient, max_examples=40, derandomize=True)
settings.register_profile("thorough", _patient, max_examples=500)
settings.load_profile("fast")


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_what_is_covered(items)


@pytest.fixture(autouse=True)
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the thread count, 2 if never called; the one of before comes back after the test."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once with the kernels of each instruction set that this CPU has."""
    before = stca.cpu_isa()
    name: str = request.param
    stca.set_cpu_isa(name)
    yield name
    stca.set_cpu_isa(before)


@pytest.fixture
def uninitialized_is_nan() -> Iterator[None]:
    """Fills what `empty` allocates, scratch memory included, with NaN."""
    deterministic: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    deterministic.fill_uninitialized_memory = before[1]


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """A mesh of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.fixture
def keyed() -> Callable[..., Any]:
    """torchrec's own KeyedJaggedTensor."""
    module = pytest.importorskip("torchrec.sparse.jagged_tensor", exc_type=ImportError)
    constructor: Callable[..., Any] = module.KeyedJaggedTensor
    return constructor
