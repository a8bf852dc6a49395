"""Figures that a paper could cite: each is measured unless it is there already, and kept with its protocol."""

import inspect
import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data import ImageSet, load_images
from ..data.cache import digest
from ..data.folders import sample_manifest
from ..generation import default_max_batch_size, describe_network, load_pipeline, weights_hash
from ..pipeline_ddim_custom import DDIMCustomPipeline
from ..processes import processes
from ..scheduling_ddim_custom import DDIMSchedulerCustom
from .errors import denoising_loss, reconstruction_error
from .features import FeatureExtractor, load_feature_extractor
from .figures import distances, image_distances, other_samples, our_samples, stock_samples
from .frechet import Statistics
from .originals import OriginalImages, load_originals
from .questions import CALIBRATED, Cell, Question
from .references import load_reference, short_name
from .results import Results
from .rows import protocol
from .unfinished import Unfinished


def evaluate(*asked: Any, **settings: Any) -> list[dict[str, Any]]:
    """Measure every figure that a `Question` asks for, and return all rows of its output.

    Called as `evaluate(Question(...))`, or with the arguments of `Question` themselves. The output is written after
    each figure, and what it holds with the same protocol is not measured again.

    Raises:
        ValueError, OSError, ImportError: in one line, what cannot be had.
    """
    question = asked[0] if asked and isinstance(asked[0], Question) else Question(*asked, **settings)
    return answer(question).rows


def answer(question: Question) -> Results:
    """Measure every figure that is asked for, as `evaluate`, and return the output with what was asked of it."""
    question.check()
    results = Results(question.output)
    if question.of_images:
        _measure_folder(question, results)
    else:
        _measure_model(question, results)
    return results


@dataclass
class _Target:
    """What images are measured against, by which features."""

    extractor: FeatureExtractor
    statistics: Statistics
    features: np.ndarray | None  # for the kernel distance, where it is asked for
    protocol: dict[str, Any]

    @property
    def reference(self) -> tuple[Statistics, np.ndarray | None]:
        return self.statistics, self.features

    def rows(self, protocol: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows of one measurement, without their values."""
        metrics = [self.extractor.metric, *([self.extractor.kernel_metric] if self.features is not None else [])]
        return [{"metric": metric, **protocol} for metric in metrics]


def _load_target(question: Question, resolution: int, channels: int | None) -> _Target:
    device = processes().device
    extractor = load_feature_extractor(question.feature_extractor, question.inception_weights, question.mode, device)
    reference = load_reference(
        question.reference,
        resolution=resolution,
        channels=channels,
        split=question.split,
        extractor=extractor,
        **question.data,
    )
    if reference.images is not None:
        _refuse_single(reference.images)
    kept = (extractor, question.mode, question.cache_dir)
    statistics, features = reference.statistics(*kept), reference.features(*kept) if question.kid else None
    mode = question.mode if extractor.metric == "fid" else None
    about = {"mode": mode, "feature_extractor": extractor.name, "feature_extractor_hash": extractor.hash}
    return _Target(extractor, statistics, features, about | reference.protocol(statistics))


def _load_split(question: Question, split: str, size: dict[str, int]) -> ImageSet:
    return load_images(question.reference, split=split, **question.data, **size)


def _refuse_single(images: ImageSet | OriginalImages):
    if len(images) < 2:
        raise ValueError(f"{images.name!r} holds {len(images)} image; allowed: at least 2, as a distance needs them")


# A model


def _measure_model(question: Question, results: Results):
    # What is wrong is said before any work.
    pipe = load_pipeline(question.model, revision=question.revision, fast=question.fast)
    cells = question.cells(pipe)
    for steps in question.reconstruction:
        pipe.check_sampling(num_inference_steps=steps)
    channels, resolution, _ = pipe.state_shape
    size = {"resolution": resolution, "channels": channels}
    splits = question.data_splits if question.loss or question.reconstruction else ()
    sets = [_load_split(question, split, size) for split in splits]

    model = {"seed": question.seed, "model": short_name(question.model), "weights_hash": weights_hash(pipe.unet)}
    model |= {"network": describe_network(pipe), "scheduler": _scheduler_settings(pipe), **size}
    if question.distance:
        target = _load_target(question, **size)
        if question.floor:
            _measure_floor(question, target, size, results)
        _measure_cells(question, pipe, cells, target, model, results)
    for images in sets:
        _measure_loss(question, pipe, images, model, results)
        _measure_reconstruction(question, pipe, images, model, results)


def _scheduler_settings(pipe: DDIMCustomPipeline) -> dict[str, Any] | None:
    """Those that are not the default; tau and variance stand by themselves."""
    defaults = inspect.signature(DDIMSchedulerCustom.__init__).parameters
    config = json.loads(pipe.scheduler.to_json_string())  # as results.json will give them back
    names = sorted(defaults.keys() & config.keys() - {"skip_type", "variance", "calibrated_schedules"})
    return {name: config[name] for name in names if config[name] != defaults[name].default} or None


def _measure_floor(question: Question, target: _Target, size: dict[str, int], results: Results):
    """The Frechet distance of real images, as many as are sampled: what a perfect model would get."""
    images = _load_split(question, question.floor, size)
    _refuse_single(images)
    count = min(question.num_images, len(images))
    row = target.protocol | size | {"implementation": f"real images ({question.floor})", "num_images": count}
    row |= {"metric": target.extractor.metric, "images_hash": images.fingerprint}
    if not results.has(row):
        values = image_distances(images, target.extractor, target.statistics, count=count)
        results.add(row | {"value": values[row["metric"]]})


def _measure_cells(
    question: Question,
    pipe: DDIMCustomPipeline,
    cells: list[Cell],
    target: _Target,
    model: dict[str, Any],
    results: Results,
):
    """The distances of samples, by steps, eta, tau and variance, of ours and of stock."""
    plain = pipe
    if question.fast and question.also:  # stock knows no other
        plain = load_pipeline(question.model, revision=question.revision)
    for cell in cells:
        sampler = pipe if cell.implementation in ("ddim_hf", CALIBRATED) else plain
        row = model | target.protocol | {"num_images": question.num_images, **asdict(cell)}
        if cell.implementation == CALIBRATED:
            row["schedule"] = digest(pipe.calibrated_schedule(cell.num_inference_steps))
        rows = target.rows(row | {"network": describe_network(sampler)})
        unfinished = _unfinished(question, sampler, rows[0])
        if not results.has(*rows):
            _set_scheduler(sampler, cell.tau, cell.variance)
            values = _sample_distances(question, cell, sampler, target, unfinished)
            seconds = {key: round(value, 3) for key, value in values.items() if key.startswith("seconds")}
            results.add(*(row | {"value": values[row["metric"]], **seconds} for row in rows))
        unfinished.remove()


def _unfinished(question: Question, pipe: DDIMCustomPipeline, row: dict[str, Any]) -> Unfinished:
    # The device and the images at once are not in the protocol: they change single pixels by rounding.
    rounding = {"device": pipe.device.type, "max_batch_size": _max_batch_size(question, pipe)}
    return Unfinished(protocol(row) | rounding, question.cache_dir)


def _max_batch_size(question: Question, pipe: DDIMCustomPipeline) -> int:
    return question.max_batch_size or default_max_batch_size(pipe)


def _sample_distances(
    question: Question, cell: Cell, pipe: DDIMCustomPipeline, target: _Target, unfinished: Unfinished
) -> dict[str, float]:
    sampling = {"num_inference_steps": cell.num_inference_steps, "eta": cell.eta}
    if cell.implementation in ("ddim_hf", CALIBRATED):
        make = our_samples(pipe, calibrated=cell.implementation == CALIBRATED, **sampling)
    elif cell.implementation == "stock":
        make = stock_samples(pipe, **sampling)
    else:
        make = other_samples(pipe, cell.implementation, **sampling)
    drawn = {"num_images": question.num_images, "seed": question.seed, "block": _max_batch_size(question, pipe)}
    return distances(make, target.extractor, *target.reference, unfinished=unfinished, **drawn)


def _set_scheduler(pipe: DDIMCustomPipeline, tau: str, variance: str):
    pipe.scheduler = DDIMSchedulerCustom.from_config(pipe.scheduler.config, skip_type=tau, variance=variance)


def _measure_loss(
    question: Question, pipe: DDIMCustomPipeline, images: ImageSet, model: dict[str, Any], results: Results
):
    row = {"metric": "denoising_loss", **model, **_data_protocol(question, images)}
    if question.loss and not results.has(row):
        value, ranges = denoising_loss(pipe, images, seed=question.seed, **_sizes(question, pipe, row))
        results.add(row | {"value": value, "by_timesteps": ranges})


def _measure_reconstruction(
    question: Question, pipe: DDIMCustomPipeline, images: ImageSet, model: dict[str, Any], results: Results
):
    for tau, steps in itertools.product(question.taus(pipe), question.reconstruction):
        row = {"metric": "reconstruction_mse", **model, **_data_protocol(question, images)}
        row |= {"seed": None, "tau": tau, "eta": 0.0, "num_inference_steps": steps}  # nothing is drawn
        if not results.has(row):
            _set_scheduler(pipe, tau, "sigma")
            value = reconstruction_error(pipe, images, steps, **_sizes(question, pipe, row))
            results.add(row | {"value": value})


def _data_protocol(question: Question, images: ImageSet) -> dict[str, Any]:
    count = min(question.data_images or len(images), len(images))
    names = {"reference": short_name(question.reference), "split": images.split}
    return names | {"reference_hash": images.fingerprint, "num_images": count}


def _sizes(question: Question, pipe: DDIMCustomPipeline, row: dict[str, Any]) -> dict[str, int]:
    return {"num_images": row["num_images"], "max_batch_size": max(64, _max_batch_size(question, pipe))}


# A folder of images


def _measure_folder(question: Question, results: Results):
    folder = Path(question.model)
    if (folder / "config.json").is_file():
        raise FileNotFoundError(f"{str(folder)!r} is a training run that has not finished: it holds no model yet")
    try:
        images = load_originals(str(folder), whole=True, **question.cache)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{str(folder)!r} holds neither a model nor images: {error}") from error
    _refuse_single(images)
    # The resolution says which of clean-fid's statistics; images are read at their own, whatever the first one's is.
    target = _load_target(question, resolution=images[[0]][0].shape[-1], channels=None)
    row = {"seed": question.seed, "model": short_name(folder), "images_hash": images.fingerprint}
    row |= target.protocol | {"num_images": len(images)} | _how_sampled(folder)
    rows = target.rows(row)
    if not results.has(*rows):
        values = image_distances(images, target.extractor, *target.reference, seed=row["seed"] or 0)
        results.add(*(row | {"value": values[row["metric"]]} for row in rows))


def _how_sampled(folder: Path) -> dict[str, Any]:
    """What the manifest says that `generate` leaves beside its images."""
    manifest = sample_manifest(folder.resolve().parent if folder.resolve().name == "images" else folder)
    kept = ("model", "weights_hash", "num_inference_steps", "eta", "tau", "variance", "seed")
    return {key: manifest[key] for key in kept if key in manifest} | (
        {"implementation": "ddim_hf"} if manifest else {}
    )
