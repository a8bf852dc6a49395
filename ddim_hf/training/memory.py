"""The memory of a training step, counted without one: its tensors are described but never made."""

import weakref
from dataclasses import dataclass

import torch
from diffusers import UNet2DModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .classes import null_labels

AUTOCAST = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step on one process, float32 weights.

    Args:
        lasting: the weights, AdamW's two moments and the averages, or this process's part of them.
        passing: the most that gradients, activations and what is computed between them take at once.
    """

    lasting: int
    passing: int

    @property
    def peak(self) -> int:
        return self.lasting + self.passing


def step_memory(
    unet: UNet2DModel,
    batch_size: int,
    *,
    mixed_precision: str = "no",
    num_averages: int = 1,
    num_processes: int = 1,
    sharded: bool = False,
    passes: int = 1,
    gradient_checkpointing: bool = False,
) -> StepMemory:
    """Estimate what a step takes beside the data, the libraries and what an allocator keeps of freed memory.

    Args:
        unet: its config alone counts.
        batch_size: images of one pass of one process.
        mixed_precision: "no", "fp16" or "bf16".
        num_averages: averaged weights that are kept.
        num_processes: with several, gradients are also held in the buckets that are sent.
        sharded: they divide weights, moments and averages (FSDP). Gradients are counted whole, in the place of the
            weights of other processes that each one gathers as it needs them.
        passes: of a step; from the second on the gradients of those before are there too.
        gradient_checkpointing: the ResNet blocks' activations are not kept, but computed again one block at a time.
    """
    weights = 4 * sum(parameter.numel() for parameter in unet.parameters())
    size = unet.config.sample_size
    shape = (batch_size, unet.config.in_channels, size, size)
    with FakeTensorMode():
        network = UNet2DModel.from_config(unet.config)
        if gradient_checkpointing:
            network.enable_gradient_checkpointing()
        with _LiveBytes() as live:
            for _ in range(min(passes, 2)):  # the second has the peak of all that follow
                x_t, noise = torch.zeros(shape), torch.zeros(shape)
                with torch.autocast("cpu", AUTOCAST[mixed_precision], enabled=mixed_precision != "no"):
                    timesteps = torch.zeros(batch_size, dtype=torch.int64)
                    prediction = network(x_t, timesteps, null_labels(network, batch_size)).sample
                (prediction.float() - noise).square().mean().backward()
    lasting = weights * (3 + num_averages)
    if sharded:
        lasting //= num_processes
    elif num_processes > 1:
        lasting += weights
    return StepMemory(lasting=lasting, passing=live.peak)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations have made and that are still in use, and their peak."""

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.bytes)
        return output

    def _count(self, storage: torch.UntypedStorage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:  # else a view
            self._seen.add(key)
            self.bytes += size
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int):
        self._seen.discard(key)
        self.bytes -= size
