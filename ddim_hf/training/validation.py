"""The denoising loss on held-out images, at timesteps and noise that stay the same from one validation to the next."""

import math
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

DRAWN = 64  # images whose timesteps and noise are drawn at once, however many pass through the network at once


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
    seed = seed_for(config.seed, VALIDATION)
    chosen = np.linspace(0, len(images) - 1, count).round().astype(int)  # evenly: class folders lie one after another
    for number in range(accelerator.process_index, math.ceil(count / DRAWN), accelerator.num_processes):
        if stop.received:
            break
        drawn = chosen[number * DRAWN : (number + 1) * DRAWN]
        shape = (len(drawn), *images.shape[1:])
        _, timesteps, noise = draw_step(seed, number, shape, len(objective.scheduler), accelerator.device)
        for first in range(0, len(drawn), size):
            if stop.received:
                break
            batch = slice(first, first + size)
            x0 = to_states(images[drawn[batch]].to(accelerator.device), None)
            classes = null_labels(unet, len(x0))
            if labels is not None:
                classes = torch.from_numpy(labels[drawn[batch]]).to(accelerator.device)
            total[0] += objective(partial(predict, classes=classes), x0, timesteps[batch], noise[batch]) * len(x0)
            total[1] += len(x0)
    if stop.requested():
        return None
    summed, seen = accelerator.reduce(total, "sum").tolist()
    return summed / seen
