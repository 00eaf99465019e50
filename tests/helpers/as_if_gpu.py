"""A plugin of pytest, `-p as_if_gpu`: tests are collected as on a machine with a Hopper GPU. None can run."""

from typing import Any

import torch

cuda: Any = torch.cuda
cuda.is_available = lambda: True
