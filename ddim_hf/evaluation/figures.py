"""Distances, one function a figure: of images that are sampled on the way, and of images that are there."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
)
from tqdm.auto import tqdm

from ..data import ImageSet
from ..generation import sample_numbers, share
from ..images import refuse_not_finite, states_to_pixels
from ..pipeline_ddim_custom import OUR_KEYS, DDIMCustomPipeline
from ..processes import gathered, processes
from .classes import Classes, ClassFigures
from .features import FeatureExtractor
from .frechet import Statistics, frechet_distance, kernel_distance
from .originals import OriginalImages
from .references import BATCH, feature_batches
from .unfinished import Unfinished

OTHER_SCHEDULERS = {
    "unipc": UniPCMultistepScheduler,
    "dpmpp": DPMSolverMultistepScheduler,
    "deis": DEISMultistepScheduler,
}


def distances(
    make: Callable[[int, list[int]], torch.Tensor],
    extractor: FeatureExtractor,
    reference: Statistics,
    reference_feats: np.ndarray | None = None,
    *,
    num_images: int,
    block: int,
    seed: int = 0,
    unfinished: Unfinished | None = None,
    of_classes: ClassFigures | None = None,
) -> dict[str, Any]:
    """The Frechet distance, and with `reference_feats` the kernel distance, of images made on all processes.

    Args:
        make: called as make(block, seeds=[...]); returns uint8 [block, C, H, W], image k made from seed + k.
        unfinished: where the features are kept on the way; what is there already is not made again.
        of_classes: counts the samples' classes too; what it figures is among the values.

    Returns:
        extractor.metric, with `reference_feats` extractor.kernel_metric, and unless some images were there already the
        seconds that one process spent: "seconds", "seconds_features" (on a GPU on a thread beside the sampling),
        "seconds_waiting" (of it, what the sampling waited).

    Raises:
        ValueError: features that are not finite, or fewer than two images.
    """
    seen = _Seen(reference_feats is not None, of_classes, seed)
    # Blocks begin at multiples of their size, whoever makes them: so those of a killed run, whole, are the same.
    numbers = share(num_images, block)
    done = unfinished.load(numbers[::block]) if unfinished else {}
    for first, features in done.items():
        seen.add(range(first, first + len(features)), features)
    numbers = [k for k in numbers if k // block * block not in done]

    def extract(part: Sequence[int], images: torch.Tensor):
        features = extractor(images)
        if of_classes and of_classes.classifier:  # a row is an image's features, and then what it is taken for
            features = np.column_stack([features, of_classes.classifier(images)]).astype(np.float32)
        seen.add(part, features, [f"seed {seed + k}" for k in part])
        seen.statistics.check_finite()  # at once, and not after hours
        if unfinished:
            unfinished.add(part[0], features)

    hidden = not processes().is_main_process
    bar = tqdm(total=len(numbers), desc="sampling", unit="image", leave=False, disable=hidden)
    with bar, _Extraction(extract, beside=extractor.device.type != "cpu") as extraction:
        for part, images in sample_numbers(make, numbers, seed=seed, max_batch_size=block):
            extraction.put(part, images[: len(part)])
            bar.update(len(part))
        extraction.finish()
    seconds = {} if done else extraction.seconds()
    return seen.distances(extractor, reference, reference_feats, seed) | seconds


class _Extraction:
    """Features of one block of images while the next one is sampled, `beside` it on a thread; and what that takes.

    On a CPU a second thread would have OpenMP threads of its own, and with more threads than cores OpenMP's waiting
    ones sleep, after which sampling runs at two thirds of its speed.
    """

    def __init__(self, extract: Callable[[Sequence[int], torch.Tensor], None], beside: bool):
        self.extract = extract
        self.pool = ThreadPoolExecutor(1) if beside else None
        self.pending: Future | None = None
        self.began, self.spent, self.waited = time.perf_counter(), 0.0, 0.0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.pool:
            self.pool.shutdown()

    def put(self, part: Sequence[int], images: torch.Tensor):
        """Take the next block, once the one before is done; raises what that one raised."""
        self.finish()
        if self.pool:
            self.pending = self.pool.submit(self._timed, part, images)
        else:
            self.waited += self._timed(part, images)

    def finish(self):
        """Wait for the block that was put last."""
        start = time.perf_counter()
        if self.pending:
            self.pending.result()
            self.pending = None
        self.waited += time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        total = time.perf_counter() - self.began
        return {"seconds": total, "seconds_features": self.spent, "seconds_waiting": self.waited}

    def _timed(self, part: Sequence[int], images: torch.Tensor) -> float:
        start = time.perf_counter()
        self.extract(part, images)
        seconds = time.perf_counter() - start
        self.spent += seconds
        return seconds


def image_distances(
    images: ImageSet | OriginalImages,
    extractor: FeatureExtractor,
    reference: Statistics,
    reference_feats: np.ndarray | None = None,
    *,
    count: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """The same distances of images that are there, all of them or `count`, shared by all processes.

    The count is taken evenly from all: the first of a set may be of one class alone, as folders of classes are read.
    """
    seen = _Seen(reference_feats is not None)
    count = len(images) if count is None else count
    numbers = [i * len(images) // count for i in share(count, BATCH)]
    for batch, features in feature_batches(images, extractor, numbers):
        seen.add(batch, features, [images.label(k) for k in batch])
    return seen.distances(extractor, reference, reference_feats, seed)


class _Seen:
    """What this process knows of its images: their statistics, and for the kernel distance their features."""

    def __init__(self, keep_features: bool, of_classes: ClassFigures | None = None, seed: int = 0):
        self.statistics, self.keep_features = Statistics(), keep_features
        self.of_classes, self.seed = of_classes, seed
        self.features: dict[int, np.ndarray] = {}  # by the images' numbers

    def add(self, numbers: Sequence[int], features: np.ndarray, names: Sequence[str] | None = None):
        taken = None
        if self.of_classes and self.of_classes.classifier:
            features, taken = features[:, :-1], features[:, -1]
        if self.of_classes:
            self.of_classes.add([self.seed + number for number in numbers], features, taken)
        self.statistics.update(features, names)
        if self.keep_features:
            self.features |= zip(numbers, features, strict=True)

    def distances(
        self, extractor: FeatureExtractor, reference: Statistics, reference_feats: np.ndarray | None, seed: int
    ) -> dict[str, float]:
        """Over the images of all processes, each of which has to call it."""
        values = {extractor.metric: frechet_distance(self.statistics.reduced(), reference)}
        if reference_feats is not None:
            # The kernel distance draws subsets: the order must not depend on the number of processes.
            features = {number: row for part in gathered(self.features) for number, row in part.items()}
            in_order = np.stack([features[number] for number in sorted(features)])
            values[extractor.kernel_metric] = kernel_distance(reference_feats, in_order, seed)
        return values | (self.of_classes.figures(extractor) if self.of_classes else {})


# What `distances` calls to make images


def our_samples(
    pipe: DDIMCustomPipeline, classes: Classes | None = None, **sampling: Any
) -> Callable[[int, list[int]], torch.Tensor]:
    """With our pipeline, of classes by the seeds where it has such."""

    def make(block: int, seeds: list[int]) -> torch.Tensor:
        labels = {"class_labels": classes.of(seeds)} if classes else {}
        states = pipe(block, seeds=seeds, output_type="latent", **labels, **sampling).images
        refuse_not_finite(states, seeds)
        return states_to_pixels(states)

    return make


def stock_samples(pipe: DDIMCustomPipeline, **sampling: Any) -> Callable[[int, list[int]], torch.Tensor]:
    """With diffusers' own pipeline and scheduler, on the same network and seeds."""
    stock = DDIMPipeline(pipe.unet, _stock_scheduler(pipe))
    stock.set_progress_bar_config(disable=True)

    def make(block: int, seeds: list[int]) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images = stock(block, generator=generators, output_type="np", **sampling).images
        refuse_not_finite(torch.from_numpy(images), seeds)
        return torch.from_numpy((images * 255).round().astype(np.uint8)).permute(0, 3, 1, 2)

    return make


def other_samples(pipe: DDIMCustomPipeline, name: str, **sampling: Any) -> Callable[[int, list[int]], torch.Tensor]:
    """With one of OTHER_SCHEDULERS, as `from_config` makes it, on the same network, fast if it is, and seeds."""
    other = DDIMCustomPipeline(pipe.unet, pipe.scheduler, pipe.id2label or None)
    other.scheduler = OTHER_SCHEDULERS[name].from_config(_stock_scheduler(pipe).config)
    other.fast_network = pipe.fast_network
    other.set_progress_bar_config(disable=True)
    return our_samples(other, **sampling)


def _stock_scheduler(pipe: DDIMCustomPipeline) -> DDIMScheduler:
    config = {key: value for key, value in pipe.scheduler.config.items() if key not in OUR_KEYS}
    return DDIMScheduler.from_config({**config, "_class_name": "DDIMScheduler"})
