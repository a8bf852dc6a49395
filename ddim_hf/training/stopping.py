"""Stopping a run on SIGTERM or SIGINT, all its processes after the same step."""

import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed

from ..processes import end_with_launcher, host_group, on_main, processes

SIGNALS = (signal.SIGTERM, signal.SIGINT)
VOTE_SECONDS = 0.2  # between two votes on long work
CHILDREN = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


class TrainingStopped(Exception):
    """The run was asked to stop; the message says what is saved and how to go on."""


class Interrupted(Exception):
    """The run was asked to stop amid work that it will do anew when it goes on."""


class StopRequest:
    """Whether any process of the run was asked to stop.

    `accelerate launch` leaves its child running when it is terminated itself, so on Linux the child asks to be told:
    before `listen`, it then ends at once, there being nothing to save.
    """

    def __init__(self):
        self.received, self._previous = False, {}
        self._group = host_group()  # so that no step waits for a GPU
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
        host_group.cache_clear()

    def _receive(self, *_):
        # No more than a note: the loop looks at it between steps, where the weights and the step's number agree.
        self.received = True

    def requested(self) -> bool:
        """Return whether to stop now; all processes call it after the same steps and get the same answer."""
        # A signal reaches the processes at different steps, or one of them alone. One that stopped by itself would
        # leave the others waiting in the next step's reduction, so that the largest vote holds for all.
        (received,) = self._any(self.received)
        return received

    def _any(self, *votes: bool) -> list[bool]:
        """For each vote whether any process casts it."""
        if self._group is None:
            return list(votes)
        cast = torch.tensor(votes, dtype=torch.int32)
        torch.distributed.all_reduce(cast, torch.distributed.ReduceOp.MAX, group=self._group)
        return cast.bool().tolist()

    def on_main(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """As `processes.on_main`, of long work that a signal may interrupt: all processes then raise Interrupted.

        It is done in a child process, that can be ended: a signal to this one, and to a thread of it, would wait for
        the end of a call into a library.
        """
        receiver = child = None
        if processes().is_main_process:
            receiver, sender = CHILDREN.Pipe(duplex=False)
            child = CHILDREN.Process(target=_perform, args=(function, arguments, sender), daemon=True)
            child.start()
            sender.close()  # the child's end is the only one then
        try:
            received = done = False
            while not done:
                received, done = self._any(self.received, child is not None and receiver.poll(VOTE_SECONDS))
                if received and not done:
                    raise Interrupted
            return on_main(lambda: _result(receiver))
        finally:
            if child is not None:
                child.kill()
                child.join()


def _perform(function: Callable[..., Any], arguments: tuple, sender: Connection):
    """In the child process: send what the function returns or raises."""
    try:
        sender.send((function(*arguments), None))
    except Exception as error:
        sender.send((None, error))


def _result(receiver: Connection) -> Any:
    try:
        result, error = receiver.recv()
    except EOFError:
        raise OSError("a child process of the run was ended, by too little memory or by hand") from None
    if error is not None:
        raise error
    return result
