"""A UNet2DModel run at full speed for sampling: channels-last, bf16 where native, compiled."""

import shutil
import warnings

import torch
from diffusers import UNet2DModel


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return False


class FastNetwork:
    """The network as a function (x [B, C, H, W] float32, timestep) -> eps, faster than `unet(x, timestep)`.

    Args:
        unet: its weights are laid out channels-last in place; `undo` restores them.
        device: where it runs.
        dtype: torch.bfloat16 or torch.float32; None takes bf16 where the device has it.
        compile: compile on first use; falls back with a warning.

    Raises:
        ValueError: another dtype.
    """

    def __init__(self, unet: UNet2DModel, device: torch.device, dtype: torch.dtype | None, compile: bool):
        if dtype not in (None, torch.bfloat16, torch.float32):
            raise ValueError(f"dtype is {dtype}; allowed: None, torch.bfloat16, torch.float32")
        native = has_native_bf16(device)
        self.unet, self.device = unet, device
        self.dtype = dtype or (torch.bfloat16 if native else torch.float32)
        self.compiled = compile and self._can_compile()
        unet.to(memory_format=torch.channels_last)
        self.forward = self._compile() if self.compiled else unet.forward
        self.description = (
            f"channels-last; {str(self.dtype).removeprefix('torch.')} "
            f"({'asked for' if dtype else f'{device.type} has ' + ('' if native else 'no ') + 'native bf16'}); "
            + ("compiled on first use" if self.compiled else "not compiled")
        )

    def _can_compile(self) -> bool:
        if self.device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
            warnings.warn("no C++ compiler found (g++ or clang++): fast sampling goes on uncompiled", stacklevel=4)
            return False
        return True

    def _compile(self):
        on_gpu = self.device.type == "cuda"
        return torch.compile(self.unet.forward, mode="reduce-overhead" if on_gpu else None, dynamic=False)

    def __call__(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        x = x.to(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            output = self.forward(x, timestep, return_dict=False)[0]
        # A CUDA graph's output lives in memory that the next call overwrites.
        return output.to(torch.float32, memory_format=torch.contiguous_format, copy=self.compiled)

    def undo(self):
        """Give the network its weights in the default layout back."""
        self.unet.to(memory_format=torch.contiguous_format)
