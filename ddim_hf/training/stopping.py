"""Stopping a run on SIGTERM or SIGINT, all its processes after the same step."""

import signal
import threading

import torch
import torch.distributed
from accelerate import Accelerator

from ..processes import end_with_launcher

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class TrainingStopped(Exception):
    """The run was asked to stop; the message says what is saved and how to go on."""


class StopRequest:
    """Whether any process of the run was asked to stop.

    `accelerate launch` leaves its child running when it is terminated itself, so on Linux the child asks to be told:
    before `listen`, it then ends at once, there being nothing to save.
    """

    def __init__(self, accelerator: Accelerator):
        self.received, self._previous = False, {}
        # The vote goes through the hosts' memory, so that no step waits for a GPU.
        self._group = torch.distributed.new_group(backend="gloo") if accelerator.num_processes > 1 else None
        end_with_launcher()

    def listen(self):
        """Take the signals from now on."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def ignore(self):
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def close(self):
        """Give the signals back and let go of the other processes."""
        self.ignore()
        self._group = None

    def _receive(self, *_):
        # No more than a note: the loop looks at it between steps, where the weights and the step's number agree.
        self.received = True

    def requested(self) -> bool:
        """Return whether to stop now; all processes call it after the same steps and get the same answer."""
        if self._group is None:
            return self.received
        # A signal reaches the processes at different steps, or one of them alone. One that stopped by itself would
        # leave the others waiting in the next step's reduction, so that the largest vote holds for all.
        vote = torch.tensor(int(self.received))
        torch.distributed.all_reduce(vote, torch.distributed.ReduceOp.MAX, group=self._group)
        return bool(vote)
