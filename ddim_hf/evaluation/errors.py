"""Errors of a model on real images: of the predicted noise, and of encoding followed by sampling."""

import numpy as np
import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from ..data import ImageSet
from ..pipeline_ddim_custom import DDIMCustomPipeline
from ..processes import processes

RANGES = 10  # of timesteps, in which the denoising loss is also given


@torch.no_grad()
def denoising_loss(
    pipe: DDIMCustomPipeline, images: ImageSet, *, num_images: int | None = None, seed: int = 0, batch_size: int = 64
) -> tuple[float, list[list[float]]]:
    """Mean squared error of the predicted noise, each image at one timestep (DDPM's L_simple, Ho et al. 2020, eq. 14).

    Image i draws its timestep, uniform in [0, T), and its noise from seed + i. Needs all processes.

    Returns:
        The mean, and [first timestep, last timestep, mean] for each of ten ranges that have images.
    """
    scheduler, device = pipe.scheduler, pipe.device
    steps, count = len(scheduler), min(num_images or len(images), len(images))
    alphas = scheduler.alphas_cumprod.to(device)
    sums = np.zeros((RANGES, 2))
    for batch in _own_batches(count, batch_size, "denoising loss"):
        generators = [torch.Generator().manual_seed(seed + i) for i in batch]
        t = torch.cat([torch.randint(steps, (1,), generator=g) for g in generators]).to(device)
        noise = torch.stack([torch.randn(images.shape[1:], generator=g) for g in generators]).to(device)
        x = scheduler.add_noise(images[batch].to(device).float() / 127.5 - 1, noise, t)
        output = pipe.predict(x, t).float()
        a = alphas[t].view(-1, 1, 1, 1)
        if scheduler.config.prediction_type == "sample":
            output = (x - a.sqrt() * output) / (1 - a).sqrt()
        elif scheduler.config.prediction_type == "v_prediction":
            output = a.sqrt() * output + (1 - a).sqrt() * x
        errors = (output - noise).square().flatten(1).mean(1).double().cpu().numpy()
        np.add.at(sums, t.cpu().numpy() * RANGES // steps, np.stack([errors, np.ones_like(errors)], axis=1))
    sums = np.sum(gather_object([sums]), axis=0)
    edges = [-(-steps * i // RANGES) for i in range(RANGES + 1)]
    ranges = [[edges[i], edges[i + 1] - 1, sums[i, 0] / sums[i, 1]] for i in range(RANGES) if sums[i, 1]]
    return float(sums[:, 0].sum() / sums[:, 1].sum()), ranges


def reconstruction_error(
    pipe: DDIMCustomPipeline,
    images: ImageSet,
    num_inference_steps: int,
    *,
    num_images: int | None = None,
    batch_size: int = 64,
) -> float:
    """Mean over images of `pipe.reconstruct(...).mse`: per dimension, pixels in [0, 1] (paper, table 2). Needs all
    processes."""
    count = min(num_images or len(images), len(images))
    total = 0.0
    for batch in _own_batches(count, batch_size, f"reconstruction in {num_inference_steps} steps"):
        total += pipe.reconstruct(images[batch], num_inference_steps, output_type="latent").mse.double().sum().item()
    return sum(gather_object([total])) / count


def _own_batches(count: int, batch_size: int, title: str):
    state = processes()
    starts = range(state.process_index * batch_size, count, batch_size * state.num_processes)
    for start in tqdm(starts, desc=title, leave=False, disable=not state.is_main_process):
        yield list(range(start, min(start + batch_size, count)))
