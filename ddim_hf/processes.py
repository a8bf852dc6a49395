"""The processes of a run."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch
from accelerate import PartialState

from .provenance import launcher


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


def end_with_launcher():
    """Have this process end, by SIGTERM, when the launcher that started it does (on Linux).

    `accelerate launch` leaves its child at work when it is terminated itself.
    """
    # Not where a shell is the parent: a run under nohup outlives it.
    if sys.platform != "linux" or not launcher():
        return
    parent, pr_set_pdeathsig = os.getppid(), 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() != parent:  # it ended just before
        os.kill(os.getpid(), signal.SIGTERM)
