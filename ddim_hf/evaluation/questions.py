"""What can be asked of a model, or of a folder of images."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..data import MAX_CACHED_BYTES
from ..guidance import check_interval
from ..hub import is_model
from ..pipeline_ddim_custom import DDIMCustomPipeline
from .figures import OTHER_SCHEDULERS

CALIBRATED = "ddim_hf calibrated"
ALSO = ("stock", *OTHER_SCHEDULERS)

# What has an effect on some figures alone
OF_CELLS = [
    *("num_inference_steps", "eta", "variance", "guidance_scale", "guidance_interval", "guide", "num_images"),
    *("label_accuracy", "by_class", "calibrated", "also", "floor"),
]
OF_DISTANCES = [*OF_CELLS, "split", "mode", "feature_extractor", "inception_weights", "kid"]
OF_ERRORS = ["data_splits", "data_images"]
OF_MODELS = [*OF_CELLS, *OF_ERRORS, *("tau", "label_column", "skip_broken", "loss", "reconstruction", "revision")]
OF_MODELS += ["distance", "fast", "max_batch_size", "max_cached_bytes"]


@dataclass(frozen=True)
class Cell:
    """A cell of the table of distances: how its images are sampled, by us ("ddim_hf", CALIBRATED) or one of ALSO."""

    tau: str
    variance: str
    eta: float
    num_inference_steps: int
    implementation: str
    guidance_scale: float | None = None  # of a model with classes, or with a guide
    guidance_interval: tuple[float, float] | None = None

    @property
    def is_led(self) -> bool:
        """Whether there is guidance."""
        return self.guidance_scale not in (None, 1)

    @property
    def passes(self) -> int:
        """How often an image passes through a network, but for an interval's steps without guidance."""
        return self.num_inference_steps * (1 + self.is_led)

    @property
    def guidance(self) -> dict[str, Any]:
        """As arguments of a pipeline's call, but for the guide; none of a model without classes and guide."""
        if self.guidance_scale is None:
            return {}
        interval = self.guidance_interval if self.is_led else None
        return {"guidance_scale": self.guidance_scale, "guidance_interval": interval}

    def with_guide(self, guide: DDIMCustomPipeline | None) -> dict[str, Any]:
        """The same with the guide, where there is guidance."""
        return self.guidance | ({"guide": guide} if guide is not None and self.is_led else {})


@dataclass
class Question:
    """Every figure that is asked for.

    A setting without effect on any of them is refused, such as what is OF_MODELS alone of a folder of images.

    Args:
        model: a model's folder or id, or a folder of images.
        reference: what `load_reference` takes; with `loss` and `reconstruction` it has to be a dataset.
        output: a JSON file; a Markdown table and fid_vs_steps.png come beside it (NAME-fid_vs_steps.png of NAME.json,
            but for results.json).
        num_inference_steps, eta, tau, variance, guidance_scale: the cells are all combinations; sigma_hat is drawn at
            eta 1 only (another eta is refused where there is no sigma), tau and variance are the model's own where
            none are given, and guidance other than 1 is for models with classes, or with a guide. Models with classes
            draw them as often as the reference's labels have them, or all alike where it has none, the class of an
            image from its seed alone.
        guidance_interval: as in sampling, for all scales.
        guide: a worse model, its folder or id: as in sampling, for all scales but 1.
        num_images: images of each cell, image k made from seed + k.
        seed: also of the kernel distance's subsets, of a folder of images of these alone.
        max_batch_size: as in `ddim_hf.generation.generate`.
        split, image_column, dataset_config_name, dataset_revision, label_column, skip_broken: of the reference, as
            `load_images` has them.
        mode, feature_extractor, inception_weights: as in `load_feature_extractor`.
        kid: the kernel distance too.
        label_accuracy: also the share of samples that show their class by a classifier that `load_classifier` takes.
        by_class: also the mean over the classes of each one's distance, and a table by classes.
        distance: False leaves the cells out.
        calibrated: also sample by the schedules that the model has, at eta 0.
        also: also sample with diffusers' DDIMPipeline ("stock"), which knows tau "uniform" and variance "sigma", and
            at eta 0 with other schedulers of diffusers' ("unipc", "dpmpp", "deis").
        floor: a split of which `num_images` real images, taken evenly, are measured like samples, `kid` too: what a
            perfect model would get.
        loss, reconstruction: the denoising loss, and the reconstruction error in so many steps, on `data_splits`,
            the first `data_images` of each.
        revision: of a model on the Hub.
        fast: sample with fast sampling, all but stock.
        cache_dir, refresh_cache, max_cached_bytes: as in `load_images`; cache_dir keeps features of the reference too.
    """

    model: str
    reference: str
    output: str | Path
    num_inference_steps: Sequence[int] = (50,)
    eta: Sequence[float] = (0.0,)
    tau: Sequence[str] = ()
    variance: Sequence[str] = ()
    guidance_scale: Sequence[float] = (1.0,)
    guidance_interval: Sequence[float] | None = None
    guide: str | None = None
    num_images: int = 50_000
    seed: int = 0
    max_batch_size: int | None = None
    split: str | None = None
    image_column: str | None = None
    dataset_config_name: str | None = None
    dataset_revision: str | None = None
    label_column: str | None = None
    skip_broken: bool = False
    mode: str = "clean"
    feature_extractor: str | None = None
    inception_weights: str | None = None
    kid: bool = False
    label_accuracy: str | Path | None = None
    by_class: bool = False
    distance: bool = True
    calibrated: bool = False
    also: Sequence[str] = ()
    floor: str | None = None
    loss: bool = False
    reconstruction: Sequence[int] = ()
    data_splits: Sequence[str] = ("train", "test")
    data_images: int | None = None
    revision: str | None = None
    fast: bool = False
    cache_dir: str | Path | None = None
    refresh_cache: bool = False
    max_cached_bytes: int = MAX_CACHED_BYTES

    @property
    def data(self) -> dict[str, Any]:
        """How the reference's images are read: arguments of `load_images`, all but refresh_cache."""
        names = {"image_column": self.image_column, "config_name": self.dataset_config_name}
        names |= {"revision": self.dataset_revision, "skip_broken": self.skip_broken}
        return names | {"max_cached_bytes": self.max_cached_bytes, "cache_dir": self.cache_dir}

    @property
    def of_images(self) -> bool:
        """Whether it is a folder of images that is measured, and not a model."""
        return Path(self.model).is_dir() and not is_model(self.model)

    def check(self):
        """Raise ValueError for what is wrong whatever the model."""
        if not set(self.also) <= set(ALSO):
            raise ValueError(f"also is {', '.join(self.also)}; allowed: {', '.join(ALSO)}")
        if self.data_images is not None and self.data_images < 1:
            raise ValueError(f"data_images is {self.data_images}; allowed: whole numbers from 1")
        if self.of_images:
            self._refuse(OF_MODELS, f"{str(self.model)!r} is a folder of images", "a model")
            if not self.kid:
                self._refuse(["seed"], f"{str(self.model)!r} is a folder of images without kid", "a model, or kid")
            return
        if not (self.distance or self.loss or self.reconstruction):
            raise ValueError("nothing to measure: no distance, no denoising loss and no reconstruction is asked for")
        if self.distance and self.num_images < 2:
            raise ValueError(f"num_images is {self.num_images}; allowed: whole numbers from 2")
        if not self.distance:
            without = OF_DISTANCES + ["tau"] * (not self.reconstruction)
            self._refuse(without, "no distance is asked for", "with distances")
            if not self.loss:
                self._refuse(["seed"], "a reconstruction draws nothing", "with distances or loss")
        if not (self.loss or self.reconstruction):
            self._refuse(OF_ERRORS, "no loss and no reconstruction is asked for", "with one of them")

    def _refuse(self, names: Sequence[str], why: str, allowed: str):
        """Raise ValueError for those of these settings that are given, that is, not the default."""
        defaults = {field.name: field.default for field in fields(self)}
        given = [name for name in names if _plain(getattr(self, name)) != _plain(defaults[name])]
        if given:
            raise ValueError(f"{', '.join(given)} {'are' if given[1:] else 'is'} given, and {why}; allowed: {allowed}")

    def check_classes(self, pipe: DDIMCustomPipeline):
        """Raise ValueError for what is asked of the classes of a model that has none, or in vain."""
        asked = {"label_accuracy": self.label_accuracy, "label_column": self.label_column, "by_class": self.by_class}
        led = {"guidance_interval": self.guidance_interval, "guidance_scale": set(self.guidance_scale) != {1}}
        asked |= led if self.guide is None else {}
        given = [name for name, value in asked.items() if value]
        if given and not pipe.id2label:
            guide = " or a guide" if given[0] in led else ""
            raise ValueError(f"{given[0]} is given, but the model has no classes; allowed: models with classes{guide}")
        unused = [name for name in ("guidance_interval", "guide") if getattr(self, name) is not None]
        if unused and set(self.guidance_scale) == {1}:
            raise ValueError(f"{unused[0]} is given with guidance_scale 1; allowed: another scale")
        if "stock" in self.also and (pipe.id2label or self.guide is not None):
            what, allowed = ("classes", "models without classes") if pipe.id2label else ("guide", "without a guide")
            raise ValueError(f"also is stock, which gives a network no {what}; allowed: {allowed}")

    def taus(self, pipe: DDIMCustomPipeline) -> Sequence[str]:
        return self.tau or [pipe.scheduler.config.skip_type]

    def cells(self, pipe: DDIMCustomPipeline, guide: DDIMCustomPipeline | None = None) -> list[Cell]:
        """The cells to fill; stock knows uniform tau and sigma alone, and sigma_hat stands at eta 1.

        Raises:
            ValueError: a cell that `pipe` cannot sample, with the guide where there is one, or another way of sampling
                is asked for and has none.
        """
        if not self.distance:
            return []
        variances, cells = self.variance or [pipe.scheduler.config.variance], []
        if "sigma" not in variances and set(self.eta) != {1}:
            self._refuse(["eta"], "the variance is sigma_hat alone", "1, or sigma too")
        for tau, variance in itertools.product(self.taus(pipe), variances):
            etas = self.eta if variance == "sigma" else (1.0,)
            for eta, guidance, steps in itertools.product(etas, self._guidance(pipe), self.num_inference_steps):
                names = ["ddim_hf"]
                fitted = Cell(tau, variance, float(eta), steps, CALIBRATED, *guidance)
                if self.calibrated and self.schedule(pipe, fitted) is not None:
                    names.append(CALIBRATED)
                if (tau, variance) == ("uniform", "sigma"):
                    names += [name for name in self.also if name == "stock" or eta == 0]
                cells += [Cell(tau, variance, float(eta), steps, name, *guidance) for name in names]
        missing = set(self.also) - {cell.implementation for cell in cells}
        if missing:
            given = (
                f"also {', '.join(sorted(missing))} with tau {self.taus(pipe)}, variance {variances}, eta {self.eta}"
            )
            raise ValueError(f"{given}; allowed: 'uniform' with 'sigma', and eta 0 but for stock")
        if self.calibrated and CALIBRATED not in {cell.implementation for cell in cells}:
            given = f"calibrated with num_inference_steps {self.num_inference_steps}, eta {self.eta}"
            if set(self.guidance_scale) != {1}:
                given += f", guidance_scale {self.guidance_scale}" + " and a guide" * (self.guide is not None)
            raise ValueError(
                f"{given}; allowed: steps and guidance that the model has a schedule for, at eta 0 without a guide"
            )
        for cell in cells:
            chosen = {"eta": cell.eta, "num_inference_steps": cell.num_inference_steps}
            labels = {"class_labels": 0} if pipe.id2label else {}
            led = cell.with_guide(guide)
            pipe.check_sampling(self.num_images, max_batch_size=self.max_batch_size, **chosen, **labels, **led)
        return cells

    def has_schedule(self, pipe: DDIMCustomPipeline, guide: DDIMCustomPipeline | None = None) -> bool:
        """Whether the model has a fitted schedule for any of the cells, so that `calibrated` can be asked of it."""
        cells = replace(self, calibrated=False).cells(pipe, guide)
        return any(self.schedule(pipe, cell) is not None for cell in cells)

    def _guidance(self, pipe: DDIMCustomPipeline) -> list[tuple[float | None, tuple[float, float] | None]]:
        """Scale and interval of each cell; None without guidance for a model without classes."""
        interval = None if self.guidance_interval is None else check_interval(self.guidance_interval)
        plain = (1.0, None) if pipe.id2label else (None, None)
        return [plain if scale == 1 else (float(scale), interval) for scale in self.guidance_scale]

    def schedule(self, pipe: DDIMCustomPipeline, cell: Cell) -> dict[str, Any] | None:
        """The fitted schedule that a cell samples by, if there is one: by the model's own tau, for all classes."""
        if cell.tau != pipe.scheduler.config.skip_type or (cell.is_led and self.guide is not None):
            return None
        labels = {"class_labels": list(pipe.id2label), **cell.guidance} if pipe.id2label else {}
        return pipe.calibrated_schedule(cell.num_inference_steps, eta=cell.eta, **labels)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
