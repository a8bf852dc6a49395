"""Tensors that the processes hold in parts (FSDP2), and whole networks of them; tensors that one process sends."""

from collections.abc import Iterable, Mapping
from copy import copy

import torch
import torch.distributed
from diffusers import UNet2DModel
from torch.distributed.tensor import DTensor, distribute_tensor

from ..pipeline_ddim_custom import DDIMCustomPipeline
from ..processes import on_main, processes

Tensors = Mapping[str, torch.Tensor]


def are_sharded(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether the processes hold parts of any of them."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensors: Tensors, everywhere: bool = False) -> dict[str, torch.Tensor]:
    """All of each; what has to be put together, by all processes, lies in the main one's memory, or on each device."""
    kept = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
            if not everywhere:
                tensor = tensor.cpu() if processes().is_main_process else tensor.new_empty(0)
        kept[name] = tensor
    return kept


@torch.no_grad()
def put(tensor: torch.Tensor, values: torch.Tensor):
    """Copy all values, or the part of them that falls to this process, into a tensor."""
    if isinstance(tensor, DTensor):
        there = values.to(tensor.device)  # on all processes: none has to send parts
        values = distribute_tensor(there, tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(values)


def network_of(unet: UNet2DModel, weights: Tensors) -> UNet2DModel:
    """A network with the layout of `unet`, in evaluation mode, whose weights are these tensors themselves."""
    with torch.device("meta"):
        network = UNet2DModel.from_config(unet.config)
    network.load_state_dict(weights, assign=True)
    return network.requires_grad_(False).eval()


def with_network(pipeline: DDIMCustomPipeline, unet: UNet2DModel) -> DDIMCustomPipeline:
    """The pipeline, or one that differs by its network."""
    if unet is pipeline.unet:
        return pipeline
    other = copy(pipeline)
    other.unet = unet
    return other


class FromMain(Mapping):
    """Tensors by name that the main process alone has: each is sent when all processes ask for it."""

    def __init__(self, tensors: Tensors, device: torch.device):
        self.tensors, self.device = tensors, device
        self.like = on_main(lambda: {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})

    def __len__(self) -> int:
        return len(self.like)

    def __iter__(self):
        return iter(self.like)

    def __contains__(self, name: object) -> bool:
        return name in self.like  # and nothing is sent

    def __getitem__(self, name: str) -> torch.Tensor:
        shape, dtype = self.like[name]
        if processes().num_processes == 1:
            return self.tensors[name]
        if processes().is_main_process:
            tensor = self.tensors[name].to(self.device).contiguous()
        else:
            tensor = torch.empty(shape, dtype=dtype, device=self.device)
        torch.distributed.broadcast(tensor, src=0)
        return tensor
