"""Distances, one function a figure: of samples that are made on the way, of real images, of a folder's images."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from diffusers import DDIMPipeline, DDIMScheduler
from tqdm.auto import tqdm

from ..data import ImageSet
from ..generation import sample_numbers, share
from ..images import states_to_pixels
from ..pipeline_ddim_custom import DDIMCustomPipeline
from ..processes import processes
from .features import FeatureExtractor
from .frechet import Statistics, frechet_distance, kernel_distance
from .references import feature_batches


def distances(
    make: Callable[[int, list[int]], torch.Tensor],
    extractor: FeatureExtractor,
    reference: Statistics,
    reference_feats: np.ndarray | None = None,
    *,
    num_images: int,
    block: int,
    seed: int = 0,
) -> dict[str, float]:
    """The Frechet distance, and with `reference_feats` the kernel distance, of images made on all processes.

    Args:
        make: called as make(block, seeds=[...]); returns uint8 [block, C, H, W], image k made from seed + k.

    Returns:
        extractor.metric, with `reference_feats` extractor.kernel_metric, and the seconds that one process spent:
        "seconds", "seconds_features" (on a GPU on a thread beside the sampling), "seconds_waiting" (of it, what the
        sampling waited).
    """
    numbers = share(num_images, block)
    statistics, kept, spent, waiting, began = Statistics(), [], 0.0, 0.0, time.perf_counter()

    def extract(images: torch.Tensor) -> float:
        start = time.perf_counter()
        features = extractor(images)
        statistics.update(features)
        if reference_feats is not None:
            kept.append(features)
        return time.perf_counter() - start

    bar = tqdm(total=len(numbers), desc="sampling", unit="image", leave=False, disable=not processes().is_main_process)
    with ThreadPoolExecutor(1) as pool, bar:
        submit = pool.submit if extractor.device.type != "cpu" else _at_once
        pending = None
        for part, images in sample_numbers(make, numbers, seed=seed, max_batch_size=block):
            start = time.perf_counter()
            spent += pending.result() if pending else 0
            pending = submit(extract, images[: len(part)])
            waiting += time.perf_counter() - start
            bar.update(len(part))
        start = time.perf_counter()
        spent += pending.result() if pending else 0
        waiting += time.perf_counter() - start
    seconds = {"seconds": time.perf_counter() - began, "seconds_features": spent, "seconds_waiting": waiting}

    values = {extractor.metric: frechet_distance(statistics.reduced(), reference)}
    if reference_feats is not None:
        values[extractor.kernel_metric] = kernel_distance(reference_feats, _in_order(numbers, kept), seed)
    return values | seconds


def _at_once(function: Callable, *args: Any) -> Future:
    """As an executor's submit. On a CPU a second thread would have OpenMP threads of its own, and with more threads
    than cores OpenMP's waiting ones sleep, after which sampling runs at two thirds of its speed."""
    done = Future()
    done.set_result(function(*args))
    return done


def _in_order(numbers: list[int], features: list[np.ndarray]) -> np.ndarray:
    """The features of all processes' images, by the images' numbers."""
    parts = gather_object([(numbers, np.concatenate(features) if features else None)])
    parts = [part for part in parts if part[0]]
    order = np.argsort(np.concatenate([numbers for numbers, _ in parts]))
    return np.concatenate([features for _, features in parts])[order]


def our_samples(pipe: DDIMCustomPipeline, **sampling: Any) -> Callable:
    """What `distances` calls to make images with our pipeline."""

    def make(block: int, seeds: list[int]) -> torch.Tensor:
        return states_to_pixels(pipe(block, seeds=seeds, output_type="latent", **sampling).images)

    return make


def stock_samples(pipe: DDIMCustomPipeline, **sampling: Any) -> Callable:
    """The same with diffusers' own pipeline and scheduler, on the same network and seeds."""
    config = {key: value for key, value in pipe.scheduler.config.items() if key not in ("skip_type", "variance")}
    stock = DDIMPipeline(pipe.unet, DDIMScheduler.from_config({**config, "_class_name": "DDIMScheduler"}))
    stock.set_progress_bar_config(disable=True)

    def make(block: int, seeds: list[int]) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        pixels = stock(block, generator=generators, output_type="np", **sampling).images
        return torch.from_numpy((pixels * 255).round().astype(np.uint8)).permute(0, 3, 1, 2)

    return make


def image_distances(
    images: ImageSet,
    extractor: FeatureExtractor,
    reference: Statistics,
    reference_feats: np.ndarray | None = None,
    *,
    count: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """The same figures of images that are there already, all of them or the first `count`."""
    statistics, kept = Statistics(), []
    for features in feature_batches(images, extractor, count=count):
        statistics.update(features)
        if reference_feats is not None:
            kept.append(features)
    values = {extractor.metric: frechet_distance(statistics, reference)}
    if reference_feats is not None:
        values[extractor.kernel_metric] = kernel_distance(reference_feats, np.concatenate(kept), seed)
    return values
