"""The processes of a run."""

import os

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """The processes that `accelerate launch` or `torchrun` has started; accelerate must be told of CPUs."""
    wanted = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return PartialState(cpu=wanted or not torch.accelerator.is_available())
