"""Errors of a model on real images: of the predicted noise, and of encoding followed by sampling."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data import ImageSet
from ..generation import share
from ..images import pixels_to_states
from ..loss import noise_errors
from ..pipeline_ddim_custom import DDIMCustomPipeline
from ..processes import gathered, processes

RANGES = 10  # of timesteps, in which the denoising loss is also given


@torch.no_grad()
def denoising_loss(
    pipe: DDIMCustomPipeline,
    images: ImageSet,
    labels: np.ndarray | None = None,
    *,
    num_images: int | None = None,
    seed: int = 0,
    max_batch_size: int = 64,
) -> tuple[float, list[list[float]]]:
    """Mean squared error of the predicted noise, each image at one timestep (DDPM's L_simple, Ho et al. 2020, eq. 14).

    Image i draws its timestep, uniform in [0, T), and its noise from seed + i. `labels`, int64 [N], are the images'
    classes; without them a network with classes is given the null class. Needs all processes.

    Returns:
        The mean, and [first timestep, last timestep, mean] for each of ten ranges that have images.

    Raises:
        ValueError: an error that is not finite, with the images' names.
    """
    scheduler, device = pipe.scheduler, pipe.device
    steps, count = len(scheduler), min(num_images or len(images), len(images))
    sums = np.zeros((RANGES, 2))
    for batch in _share(count, max_batch_size, "denoising loss"):
        generators = [torch.Generator().manual_seed(seed + i) for i in batch]
        t = torch.cat([torch.randint(steps, (1,), generator=g) for g in generators]).to(device)
        noise = torch.stack([torch.randn(images.shape[1:], generator=g) for g in generators]).to(device)
        x0 = pixels_to_states(images[batch].to(device))
        predict = partial(pipe.predict, **_classes(labels, batch))
        errors = noise_errors(predict, scheduler, x0, t, noise).cpu().double().numpy()
        _refuse_nan("denoising loss", errors, batch, images)
        np.add.at(sums, t.cpu().numpy() * RANGES // steps, np.stack([errors, np.ones_like(errors)], axis=1))
    sums = np.sum(gathered(sums), axis=0)
    edges = [-(-steps * i // RANGES) for i in range(RANGES + 1)]
    ranges = [[edges[i], edges[i + 1] - 1, sums[i, 0] / sums[i, 1]] for i in range(RANGES) if sums[i, 1]]
    return float(sums[:, 0].sum() / sums[:, 1].sum()), ranges


def reconstruction_error(
    pipe: DDIMCustomPipeline,
    images: ImageSet,
    num_inference_steps: int,
    labels: np.ndarray | None = None,
    *,
    num_images: int | None = None,
    max_batch_size: int = 64,
) -> float:
    """Mean over images of `pipe.reconstruct(...).mse`: per dimension, pixels in [0, 1] (paper, table 2).

    `labels` are those of `denoising_loss`. Needs all processes.

    Raises:
        ValueError: an error that is not finite, with the images' names.
    """
    count = min(num_images or len(images), len(images))
    total = 0.0
    for batch in _share(count, max_batch_size, f"reconstruction in {num_inference_steps} steps"):
        sampling = {"output_type": "latent", **_classes(labels, batch)}
        errors = pipe.reconstruct(images[batch], num_inference_steps, **sampling).mse.cpu().double().numpy()
        _refuse_nan("reconstruction error", errors, batch, images)
        total += float(errors.sum())
    return sum(gathered(total)) / count


def _classes(labels: np.ndarray | None, numbers: list[int]) -> dict[str, list[int]]:
    return {} if labels is None else {"class_labels": labels[numbers].tolist()}


def _share(count: int, size: int, title: str) -> Iterator[list[int]]:
    """Yield this process's batches of the numbers below `count`."""
    numbers = share(count, size)
    for start in tqdm(range(0, len(numbers), size), desc=title, leave=False, disable=not processes().is_main_process):
        yield numbers[start : start + size]


def _refuse_nan(what: str, errors: np.ndarray, numbers: list[int], images: ImageSet):
    bad = [images.label(numbers[i]) for i in np.flatnonzero(~np.isfinite(errors))]
    if bad:
        raise ValueError(f"the {what} of {len(bad)} images is not finite (NaN or infinite): {', '.join(bad[:5])}")
