"""The denoising loss on held-out images, at timesteps and noise that stay the same from one validation to the next."""

from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import UNet2DModel

from ..data import ImageSet
from ..loss import Objective
from .batches import VALIDATION, draw_step, seed_for, to_states
from .classes import null_labels
from .config import TrainingConfig
from .stopping import StopRequest


@torch.no_grad()
def validation_loss(
    unet: UNet2DModel,
    objective: Objective,
    images: ImageSet,
    labels: np.ndarray | None,
    config: TrainingConfig,
    accelerator: Accelerator,
    stop: StopRequest,
) -> float | None:
    """Return the network's loss over all processes; None where the run was asked to stop.

    Args:
        labels: the images' classes, int64 [N]; None takes the null class, or a network without classes.
    """

    def predict(x_t: torch.Tensor, timesteps: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
        return unet.forward(x_t, timesteps, classes).sample  # not compiled: each batch size would cost a compilation

    total = torch.zeros(2, device=accelerator.device)  # summed loss, images
    size, count = config.eval_batch_size, min(len(images), config.validation_images)
    chosen = np.linspace(0, len(images) - 1, count).round().astype(int)  # evenly: class folders lie one after another
    for number, first in enumerate(range(0, count, size)):
        if number % accelerator.num_processes == accelerator.process_index and not stop.received:
            places = chosen[first : first + size]
            x0 = to_states(images[places].to(accelerator.device), None)
            seed = seed_for(config.seed, VALIDATION)
            _, timesteps, noise = draw_step(seed, number, x0.shape, len(objective.scheduler), accelerator.device)
            classes = null_labels(unet, len(x0))
            if labels is not None:
                classes = torch.from_numpy(labels[places]).to(accelerator.device)
            total[0] += objective(partial(predict, classes=classes), x0, timesteps, noise) * len(x0)
            total[1] += len(x0)
    if stop.requested():
        return None
    summed, seen = accelerator.reduce(total, "sum").tolist()
    return summed / seen
