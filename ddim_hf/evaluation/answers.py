"""Figures that a paper could cite: each is measured unless it is there already, and kept with its protocol."""

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data import ImageSet, load_images
from ..data.cache import digest
from ..data.folders import sample_manifest
from ..generation import default_max_batch_size, describe_network, describe_scheduler, load_pipeline, weights_hash
from ..images import square_size
from ..pipeline_ddim_custom import DDIMCustomPipeline
from ..processes import on_main, once_a_machine, processes
from ..reports.words import counted, in_words
from ..scheduling_ddim_custom import DDIMSchedulerCustom
from .classes import (
    Classes,
    ClassFigures,
    Classifier,
    class_statistics,
    load_classifier,
    reference_classes,
)
from .errors import denoising_loss, reconstruction_error
from .features import FeatureExtractor, load_feature_extractor
from .figures import distances, image_distances, other_samples, our_samples, stock_samples
from .frechet import Statistics
from .originals import OriginalImages, load_originals
from .questions import CALIBRATED, Cell, Question
from .references import load_reference, reference_features, short_name
from .results import Results
from .rows import protocol
from .unfinished import Unfinished


def evaluate(*asked: Any, **settings: Any) -> list[dict[str, Any]]:
    """Measure every figure that a `Question` asks for, and return all rows of its output.

    Called as `evaluate(Question(...))`, or with the arguments of `Question` themselves. The output is written after
    each figure, and what it holds with the same protocol is not measured again.

    Raises:
        ValueError, OSError, ImportError: in one line, what cannot be had.
        TypeError: a `Question` and more.
    """
    if not (asked and isinstance(asked[0], Question)):
        return answer(Question(*asked, **settings)).rows
    if more := [*map(repr, asked[1:]), *settings]:
        raise TypeError(f"evaluate is given a Question and {', '.join(more)}; allowed: a Question alone, or arguments")
    return answer(asked[0]).rows


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
    """What images are measured against, by which features; of a model with classes also how often it draws each."""

    extractor: FeatureExtractor
    statistics: Statistics
    features: np.ndarray | None  # for the kernel distance, where it is asked for
    protocol: dict[str, Any]
    has_images: bool  # and not clean-fid's statistics alone
    classes: Classes | None = None
    classifier: Classifier | None = None
    by_class: list[Statistics] | None = None

    @property
    def reference(self) -> tuple[Statistics, np.ndarray | None]:
        return self.statistics, self.features

    def rows(self, protocol: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows of one measurement, without their values."""
        metrics = [self.extractor.metric, *([self.extractor.kernel_metric] if self.features is not None else [])]
        metrics += [self.extractor.metric_within_classes] * (self.by_class is not None)
        rows = [{"metric": metric, **protocol} for metric in metrics]
        if self.classifier is not None:
            shown = {"classifier": self.classifier.name, "classifier_hash": self.classifier.hash}
            of_features = ("mode", "feature_extractor", "feature_extractor_hash")
            kept = {key: value for key, value in protocol.items() if key not in of_features}
            rows.append({"metric": "label_accuracy", **kept, **shown})
        return rows

    def figures(self) -> ClassFigures | None:
        """What counts the classes of a cell's samples, where that is asked for."""
        if self.classifier is None and self.by_class is None:
            return None
        return ClassFigures(self.classes, self.classifier, self.by_class)


def _load_target(question: Question, resolution: int, channels: int | None) -> _Target:
    device = processes().device
    extractor = load_feature_extractor(question.feature_extractor, question.inception_weights, question.mode, device)
    size = {"resolution": resolution, "channels": channels}
    reference = _load(load_reference, question, split=question.split, extractor=extractor, **size)
    if reference.images is not None:
        _refuse_single(reference.images)
    kept = (extractor, question.mode, question.cache_dir)
    statistics, features = reference.statistics(*kept), reference.features(*kept) if question.kid else None
    mode = question.mode if extractor.metric == "fid" else None
    about = {"mode": mode, "feature_extractor": extractor.name, "feature_extractor_hash": extractor.hash}
    about |= reference.protocol(statistics)
    return _Target(extractor, statistics, features, about, has_images=reference.images is not None)


def _add_classes(target: _Target, question: Question, names: list[str], size: dict[str, int]):
    """Take the classes' frequencies, and what is asked of the classes, into the target."""
    images = _load_labelled(question, question.split, size) if target.has_images else None
    labels = images and images.labels
    target.classes = reference_classes(names, images if labels is not None else None)
    target.protocol |= target.classes.protocol
    if question.label_accuracy:
        target.classifier = load_classifier(question.label_accuracy, names, target.extractor.device)
    if question.by_class:
        if labels is None:
            raise ValueError(f"by_class with reference {question.reference!r}; allowed: images with labels")
        features = reference_features(images.unlabelled(), target.extractor, question.cache_dir)
        target.by_class = class_statistics(names, images, features)


def _load(load: Callable[..., Any], question: Question, **settings: Any) -> Any:
    """The reference, by `load_images` or `load_reference`."""

    def read(refresh: bool) -> Any:
        return load(question.reference, **settings, **question.data, refresh_cache=refresh)

    return once_a_machine(read, question.refresh_cache)


def _load_split(question: Question, split: str | None, size: dict[str, int]) -> ImageSet:
    return _load(load_images, question, split=split, **size)


def _load_labelled(question: Question, split: str | None, size: dict[str, int]) -> ImageSet:
    """With labels where there are such; where there are none, and none are asked for, that is said."""
    labels = {"labelled": True, "label_column": question.label_column}
    try:
        return _load(load_images, question, split=split, **size, **labels)
    except ValueError as error:
        if question.by_class or question.label_column:
            raise
        said = f"no labels are used, as {error}"
    on_main(lambda: print(said, flush=True))
    return _load_split(question, split, size)


def _refuse_single(images: ImageSet | OriginalImages):
    if len(images) < 2:
        raise ValueError(f"{images.name!r} holds {len(images)} image; allowed: at least 2, as a distance needs them")


# A model


class Checked(NamedTuple):
    """A model and its guide, the cells to fill and the size of its images."""

    pipe: DDIMCustomPipeline
    guide: DDIMCustomPipeline | None
    cells: list[Cell]
    size: dict[str, int]


def load_checked(question: Question) -> Checked:
    """Load what is measured; what is wrong is said before any work."""
    pipe = load_pipeline(question.model, revision=question.revision, fast=question.fast)
    question.check_classes(pipe)
    for steps in question.reconstruction:
        pipe.check_sampling(num_inference_steps=steps)
    guide = _load_guide(question, question.fast)
    return Checked(pipe, guide, question.cells(pipe, guide), square_size(pipe.state_shape))


def _load_guide(question: Question, fast: bool) -> DDIMCustomPipeline | None:
    return None if question.guide is None else load_pipeline(question.guide, fast=fast)


def _measure_model(question: Question, results: Results):
    pipe, guide, cells, size = load_checked(question)
    splits = question.data_splits if question.loss or question.reconstruction else ()
    names = list(pipe.id2label.values())
    sets = [(_load_labelled if names else _load_split)(question, split, size) for split in splits]

    model = {"seed": question.seed, "model": short_name(question.model), "weights_hash": weights_hash(pipe.unet)}
    scheduler = describe_scheduler(json.loads(pipe.scheduler.to_json_string()))
    model |= {"network": describe_network(pipe), "scheduler": scheduler, **size}
    if question.distance:
        target = _load_target(question, **size)
        if question.floor:
            _measure_floor(question, target, size, results)
        if names:
            _add_classes(target, question, names, size)
        _measure_cells(question, pipe, guide, cells, target, model, results)
    for images in sets:
        _measure_loss(question, pipe, images, model, results)
        _measure_reconstruction(question, pipe, images, model, results)


def _measure_floor(question: Question, target: _Target, size: dict[str, int], results: Results):
    """The distances of real images, as many as are sampled: what a perfect model would get."""
    images = _load_split(question, question.floor, size)
    _refuse_single(images)
    count = min(question.num_images, len(images))
    row = target.protocol | size | {"implementation": f"real images ({question.floor})", "num_images": count}
    row |= {"drawn": "evenly"} if count < len(images) else {}  # before it was the first
    rows = target.rows(row | {"images_hash": images.fingerprint})
    if not results.has(*rows):
        values = image_distances(images, target.extractor, *target.reference, count=count)
        results.add(*(row | {"value": values[row["metric"]]} for row in rows))


def _measure_cells(
    question: Question,
    pipe: DDIMCustomPipeline,
    guide: DDIMCustomPipeline | None,
    cells: list[Cell],
    target: _Target,
    model: dict[str, Any],
    results: Results,
):
    """The distances of samples, by steps, eta, tau and variance, of ours and of stock."""
    ours = plain = (pipe, guide)
    if question.fast and "stock" in question.also:  # it knows no other
        plain = (load_pipeline(question.model, revision=question.revision), _load_guide(question, fast=False))
    samplers = [plain if cell.implementation == "stock" else ours for cell in cells]
    table = []
    for cell, (sampler, _) in zip(cells, samplers, strict=True):
        row = model | target.protocol | {"num_images": question.num_images, **asdict(cell)}
        if cell.implementation == CALIBRATED:
            row["schedule"] = digest(question.schedule(pipe, cell))
        if guide is not None and cell.is_led:
            row |= {"guide_model": short_name(question.guide), "guide": weights_hash(guide.unet)}
        table.append(target.rows(row | {"network": describe_network(sampler)}))
    to_come = [cell for cell, rows in zip(cells, table, strict=True) if not results.has(*rows)]
    said = False
    for cell, (sampler, its_guide), rows in zip(cells, samplers, table, strict=True):
        unfinished = _unfinished(question, sampler, rows[0], target.classifier)
        if not results.has(*rows):
            _set_scheduler(sampler, cell.tau, cell.variance)
            compiling = _seconds_compiling(sampler, its_guide)
            values = _sample_distances(question, cell, sampler, its_guide, target, unfinished)
            seconds = {key: round(value, 3) for key, value in values.items() if key.startswith("seconds")}
            results.add(*(row | {"value": values[row["metric"]], **_by_class(row, values), **seconds} for row in rows))
            to_come = [other for other in to_come if other != cell]
            if seconds and to_come and not said and processes().is_main_process:
                said = True
                compiling = _seconds_compiling(sampler, its_guide) - compiling
                print(_time_to_come(seconds, cell, to_come, compiling), flush=True)
        unfinished.remove()


def _seconds_compiling(*pipes: DDIMCustomPipeline | None) -> float:
    """What fast sampling has spent on it up to now."""
    return sum(pipe.fast_network.seconds_compiling for pipe in pipes if pipe and pipe.fast_network)


def _time_to_come(seconds: dict[str, float], done: Cell, to_come: list[Cell], compiling: float) -> str:
    """How long these cells will take, by what one took: sampling in proportion to its passes, features alike, and
    compiling, which is done once, not again."""
    features = seconds["seconds_waiting"]
    a_pass = max(seconds["seconds"] - features - compiling, 0) / done.passes
    total = sum(a_pass * cell.passes + features for cell in to_come)
    return f"about {in_words(total)} for the {counted(len(to_come), 'cell')} to come"


def _by_class(row: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    by_class = values.get("by_class", {}).get(row["metric"])
    return {"by_class": by_class} if by_class else {}


def _unfinished(
    question: Question, pipe: DDIMCustomPipeline, row: dict[str, Any], classifier: Classifier | None
) -> Unfinished:
    # The device and the images at once are not in the protocol: they change single pixels by rounding.
    rounding = {"device": pipe.device.type, "max_batch_size": _max_batch_size(question, pipe)}
    rounding |= {"classifier": classifier.hash} if classifier else {}  # its answers lie beside the features
    return Unfinished(protocol(row) | rounding, question.cache_dir)


def _max_batch_size(question: Question, pipe: DDIMCustomPipeline) -> int:
    return question.max_batch_size or default_max_batch_size(pipe)


def _sample_distances(
    question: Question,
    cell: Cell,
    pipe: DDIMCustomPipeline,
    guide: DDIMCustomPipeline | None,
    target: _Target,
    unfinished: Unfinished,
) -> dict[str, float]:
    sampling = {"num_inference_steps": cell.num_inference_steps, "eta": cell.eta, **cell.with_guide(guide)}
    if cell.implementation in ("ddim_hf", CALIBRATED):
        # The schedule of all the classes, whichever of them a block holds.
        fitted = question.schedule(pipe, cell) if cell.implementation == CALIBRATED else False
        make = our_samples(pipe, target.classes, calibrated=fitted, **sampling)
    elif cell.implementation == "stock":
        make = stock_samples(pipe, **sampling)
    else:
        make = other_samples(pipe, cell.implementation, classes=target.classes, **sampling)
    drawn = {"num_images": question.num_images, "seed": question.seed, "block": _max_batch_size(question, pipe)}
    counted = {"unfinished": unfinished, "of_classes": target.figures()}
    return distances(make, target.extractor, *target.reference, **counted, **drawn)


def _set_scheduler(pipe: DDIMCustomPipeline, tau: str, variance: str):
    pipe.scheduler = DDIMSchedulerCustom.from_config(pipe.scheduler.config, skip_type=tau, variance=variance)


def _measure_loss(
    question: Question, pipe: DDIMCustomPipeline, images: ImageSet, model: dict[str, Any], results: Results
):
    row = {"metric": "denoising_loss", **model, **_data_protocol(question, pipe, images)}
    if question.loss and not results.has(row):
        labels = _labels(pipe, images)
        value, ranges = denoising_loss(pipe, images, labels, seed=question.seed, **_sizes(question, pipe, row))
        results.add(row | {"value": value, "by_timesteps": ranges})


def _measure_reconstruction(
    question: Question, pipe: DDIMCustomPipeline, images: ImageSet, model: dict[str, Any], results: Results
):
    for tau, steps in itertools.product(question.taus(pipe), question.reconstruction):
        row = {"metric": "reconstruction_mse", **model, **_data_protocol(question, pipe, images)}
        row |= {"seed": None, "tau": tau, "eta": 0.0, "num_inference_steps": steps}  # nothing is drawn
        if not results.has(row):
            _set_scheduler(pipe, tau, "sigma")
            value = reconstruction_error(pipe, images, steps, _labels(pipe, images), **_sizes(question, pipe, row))
            results.add(row | {"value": value})


def _labels(pipe: DDIMCustomPipeline, images: ImageSet) -> np.ndarray | None:
    """The images' classes in the model's order; None where it, or the set, has none."""
    if images.labels is None:
        return None
    return images.labels_as(list(pipe.id2label.values()), "the model's classes")


def _data_protocol(question: Question, pipe: DDIMCustomPipeline, images: ImageSet) -> dict[str, Any]:
    labels = _labels(pipe, images)
    classes = {}
    if pipe.id2label:
        classes = {"classes": "null class"} if labels is None else {"classes": "as labelled"}
        classes |= {} if labels is None else {"labels_hash": digest(labels.tolist())}
    count = min(question.data_images or len(images), len(images))
    names = {"reference": short_name(question.reference), "split": images.split}
    return names | {"reference_hash": images.unlabelled().fingerprint, "num_images": count} | classes


def _sizes(question: Question, pipe: DDIMCustomPipeline, row: dict[str, Any]) -> dict[str, int]:
    return {"num_images": row["num_images"], "max_batch_size": _max_batch_size(question, pipe)}


# A folder of images


def _measure_folder(question: Question, results: Results):
    folder = Path(question.model)
    if (folder / "config.json").is_file():
        raise FileNotFoundError(f"{str(folder)!r} is a training run that has not finished: it holds no model yet")
    try:
        images = once_a_machine(
            lambda refresh: load_originals(
                str(folder), whole=True, cache_dir=question.cache_dir, refresh_cache=refresh
            ),
            question.refresh_cache,
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{str(folder)!r} holds neither a model nor images: {error}") from error
    _refuse_single(images)
    sampled = _how_sampled(folder)
    if question.seed and "seed" in sampled:
        raise ValueError(
            f"seed is {question.seed} of images that were made from {sampled['seed']}; allowed: the default"
        )
    # The resolution says which of clean-fid's statistics; images are read at their own, whatever the first one's is.
    target = _load_target(question, resolution=images[[0]][0].shape[-1], channels=None)
    row = {"seed": question.seed, "model": short_name(folder), "images_hash": images.fingerprint}
    row |= target.protocol | {"num_images": len(images)} | sampled
    rows = target.rows(row)
    if not results.has(*rows):
        values = image_distances(images, target.extractor, *target.reference, seed=row["seed"] or 0)
        results.add(*(row | {"value": values[row["metric"]]} for row in rows))


def _how_sampled(folder: Path) -> dict[str, Any]:
    """What the manifest says that `generate` leaves beside its images, as the rows of a model say it."""
    manifest = sample_manifest(folder.resolve().parent if folder.resolve().name == "images" else folder)
    kept = ["model", "weights_hash", "network", "num_inference_steps", "eta", "tau", "variance", "seed"]
    row = {key: manifest[key] for key in [*kept, "class_labels"] if key in manifest}
    if scheduler := manifest.get("scheduler"):
        row["scheduler"] = describe_scheduler(scheduler)
    if manifest:
        row["implementation"] = "ddim_hf"
    if guidance := manifest.get("guidance"):
        row |= {"guidance_scale": guidance["scale"], "guidance_interval": guidance["interval"]}
        row["guide"] = guidance["guide"]
    if schedule := manifest.get("calibrated"):
        row |= {"implementation": CALIBRATED, "schedule": digest(schedule)}
    return row
