"""The noises that a fit is made with: in blocks, which processes share, and sums over all of them."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

ELEMENTS = 3072  # a 32 x 32 colour image whole; of larger states the fit looks at so many values, for memory


class Block:
    """Images that pass through the network together, on the process that they belong to."""

    def __init__(self, numbers: range, held_out: bool, noise: torch.Tensor):
        self.numbers, self.start, self.held_out, self.noise = numbers, numbers.start, held_out, noise
        self.images: torch.Tensor  # the teacher's
        self.states: torch.Tensor  # of the fit: the teacher's x at each of its N timesteps and the data, [N + 1, B, E]
        self.x0: torch.Tensor  # what it predicted there, clipped as its sampler clips, [N, B, E]
        self.epsilon: torch.Tensor  # likewise

    def seen(self, x: torch.Tensor) -> torch.Tensor:
        """The values [B, E] of x [B, C, H, W] that the fit looks at, the same E of each image, on the CPU."""
        count = x[0].numel()
        if count <= ELEMENTS:
            return x.flatten(1).cpu()
        chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:ELEMENTS].sort().values
        return x.flatten(1)[:, chosen.to(x.device)].cpu()


def own_blocks(draw: Callable[[range], torch.Tensor], num_images: int, size: int) -> Iterable[Block]:
    """This process's share of the blocks: one block after another goes to the next process."""
    rank, world = _rank_and_world()
    half = num_images - num_images // 2
    starts = [*range(0, half, size), *range(half, num_images, size)]
    for start in starts[rank::world]:
        numbers = range(start, min(start + size, half if start < half else num_images))
        yield Block(numbers, start >= half, draw(numbers))


def _rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def in_order(own: dict[int, Any]) -> list[Any]:
    """The values of all processes' blocks in the order of their numbers, so that sums have the same last bits."""
    parts = [own]
    if _rank_and_world()[1] > 1:
        parts = [None] * _rank_and_world()[1]
        torch.distributed.all_gather_object(parts, own)
    every = {number: value for part in parts for number, value in part.items()}
    return [every[number] for number in sorted(every)]
