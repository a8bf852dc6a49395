"""The processes of a run."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import torch

from .reports.provenance import launcher

LONGEST_WAIT = timedelta(days=7)  # of the hosts' group
COLLECTIVE_LIMIT = timedelta(hours=2)  # of the devices', where torch's own is 10 minutes on GPUs and 30 on CPUs


class OneProcess:
    """What accelerate's PartialState says of a single process, for sampling where accelerate is not installed."""

    process_index, num_processes, is_main_process, is_local_main_process = 0, 1, True, True

    @property
    def device(self) -> torch.device:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")

    def wait_for_everyone(self):
        pass

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        yield


def processes() -> Any:
    """The processes that `accelerate launch` or `torchrun` has started (accelerate's PartialState).

    The first call, which all of them have to make, sets them up.

    Raises ImportError where there are several and accelerate, which they need, is not installed.
    """
    try:
        from accelerate import PartialState
    except ModuleNotFoundError as error:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ImportError("several processes need accelerate: pip install 'ddim_hf[train]'") from error
        return OneProcess()
    # accelerate must be told of CPUs.
    wanted = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    new = not PartialState._shared_state
    state = PartialState(cpu=wanted or not torch.accelerator.is_available(), timeout=COLLECTIVE_LIMIT)
    if new:  # the first holds the addresses by which the others are still connecting: it must not end before
        wait_for_all()
    return state


@cache
def host_group() -> Any:
    """All processes of the run, by way of their hosts (gloo); None if there is one. All have to ask for it at once.

    In it one may wait for days for another's work: images that its machine has yet to read, blocks that a killed run
    has left it. A process that ends breaks its connections and so ends the others' waiting, as it does not between
    GPUs (NCCL), where only a limit of time tells it from one that is at work.
    """
    if processes().num_processes == 1:
        return None
    return torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)


def wait_for_all():
    """Wait for every process to come here, for as long as its work takes."""
    if host_group() is not None:
        torch.distributed.barrier(host_group())


def gathered(value: Any) -> list[Any]:
    """What every process gives, in their order, for each of them: after long work, too, as `wait_for_all`."""
    if host_group() is None:
        return [value]
    values = [None] * processes().num_processes
    torch.distributed.all_gather_object(values, value, group=host_group())
    return values


def once_a_machine(load: Callable[[bool], Any], refresh: bool) -> Any:
    """`load(refresh)`, where to refresh what a machine's processes share is left to the first of them.

    The others wait for it, and take what it leaves. With `refresh` all processes have to call this.
    """
    first = processes().is_local_main_process
    if refresh and not first:
        wait_for_all()
    try:
        return load(refresh and first)
    finally:
        if refresh and first:
            wait_for_all()


def is_first() -> bool:
    """Whether this process is the one that says what all processes of a run would; nothing is set up to tell."""
    return os.environ.get("RANK", "0") == "0"  # which the launchers set


def let_the_first_speak():
    """Wait, before an error is said, for the first process to say it: its end makes the launcher end the others."""
    if not is_first() and "TORCHELASTIC_RUN_ID" in os.environ:
        time.sleep(10)


def on_main(action: Callable[[], Any]) -> Any:
    """Call `action` on the main process alone, and return its result on all of them.

    All processes have to call it. The ValueError or OSError that it raises there is raised on all: else the others
    would wait for the main process for ever.
    """
    result, failure = None, None
    if processes().is_main_process:
        try:
            result = action()
        except (ValueError, OSError) as error:
            failure = error
    if host_group() is not None:
        told = [result, failure]
        torch.distributed.broadcast_object_list(told, group=host_group())
        result, failure = told
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
