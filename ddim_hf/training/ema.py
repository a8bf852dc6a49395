"""The averaged weights of a run, and the network with them in its own weights' place."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel

from .profiles import Profile
from .sharding import are_sharded, network_of, put, whole


class Average(EMAModel):
    """diffusers' moving average, with the decays of a profile."""

    def __init__(self, parameters: list[torch.nn.Parameter], profile: Profile):
        super().__init__(parameters, foreach=True)
        self.profile = profile

    def get_decay(self, optimization_step: int) -> float:
        return float(self.profile.decays(optimization_step))


class Averages:
    """Moving averages of a network's weights, one for each profile.

    `names` are those of the profiles, in their order ("ema-0.999", "power-0.05"); the first is the result of the run.
    """

    def __init__(self, unet: torch.nn.Module, profiles: list[Profile]):
        self.unet, self.parameters = unet, list(unet.parameters())
        self._models = {profile.name: Average(self.parameters, profile) for profile in profiles}

    @property
    def names(self) -> list[str]:
        return list(self._models)

    def update(self):
        """Take the weights after an optimizer step in."""
        for model in self._models.values():
            model.step(self.parameters)

    @contextmanager
    def applied(self, name: str | None = None) -> Iterator[UNet2DModel]:
        """Yield the network in evaluation mode with the average `name`, or the first; with its own weights if none.

        Where the processes hold parts of the weights it is a whole one beside the one that is trained, and all of them
        have to ask for it.
        """
        if are_sharded(self.parameters):
            weights = self.tensors()[name or self.names[0]] if self._models else dict(self.unet.named_parameters())
            yield network_of(self.unet, whole(weights, everywhere=True))
            return
        model = self._models[name or self.names[0]] if self._models else None
        self.unet.eval()
        if model is not None:
            model.store(self.parameters)
            model.copy_to(self.parameters)
        try:
            yield self.unet
        finally:
            if model is not None:
                model.restore(self.parameters)
            self.unet.train()

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """The averages by name, each a dict by the parameters' names."""
        keys = [key for key, _ in self.unet.named_parameters()]
        return {name: dict(zip(keys, model.shadow_params, strict=True)) for name, model in self._models.items()}

    def load(self, tensors: dict[str, dict[str, torch.Tensor]], step: int):
        """Take back what `tensors` returned after `step` steps."""
        for name, average in self.tensors().items():
            for key, shadow in average.items():
                put(shadow, tensors[name][key])
            self._models[name].optimization_step = step
