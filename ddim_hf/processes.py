"""The processes of a run."""

import os
from collections.abc import Callable
from typing import Any

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """The processes that `accelerate launch` or `torchrun` has started; accelerate must be told of CPUs."""
    wanted = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return PartialState(cpu=wanted or not torch.accelerator.is_available())


def on_main(action: Callable[[], Any]) -> Any:
    """Call `action` on the main process alone, and return its result on all of them.

    All processes have to call it. The ValueError or OSError that it raises there is raised on all: else the others
    would wait for the main process for ever.
    """
    from accelerate.utils import broadcast_object_list

    result, failure = None, None
    if processes().is_main_process:
        try:
            result = action()
        except (ValueError, OSError) as error:
            failure = error
    result, failure = broadcast_object_list([result, failure])
    if failure is not None:
        raise failure
    return result
