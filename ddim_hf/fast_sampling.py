"""A UNet2DModel run at full speed for sampling: channels-last, bf16 where it pays, compiled."""

import copy
import shutil
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch
from diffusers import UNet2DModel
from tqdm.auto import tqdm

from .processes import is_first
from .reports.words import counted

# Of the CIFAR-10 network on 16 cores 0.33 and 0.13 were measured, with new code and with code from torch's cache.
SECONDS_PER_LAYER, SECONDS_PER_CACHED_LAYER = 0.33, 0.13


class FastNetwork:
    """The network as a function (x [B, C, H, W], timestep, class_labels) -> eps of x's dtype, faster than it.

    Args:
        unet: its weights are laid out channels-last in place; `undo` restores them. Its forwards stay its own.
        device: where it runs.
        dtype: torch.bfloat16 or torch.float32; None takes bf16 where the device computes it faster. A network that is
            not in float32 computes in its own dtype.
        compile: compile on first use; falls back with a warning.

    Raises:
        ValueError: another dtype.
    """

    def __init__(self, unet: UNet2DModel, device: torch.device, dtype: torch.dtype | None, compile: bool):
        if dtype not in (None, torch.bfloat16, torch.float32):
            raise ValueError(f"dtype is {dtype}; allowed: None, torch.bfloat16, torch.float32")
        if dtype not in (None, unet.dtype) and unet.dtype != torch.float32:
            raise ValueError(f"dtype is {dtype}; allowed with a network of {unet.dtype}: None, or its own")
        self.unet, self.device, self.asked_for = unet, device, (dtype, compile)
        self._own_dtype, self.seconds_compiling = unet.dtype, 0.0  # up to now
        if unet.dtype != torch.float32:
            self.dtype, reason = unet.dtype, "the network's own"
        elif dtype is None:
            pays, reason = trial_of_bf16(device)
            self.dtype = torch.bfloat16 if pays else torch.float32
        else:
            self.dtype, reason = dtype, "asked for"
        self._autocast = self.dtype != self._own_dtype
        self.compiled = compile and self._can_compile()
        self.dtype_name = str(self.dtype).removeprefix("torch.")
        compiled = "compiled on first use, once for each batch size" if self.compiled else "not compiled"
        self.description = f"channels-last; {self.dtype_name} ({reason}); {compiled}"
        unet.to(memory_format=torch.channels_last)
        self._offloading = vars(unet).get("forward")
        self._prepare()

    def _prepare(self):
        on_cpu = self.device.type == "cpu"
        self._twin = twin(self.unet)
        replace_forwards(self._twin, bf16=self._autocast, channel_sums=self.compiled and on_cpu)
        self._forward, self._compiled_shapes = predict, set()
        if self.compiled:
            self._forward = torch.compile(predict, mode=None if on_cpu else "reduce-overhead", dynamic=False)

    def _can_compile(self) -> bool:
        if self.device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
            warnings.warn("no C++ compiler found (g++ or clang++): fast sampling goes on uncompiled", stacklevel=4)
            return False
        return True

    def serves(self, unet: UNet2DModel, device: torch.device) -> bool:
        """Whether this was made for that network, as it is offloaded now, on that device."""
        same_device = self.device.type == device.type and self.device.index in (None, device.index)
        same_network = self.unet is unet and self._own_dtype == unet.dtype
        return same_network and same_device and self._offloading is vars(unet).get("forward")

    def __call__(
        self, x: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        if self._twin.training != self.unet.training:
            self._twin.train(self.unet.training)
        x = x.to(memory_format=torch.channels_last)
        benchmark = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True  # the first call of a batch size looks for its fastest kernels
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
                output = self._predict(x, timestep, class_labels)
        finally:
            torch.backends.cudnn.benchmark = benchmark
        # A CUDA graph's output lives in memory that the next call overwrites.
        return output.to(x.dtype, memory_format=torch.contiguous_format, copy=self.compiled)

    def _predict(self, *inputs: torch.Tensor | None) -> torch.Tensor:
        shapes = tuple(None if each is None else each.shape for each in inputs)
        if not self.compiled or shapes in self._compiled_shapes:
            return self._forward(self._twin, *inputs)
        import torch._dynamo  # a second, so not before it is needed

        began = time.perf_counter()
        self.say(f"{self._compiling(inputs[0])}; each new batch size compiles once")
        try:
            # Eight batch sizes and networks are the default limit of a process, past which it would not compile.
            with torch._dynamo.config.patch(recompile_limit=256):
                output = self._forward(self._twin, *inputs)
            self._compiled_shapes.add(shapes)
            self.say(f"compiled in {time.perf_counter() - began:.0f} s")
            return output
        except torch._dynamo.exc.TorchDynamoException as error:  # no headers, a failing compiler, a torn cache
            cause = getattr(error, "inner_exception", error)
        finally:
            self.seconds_compiling += time.perf_counter() - began
        reason = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
        warnings.warn(f"compilation failed ({reason[:500]}): fast sampling goes on uncompiled", stacklevel=2)
        self.compiled = False
        self._prepare()
        return self._forward(self._twin, *inputs)

    def _compiling(self, x: torch.Tensor) -> str:
        kinds = torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.Linear
        layers = sum(isinstance(module, kinds) for module in self.unet.modules())
        count, _, height, width = x.shape
        return (
            f"compiling the network for {counted(count, 'image')} of {height} x {width}: "
            f"about {SECONDS_PER_LAYER * layers:.0f} s, or {SECONDS_PER_CACHED_LAYER * layers:.0f} s where torch's "
            "cache has the code"
        )

    @staticmethod
    def say(text: str):
        """Print a line, on one process."""
        if is_first():
            tqdm.write(text)  # above a progress bar, where there is one

    def undo(self):
        """Give the network's weights their default layout back."""
        self.unet.to(memory_format=torch.contiguous_format)


def predict(
    unet: UNet2DModel, x: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor | None
) -> torch.Tensor:
    """The network's output as a function of the network, so that a copy of what calls it runs the copied network."""
    return unet(x, timestep, class_labels, return_dict=False)[0]


# bf16 or float32


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


# Forwards for accuracy and for the compiler, in a copy of the modules


def twin(unet: UNet2DModel) -> UNet2DModel:
    """A copy of the modules alone: all that they keep in dictionaries (weights, buffers, hooks) is `unet`'s own.

    So it follows whatever is done to the weights, but a forward that is replaced in one is not in the other.
    """
    shared = {}
    for module in unet.modules():
        kept = [value for value in vars(module).values() if isinstance(value, dict) and value is not module._modules]
        kept += [vars(module)["_hf_hook"]] if "_hf_hook" in vars(module) else []  # what offloads the weights
        shared |= {id(value): value for value in kept}
    return copy.deepcopy(unet, shared)


def replace_forwards(unet: UNet2DModel, *, bf16: bool, channel_sums: bool):
    """Replace forwards of a network that runs under autocast to bf16, or is compiled for a CPU.

    Args:
        bf16: its first and last convolution and its shortcuts, through which the state passes the blocks by, go on in
            float32: rounding shows most there.
        channel_sums: let GroupNorm compute `group_norm`, which only code compiled for a CPU gains by.
    """
    for name, module in unet.named_modules():
        if bf16 and name.rpartition(".")[-1] in ("conv_in", "conv_out", "conv_shortcut"):
            module.forward = partial(in_own_dtype, module, module.forward)
        elif channel_sums and isinstance(module, torch.nn.GroupNorm) and module.affine:
            module.forward = partial(group_norm, module, group_averages(module))


def in_own_dtype(module: torch.nn.Module, forward: Callable, x: torch.Tensor) -> torch.Tensor:
    """Return `forward` of x, computed in the dtype of the module's weight whatever autocast says."""
    with torch.autocast(x.device.type, enabled=False):
        return forward(x.to(module.weight.dtype))


def group_averages(module: torch.nn.GroupNorm) -> torch.Tensor:
    """The matrix [C, C] that takes a value of each channel to the mean over the channel's group."""
    size = module.num_channels // module.num_groups
    blocks = [torch.full((size, size), 1 / size)] * module.num_groups
    return torch.block_diag(*blocks).to(module.weight.device)


def group_norm(module: torch.nn.GroupNorm, averages: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return what an affine `module` makes of x [B, C, ...], in x's dtype: sums over pixels, then over the group.

    For `torch.nn.GroupNorm` on channels-last images torch.compile walks group by group on a CPU, two to four
    neighbouring channels in vectors of sixteen: half of the time of the CIFAR-10 networks. Sums for all channels side
    by side fill the vectors; the matrix product with `averages` keeps it from computing the groups' moments anew for
    each pixel. The variance is the mean square less the squared mean, in float32: its relative error is some
    1e-7 (mean / deviation)^2, unless torch.set_float32_matmul_precision("medium") lets the product run in bf16.
    """
    with torch.autocast(x.device.type, enabled=False):
        pixels = x.float().flatten(2)
        moments = torch.stack([pixels.mean(2), pixels.square().mean(2)])
        mean, mean_square = (moments @ averages).unbind()
        scale = module.weight * (mean_square - mean.square()).clamp(min=0).add(module.eps).rsqrt()
        shift = module.bias - mean * scale
        return (pixels * scale[:, :, None] + shift[:, :, None]).view(x.shape).to(x.dtype)
