"""How the passes of a training are computed: module by module or compiled, as asked for or as a trial finds faster."""

import ctypes
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..fast_sampling import replace_forwards
from ..reports.provenance import machine
from .dropout import draw_dropout_fast

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h, for mallopt
PASSES, SECONDS = 3, 30  # of a trial, each way: at most so many timed passes, begun within so many seconds
LEAST_GAIN = 1.05  # below it the run stays as it is


@dataclass(frozen=True)
class Choice:
    """What a trial chose, and the place that it holds for.

    Args:
        gain: how many times as fast compiled passes were; 0 where they could not be compiled.
        place: machine, threads and images of a pass.
    """

    gain: float
    place: str

    @property
    def compiled(self) -> bool:
        return self.gain >= LEAST_GAIN

    def __str__(self) -> str:
        if not self.gain:
            return "not compiled, as that failed"
        chosen = "compiled" if self.compiled else "not compiled"
        return f"{chosen}, as compiled passes were {self.gain:.2f} times as fast"


class Computation:
    """A network's passes, module by module at first. Its weights are its own either way, but for their layout.

    Args:
        unet: the network that is trained.
        device: where it lies.
        channels_last: the weights' layout; None takes channels-last on a GPU, and where compiled.
        cuda_graphs: whether compiled code on a GPU is replayed from CUDA graphs.
    """

    def __init__(self, unet: torch.nn.Module, device: torch.device, channels_last: bool | None, cuda_graphs: bool):
        self.unet, self.device, self.cuda_graphs = unet, device, cuda_graphs
        self.channels_last = channels_last
        self.choice: Choice | None = None
        if device.type == "cpu":
            keep_freed_memory()
        self._lay_out(device.type == "cuda")

    def _lay_out(self, channels_last: bool):
        channels_last = channels_last if self.channels_last is None else self.channels_last
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.unet.to(memory_format=self.memory_format)

    def compile(self):
        """Compile the passes from here on, when one is first computed."""
        on_gpu = self.device.type == "cuda"
        self._lay_out(True)
        replace_forwards(self.unet, bf16=False, channel_sums=not on_gpu)
        if self.device.type == "cpu":
            draw_dropout_fast(self.unet)
        # Not dynamic: else the samplers' batch size would make the graphs so.
        self.unet.compile(mode="reduce-overhead" if on_gpu and self.cuda_graphs else None, dynamic=False)

    def undo(self):
        """Compute module by module again."""
        self.unet._compiled_call_impl = None  # torch has no way of its own to undo `compile`
        for module in self.unet.modules():
            if isinstance(module, torch.nn.GroupNorm | torch.nn.Dropout):
                vars(module).pop("forward", None)
        self._lay_out(self.device.type == "cuda")

    def choose(
        self,
        one_pass: Callable[[], None],
        place: str,
        slowest: Callable[[float], float],
        before: Choice | None = None,
    ) -> str:
        """Compile if that is faster, and return in words what was chosen and why.

        Args:
            one_pass: a forward and backward pass; returns when it is done.
            place: what a choice holds for, see `place`.
            slowest: of a number on each process, the largest, so that all choose alike.
            before: the choice of the run that is gone on with, which is kept at its place.
        """
        if before and before.place == place:
            self.choice = before
            if before.compiled:
                self.compile()
            return f"compile auto: {before} in this run's trial, whose choice is kept"
        again = "" if before is None else f"; tried anew, as the checkpoint is of {before.place}"
        plain = slowest(seconds_of(one_pass))
        self.compile()
        began = time.perf_counter()
        compiled, why = self._seconds_compiled(one_pass)
        took, compiled = time.perf_counter() - began, slowest(compiled)
        self.choice = Choice(plain / compiled, place)
        if not self.choice.compiled:
            self.undo()
        if math.isinf(compiled):
            return f"compile auto: {self.choice}{why}{again}"
        return (
            f"compile auto: {self.choice}: a pass took {compiled:.3g} s, and {plain:.3g} s module by module "
            f"(the trial of the compiled passes took {took:.0f} s){again}"
        )

    def _seconds_compiled(self, one_pass: Callable[[], None]) -> tuple[float, str]:
        import torch._dynamo  # a second, so not before it is needed

        try:
            return seconds_of(one_pass), ""
        except torch._dynamo.exc.TorchDynamoException as error:  # no compiler, no headers, a torn cache
            cause = getattr(error, "inner_exception", error)
            return math.inf, f" ({type(cause).__name__}: {' '.join(str(cause).split())[:300]})"


def keep_freed_memory():
    """Let glibc, for the rest of the process, keep what is freed for what is allocated next.

    By default it gives large blocks back to the system, which clears each page when the next step asks for it again: a
    training step of `cifar10-64` in batches of 64 had 100,000 pages cleared. At its peak the process is some percent
    larger. Other allocators and systems are left as they are, and a glibc whose environment says what it is to do.
    """
    told = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if platform.libc_ver()[0] == "glibc" and not told:
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def place(images: int) -> str:
    """What the speed of a pass of so many images depends on, in words."""
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    return f"{machine()}, {capability}, {threads} threads, passes of {images} images"


def seconds_of(one_pass: Callable[[], None]) -> float:
    """The least time of a few passes, after one that prepares much."""
    times: list[float] = []
    one_pass()
    while len(times) < PASSES and sum(times) < SECONDS:
        began = time.perf_counter()
        one_pass()
        times.append(time.perf_counter() - began)
    return min(times)
