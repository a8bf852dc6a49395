"""Figures that a paper could cite: what can be asked of a model or of a folder of images, and the asking."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..data import IMAGE_SUFFIXES, ImageSet, load_images
from ..generation import MANIFEST, default_max_batch_size, describe_network, load_pipeline, weights_hash
from ..hub import is_model
from ..pipeline_ddim_custom import DDIMCustomPipeline
from ..processes import processes
from ..scheduling_ddim_custom import DDIMSchedulerCustom
from .errors import denoising_loss, reconstruction_error
from .features import FeatureExtractor, load_feature_extractor
from .figures import distances, image_distances, our_samples, stock_samples
from .references import Reference, load_reference, short_name
from .results import Results, read_manifest


@dataclass(frozen=True)
class Cell:
    """A cell of the table of distances: how its images are sampled, by us or by diffusers ("stock")."""

    tau: str
    variance: str
    eta: float
    num_inference_steps: int
    implementation: str


@dataclass
class Question:
    """Every figure that is asked for.

    Args:
        model: a model's folder or id, or a folder of images.
        reference: what `load_reference` takes; with `loss` and `reconstruction` it has to be a dataset.
        output: a JSON file; a Markdown table and fid_vs_steps.png come beside it.
        num_inference_steps, eta, tau, variance: the cells are all combinations; sigma_hat is drawn at eta 1 only, and
            tau and variance are the model's own where none are given.
        num_images: images of each cell, image k made from seed + k.
        max_batch_size: as in `ddim_hf.generation.generate`.
        split, image_column: of the reference, as in `load_images`.
        mode, feature_extractor, inception_weights: as in `load_feature_extractor`.
        kid: the kernel distance too.
        distance: False leaves the cells out.
        also_stock: also sample with diffusers' DDIMPipeline, which knows tau "uniform" and variance "sigma".
        floor: a split whose first `num_images` real images are measured like samples: what a perfect model would get.
        loss, reconstruction: the denoising loss, and the reconstruction error in so many steps, on `data_splits`,
            the first `data_images` of each.
        revision: of a model on the Hub.
        fast: sample with fast sampling.
        cache_dir: as in `load_images`; features of the reference are kept there too.
    """

    model: str
    reference: str
    output: str | Path
    num_inference_steps: Sequence[int] = (50,)
    eta: Sequence[float] = (0.0,)
    tau: Sequence[str] = ()
    variance: Sequence[str] = ()
    num_images: int = 50_000
    seed: int = 0
    max_batch_size: int | None = None
    split: str | None = None
    image_column: str | None = None
    mode: str = "clean"
    feature_extractor: str | None = None
    inception_weights: str | None = None
    kid: bool = False
    distance: bool = True
    also_stock: bool = False
    floor: str | None = None
    loss: bool = False
    reconstruction: Sequence[int] = ()
    data_splits: Sequence[str] = ("train", "test")
    data_images: int | None = None
    revision: str | None = None
    fast: bool = False
    cache_dir: str | Path | None = None

    @property
    def of_images(self) -> bool:
        """Whether it is a folder of images that is measured, and not a model."""
        return Path(self.model).is_dir() and not is_model(self.model)

    def check(self):
        """Raise ValueError for what is wrong whatever the model."""
        if self.data_images is not None and self.data_images < 1:
            raise ValueError(f"data_images is {self.data_images}; allowed: whole numbers from 1")
        if not (self.distance or self.of_images or self.loss or self.reconstruction):
            raise ValueError("nothing to measure: no distance, no denoising loss and no reconstruction is asked for")

    def taus(self, pipe: DDIMCustomPipeline) -> Sequence[str]:
        return self.tau or [pipe.scheduler.config.skip_type]

    def cells(self, pipe: DDIMCustomPipeline) -> list[Cell]:
        """The cells to fill; stock knows uniform tau and sigma alone, and sigma_hat stands at eta 1.

        Raises:
            ValueError: a cell that `pipe` cannot sample, or stock is asked for and has none.
        """
        if not self.distance:
            return []
        variances, cells = self.variance or [pipe.scheduler.config.variance], []
        for tau, variance in itertools.product(self.taus(pipe), variances):
            names = ["ddim_hf"] + ["stock"] * (self.also_stock and (tau, variance) == ("uniform", "sigma"))
            etas = self.eta if variance == "sigma" else (1.0,)
            for eta, steps, name in itertools.product(etas, self.num_inference_steps, names):
                cells.append(Cell(tau, variance, float(eta), steps, name))
        if self.also_stock and "stock" not in {cell.implementation for cell in cells}:
            given = f"also stock with tau {self.taus(pipe)}, variance {variances}"
            raise ValueError(f"{given}; allowed: 'uniform' with 'sigma'")
        for cell in cells:
            pipe.check_sampling(max(self.num_images, 0), eta=cell.eta, max_batch_size=self.max_batch_size)
            pipe.scheduler.set_timesteps(cell.num_inference_steps)
        return cells

    def extractor(self) -> FeatureExtractor:
        device = processes().device
        return load_feature_extractor(self.feature_extractor, self.inception_weights, self.mode, device)

    def load_reference(self, extractor: FeatureExtractor, **size: int) -> Reference:
        data = {"image_column": self.image_column, "cache_dir": self.cache_dir}
        return load_reference(self.reference, split=self.split, extractor=extractor, **data, **size)

    def load_split(self, split: str, **size: int) -> ImageSet:
        data = {"image_column": self.image_column, "cache_dir": self.cache_dir}
        return load_images(self.reference, split=split, **data, **size)


def evaluate(*asked: Any, **settings: Any) -> list[dict[str, Any]]:
    """Measure every figure that a `Question` asks for, and return all rows of its output.

    Called as `evaluate(Question(...))`, or with the arguments of `Question` themselves. The output is written after
    each figure, and what it holds with the same protocol is not measured again.

    Raises:
        ValueError, OSError, ImportError: in one line, what cannot be had.
    """
    question = asked[0] if asked and isinstance(asked[0], Question) else Question(*asked, **settings)
    question.check()
    results = Results(question.output)
    if question.of_images:
        _measure_folder(question, results)
    else:
        _measure_model(question, results)
    return results.rows


# A model


def _measure_model(question: Question, results: Results):
    # What is wrong is said before any work.
    pipe = load_pipeline(question.model, revision=question.revision, fast=question.fast)
    cells = question.cells(pipe)
    for steps in question.reconstruction:
        pipe.scheduler.set_timesteps(steps)
    channels, resolution, _ = pipe.state_shape
    size = {"resolution": resolution, "channels": channels}
    splits = question.data_splits if question.loss or question.reconstruction else ()
    sets = [question.load_split(split, **size) for split in splits]

    model = {"seed": question.seed, "model": short_name(question.model)}
    model |= {"weights_hash": weights_hash(pipe.unet), "network": describe_network(pipe)}
    if question.distance:
        _measure_distances(question, pipe, cells, model, results, size)
    for images in sets:
        _measure_errors(question, pipe, images, model, results)


def _measure_distances(
    question: Question,
    pipe: DDIMCustomPipeline,
    cells: list[Cell],
    model: dict[str, Any],
    results: Results,
    size: dict[str, int],
):
    extractor = question.extractor()
    reference = question.load_reference(extractor, **size)
    against = _against(question, reference, extractor)
    protocol = _features_protocol(question, extractor) | reference.protocol()
    if question.floor:
        _measure_floor(question, extractor, against[0], protocol, results, size)

    plain = pipe
    if question.fast and question.also_stock:  # stock knows no other
        plain = load_pipeline(question.model, revision=question.revision)
    metrics = [extractor.metric, *([extractor.kernel_metric] if question.kid else [])]
    for cell in cells:
        sampler = plain if cell.implementation == "stock" else pipe
        row = model | protocol | {"num_images": question.num_images, **asdict(cell)}
        row["network"] = describe_network(sampler)
        if all(results.has({"metric": metric, **row}) for metric in metrics):
            continue
        values = _cell_distances(question, cell, sampler, extractor, against)
        seconds = {key: round(values[key], 3) for key in ("seconds", "seconds_features", "seconds_waiting")}
        for metric in metrics:
            results.add({"metric": metric, "value": values[metric], **row, **seconds})


def _against(question: Question, reference: Reference, extractor: FeatureExtractor) -> tuple:
    """The reference's statistics, and for the kernel distance its features."""
    kept = (extractor, question.mode, question.cache_dir)
    return reference.statistics(*kept), reference.features(*kept) if question.kid else None


def _features_protocol(question: Question, extractor: FeatureExtractor) -> dict[str, Any]:
    mode = question.mode if extractor.metric == "fid" else None
    return {"mode": mode, "feature_extractor": extractor.name, "feature_extractor_hash": extractor.hash}


def _measure_floor(question: Question, extractor, statistics, protocol, results: Results, size: dict[str, int]):
    images = question.load_split(question.floor, **size)
    count = min(question.num_images, len(images))
    row = {**protocol, "implementation": f"real images ({question.floor})", "num_images": count}
    row |= {"metric": extractor.metric, "model": None, "seed": None}
    if not results.has(row):
        values = image_distances(images, extractor, statistics, count=count)
        results.add(row | {"value": values[extractor.metric]})


def _cell_distances(question: Question, cell: Cell, pipe: DDIMCustomPipeline, extractor, against) -> dict[str, float]:
    _set_scheduler(pipe, cell.tau, cell.variance)
    samples = stock_samples if cell.implementation == "stock" else our_samples
    make = samples(pipe, num_inference_steps=cell.num_inference_steps, eta=cell.eta)
    block = question.max_batch_size or default_max_batch_size(pipe)
    return distances(make, extractor, *against, num_images=question.num_images, block=block, seed=question.seed)


def _set_scheduler(pipe: DDIMCustomPipeline, tau: str, variance: str):
    pipe.scheduler = DDIMSchedulerCustom.from_config(pipe.scheduler.config, skip_type=tau, variance=variance)


def _measure_errors(
    question: Question, pipe: DDIMCustomPipeline, images: ImageSet, model: dict[str, Any], results: Results
):
    count = min(question.data_images or len(images), len(images))
    row = model | {"reference": short_name(question.reference), "split": images.split, "num_images": count}
    sizes = {"num_images": count, "max_batch_size": max(64, question.max_batch_size or default_max_batch_size(pipe))}
    if question.loss and not results.has({"metric": "denoising_loss", **row}):
        value, ranges = denoising_loss(pipe, images, seed=question.seed, **sizes)
        results.add({"metric": "denoising_loss", "value": value, **row, "by_timesteps": ranges})

    row = {"metric": "reconstruction_mse", **row, "eta": 0.0}
    del row["seed"]  # nothing is drawn
    for tau, steps in itertools.product(question.taus(pipe), question.reconstruction):
        cell = row | {"tau": tau, "num_inference_steps": steps}
        if not results.has(cell):
            _set_scheduler(pipe, tau, "sigma")
            results.add(cell | {"value": reconstruction_error(pipe, images, steps, **sizes)})


# A folder of images


def _measure_folder(question: Question, results: Results):
    folder, extractor = Path(question.model), question.extractor()
    if (folder / MANIFEST).is_file():  # what sample.py left, whose pictures beside the images are none
        folder = folder / "images"
    files = sorted(file for file in folder.rglob("[!.]*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if (folder / "config.json").is_file():
        raise FileNotFoundError(f"{str(folder)!r} is a training run that has not finished: it holds no model yet")
    if not files:
        raise FileNotFoundError(f"{str(folder)!r} holds neither a model nor images")
    with Image.open(files[0]) as image:
        size = {"resolution": min(image.size), "channels": 1 if image.mode == "L" else 3}
    images = load_images(str(folder), cache_dir=question.cache_dir, **size)
    reference = question.load_reference(extractor, **size)
    row = {"seed": question.seed, "model": short_name(question.model)}
    row |= _features_protocol(question, extractor) | reference.protocol() | {"num_images": len(images)}
    row |= read_manifest(folder)
    values = image_distances(images, extractor, *_against(question, reference, extractor), seed=row["seed"] or 0)
    for metric, value in values.items():
        results.add({"metric": metric, "value": value, **row})
