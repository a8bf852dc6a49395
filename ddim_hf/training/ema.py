"""Averaged weights in the network's place, for as long as something is made with them."""

import torch
from diffusers.training_utils import EMAModel


class Averaged:
    """A context in which the network is in evaluation mode with the weights of an average (its own, if None)."""

    def __init__(self, unet: torch.nn.Module, parameters: list[torch.nn.Parameter], ema: EMAModel | None):
        self.unet, self.parameters, self.ema = unet, parameters, ema

    def __enter__(self):
        self.unet.eval()
        if self.ema is not None:
            self.ema.store(self.parameters)
            self.ema.copy_to(self.parameters)

    def __exit__(self, *_):
        if self.ema is not None:
            self.ema.restore(self.parameters)
        self.unet.train()
