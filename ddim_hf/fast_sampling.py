"""A UNet2DModel run at full speed for sampling: channels-last, bf16 where it pays, compiled."""

import shutil
import time
import warnings

import torch
from diffusers import UNet2DModel

from .fast_forwards import FastForwards


def trial_of_bf16(device: torch.device) -> tuple[bool, str]:
    """Whether bf16 pays on the device, and why.

    A processor's list of instructions does not tell: with AVX-512 alone some compute bf16 slower than float32, with
    AMX or on other makes several times faster. So on a CPU one convolution of the networks' usual size is timed.
    """
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        return native, f"the GPU has {'' if native else 'no '}native bf16"
    if device.type != "cpu" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False, f"{device.type} has no native bf16"
    gain = seconds_of_a_convolution(torch.float32) / seconds_of_a_convolution(torch.bfloat16)
    return gain > 1.2, f"a trial convolution ran {gain:.1f} times as fast in bf16 as in float32"


def seconds_of_a_convolution(dtype: torch.dtype, repeats: int = 7) -> float:
    """The least time of a channels-last convolution of [16, 128, 16, 16] on the CPU."""
    kernel = torch.zeros(128, 128, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
    x = torch.zeros(16, 128, 16, 16, dtype=dtype).to(memory_format=torch.channels_last)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        torch.nn.functional.conv2d(x, kernel, padding=1)
        times.append(time.perf_counter() - began)
    return min(times)


class FastNetwork:
    """The network as a function (x [B, C, H, W] float32, timestep) -> eps, faster than `unet(x, timestep)`.

    Args:
        unet: its weights are laid out channels-last in place; `undo` restores them.
        device: where it runs.
        dtype: torch.bfloat16 or torch.float32; None takes bf16 where the device computes it faster.
        compile: compile on first use; falls back with a warning.

    Raises:
        ValueError: another dtype.
    """

    def __init__(self, unet: UNet2DModel, device: torch.device, dtype: torch.dtype | None, compile: bool):
        if dtype not in (None, torch.bfloat16, torch.float32):
            raise ValueError(f"dtype is {dtype}; allowed: None, torch.bfloat16, torch.float32")
        pays, reason = trial_of_bf16(device) if dtype is None else (False, "asked for")
        self.unet, self.device, self.asked_for = unet, device, (dtype, compile)
        self.dtype = dtype or (torch.bfloat16 if pays else torch.float32)
        self.compiled = compile and self._can_compile()
        self.dtype_name = str(self.dtype).removeprefix("torch.")
        compiled = "compiled on first use, once for each batch size" if self.compiled else "not compiled"
        self.description = f"channels-last; {self.dtype_name} ({reason}); {compiled}"
        unet.to(memory_format=torch.channels_last)
        self._cudnn_benchmark = torch.backends.cudnn.benchmark
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # the first call of a batch size looks for its fastest kernels
        self._set_forward()

    def _set_forward(self):
        on_cpu, bf16 = self.device.type == "cpu", self.dtype == torch.bfloat16
        self._forwards = FastForwards(self.unet, bf16=bf16, channel_sums=self.compiled and on_cpu)
        self._forward, self._compiled_shapes = predict, set()
        if self.compiled:
            self._forward = torch.compile(predict, mode=None if on_cpu else "reduce-overhead", dynamic=False)

    def _can_compile(self) -> bool:
        if self.device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
            warnings.warn("no C++ compiler found (g++ or clang++): fast sampling goes on uncompiled", stacklevel=4)
            return False
        return True

    def __call__(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        x = x.to(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            output = self._predict(x, timestep)
        # A CUDA graph's output lives in memory that the next call overwrites.
        return output.to(torch.float32, memory_format=torch.contiguous_format, copy=self.compiled)

    def _predict(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        if not self.compiled:
            return self._forward(self.unet, x, timestep)
        shapes = (x.shape, timestep.shape)
        if shapes in self._compiled_shapes:
            return self._forward(self.unet, x, timestep)
        import torch._dynamo  # a second, so not before it is needed

        try:
            # Eight batch sizes and networks are the default limit of a process, past which it would not compile.
            with torch._dynamo.config.patch(recompile_limit=256):
                output = self._forward(self.unet, x, timestep)
            self._compiled_shapes.add(shapes)
            return output
        except torch._dynamo.exc.TorchDynamoException as error:  # no headers, a failing compiler, a torn cache
            cause = getattr(error, "inner_exception", error)
        reason = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
        warnings.warn(f"compilation failed ({reason[:500]}): fast sampling goes on uncompiled", stacklevel=2)
        self.compiled = False
        self._forwards.undo()
        self._set_forward()
        return self._forward(self.unet, x, timestep)

    def undo(self):
        """Give the network its weights in the default layout and its own forwards back."""
        self._forwards.undo()
        self.unet.to(memory_format=torch.contiguous_format)
        torch.backends.cudnn.benchmark = self._cudnn_benchmark


def predict(unet: UNet2DModel, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """The network's output as a function of the network, so that a copy of what calls it runs the copied network."""
    return unet(x, timestep, return_dict=False)[0]
