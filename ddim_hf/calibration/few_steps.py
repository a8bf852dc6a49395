"""The steps of a schedule, taken with any weights."""

import copy
from collections.abc import Callable, Sequence

import torch
from tqdm.auto import tqdm

from ..scheduling_ddim_custom import PLAIN, DDIMSchedulerCustom, weigh
from .blocks import Block

Network = Callable[[torch.Tensor, torch.Tensor, range], torch.Tensor]
Weights = list[list[float]]


class FewSteps:
    """Few steps along tau from a block's noise, clipped as the scheduler clips. States and eps are [B, C, H, W].

    Args:
        network, scheduler, bar: as in `fit_schedules`.
        tau: timesteps, descending.
    """

    def __init__(self, network: Network, scheduler: DDIMSchedulerCustom, tau: Sequence[int], bar: tqdm):
        self.tau, self.network, self.bar = tau, network, bar
        self._plain, self._free = copy.deepcopy(scheduler), copy.deepcopy(scheduler)
        self._plain.set_timesteps(timesteps=tau)
        self._free.register_to_config(prediction_type="epsilon")
        self._free.set_timesteps(timesteps=tau)
        # The last step remains DDIM's: free, it would average over what the student cannot know, and blur. A first
        # step where alpha is 0 remains so too, as eps tells nothing there.
        self.is_plain = [t == tau[-1] or bool(scheduler.alphas_cumprod[t] == 0) for t in tau]

    def count_weights(self, k: int) -> int:
        """How many weights of the k-th step are free: of this prediction and of the two before it, if there are."""
        return 0 if self.is_plain[k] else min(k + 1, len(PLAIN))

    def predict(self, block: Block, x: torch.Tensor, k: int, history: Sequence[torch.Tensor]):
        """Return what the network says of the states before the k-th step, and eps there and before, newest first."""
        output = predict(self.network, block, x, self.tau[k], self.bar)
        single = x.float() if x.dtype == torch.float16 else x  # as the scheduler's own step has it
        return output, [self._plain.predict_epsilon(output, self.tau[k], single).to(single.dtype), *history[:2]]

    def step(self, k: int, x: torch.Tensor, output, history: Sequence[torch.Tensor], w: Sequence[float]):
        """Return the states after the k-th step; the network's output counts where the step is plain alone."""
        if self.is_plain[k]:
            return self._plain.step(output, self.tau[k], x).prev_sample
        return self._free.step(weigh(w[: len(history)], history), self.tau[k], x).prev_sample

    def walk(self, block: Block, weights: Weights, start: int = 0, x=None, history=()) -> torch.Tensor:
        """Return the images, of the block's noise or of the states x before step `start`."""
        x = block.noise if x is None else x
        for k in range(start, len(self.tau)):
            output, history = self.predict(block, x, k, history)
            x = self.step(k, x, output, history, weights[k])
        return x


def predict(network: Network, block: Block, x: torch.Tensor, t: int, bar: tqdm) -> torch.Tensor:
    output = network(x, torch.tensor(t, device=x.device), block.numbers)
    bar.update(len(x))
    return output
