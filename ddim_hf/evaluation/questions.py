"""What can be asked of a model, or of a folder of images."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..hub import is_model
from ..pipeline_ddim_custom import DDIMCustomPipeline
from .figures import OTHER_SCHEDULERS

CALIBRATED = "ddim_hf calibrated"
ALSO = ("stock", *OTHER_SCHEDULERS)


@dataclass(frozen=True)
class Cell:
    """A cell of the table of distances: how its images are sampled, by us ("ddim_hf", CALIBRATED) or one of ALSO."""

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
        split, image_column, dataset_config_name, dataset_revision: of the reference, as `load_images` has them.
        mode, feature_extractor, inception_weights: as in `load_feature_extractor`.
        kid: the kernel distance too.
        distance: False leaves the cells out.
        calibrated: also sample by the schedules that the model has, at eta 0.
        also: also sample with diffusers' DDIMPipeline ("stock"), which knows tau "uniform" and variance "sigma", and
            at eta 0 with other schedulers of diffusers' ("unipc", "dpmpp", "deis").
        floor: a split whose first `num_images` real images are measured like samples: what a perfect model would get.
        loss, reconstruction: the denoising loss, and the reconstruction error in so many steps, on `data_splits`,
            the first `data_images` of each.
        revision: of a model on the Hub.
        fast: sample with fast sampling.
        cache_dir, refresh_cache: as in `load_images`; features of the reference are kept in cache_dir too.
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
    dataset_config_name: str | None = None
    dataset_revision: str | None = None
    mode: str = "clean"
    feature_extractor: str | None = None
    inception_weights: str | None = None
    kid: bool = False
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

    @property
    def data(self) -> dict[str, Any]:
        """How the reference's images are read: arguments of `load_images`."""
        names = {"image_column": self.image_column, "config_name": self.dataset_config_name}
        return names | {"revision": self.dataset_revision} | self.cache

    @property
    def cache(self) -> dict[str, Any]:
        return {"cache_dir": self.cache_dir, "refresh_cache": self.refresh_cache}

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
        if self.distance and not self.of_images and self.num_images < 2:
            raise ValueError(f"num_images is {self.num_images}; allowed: whole numbers from 2")
        if not (self.distance or self.of_images or self.loss or self.reconstruction):
            raise ValueError("nothing to measure: no distance, no denoising loss and no reconstruction is asked for")

    def taus(self, pipe: DDIMCustomPipeline) -> Sequence[str]:
        return self.tau or [pipe.scheduler.config.skip_type]

    def cells(self, pipe: DDIMCustomPipeline) -> list[Cell]:
        """The cells to fill; stock knows uniform tau and sigma alone, and sigma_hat stands at eta 1.

        Raises:
            ValueError: a cell that `pipe` cannot sample, or another way of sampling is asked for and has none.
        """
        if not self.distance:
            return []
        variances, cells = self.variance or [pipe.scheduler.config.variance], []
        for tau, variance in itertools.product(self.taus(pipe), variances):
            etas = self.eta if variance == "sigma" else (1.0,)
            for eta, steps in itertools.product(etas, self.num_inference_steps):
                names = ["ddim_hf"]
                if self.calibrated and tau == pipe.scheduler.config.skip_type:
                    names += [CALIBRATED] * (pipe.calibrated_schedule(steps, eta=eta) is not None)
                if (tau, variance) == ("uniform", "sigma"):
                    names += [name for name in self.also if name == "stock" or eta == 0]
                cells += [Cell(tau, variance, float(eta), steps, name) for name in names]
        missing = set(self.also) - {cell.implementation for cell in cells}
        if missing:
            given = (
                f"also {', '.join(sorted(missing))} with tau {self.taus(pipe)}, variance {variances}, eta {self.eta}"
            )
            raise ValueError(f"{given}; allowed: 'uniform' with 'sigma', and eta 0 but for stock")
        if self.calibrated and CALIBRATED not in {cell.implementation for cell in cells}:
            given = f"calibrated with num_inference_steps {self.num_inference_steps}, eta {self.eta}"
            raise ValueError(f"{given}; allowed: steps that the model has a schedule for, at eta 0")
        for cell in cells:
            chosen = {"eta": cell.eta, "num_inference_steps": cell.num_inference_steps}
            pipe.check_sampling(self.num_images, max_batch_size=self.max_batch_size, **chosen)
        return cells
