"""Samplers that run during training: grids, Frechet distances, and the best model of each kept."""

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from ..data import ImageSet
from ..evaluation.frechet import Statistics, frechet_distance, load_feature_extractor, reference_statistics
from ..images import image_grid, pixels_to_pil, states_to_pixels
from ..pipeline_ddim_custom import DDIMCustomPipeline
from .checkpoints import save_model
from .config import Sampler, TrainingConfig
from .stopping import StopRequest

GRID_IMAGES = 64


class _Interrupted(Exception):
    pass


class ModelSelection:
    """The samplers of a run and the best distance that each has reached.

    Args:
        config: its samplers, and where features come from.
        accelerator: the images are divided among its processes, image k from seed k on whichever makes it.
        reference: the images that the distance is taken to.
        stop: asked between batches; a sampler that it interrupts stays in `pending`, to be run anew.

    Raises:
        ValueError, OSError: the feature extractor cannot be had.
    """

    def __init__(self, config: TrainingConfig, accelerator: Accelerator, reference: ImageSet, stop: StopRequest):
        self.config, self.accelerator, self.stop = config, accelerator, stop
        self.samplers, self.best, self.pending = config.sampler_list(), {}, []
        self.others: dict[str, list] = {}  # the best of samplers that this part of the run leaves out
        self.extractor = self.reference = None
        if self.samplers and config.feature_extractor != "none":
            named = None if config.feature_extractor == "inception" else config.feature_extractor
            self.extractor = load_feature_extractor(named, config.inception_weights, device=accelerator.device)
            with accelerator.main_process_first():
                self.reference = reference_statistics(reference, self.extractor, cache_dir=config.cache_dir)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        best = {sampler.name: [self.best[sampler], *self._terms(sampler)] for sampler in self.best}
        return {"best": {**self.others, **best}, "pending": [sampler.name for sampler in self.pending]}

    def load_state(self, state: dict[str, Any]):
        """Take back what `state` returned; a best distance by other images or features is no longer one."""
        self.others = dict(state["best"])
        for sampler in self.samplers:
            distance, *terms = state["best"].get(sampler.name, [None])
            if terms == self._terms(sampler):
                self.best[sampler] = distance
        self.pending = [sampler for sampler in self.samplers if sampler.name in state["pending"]]

    def _terms(self, sampler: Sampler) -> list:
        """What two distances must share to be compared."""
        return [sampler.images, self.extractor.hash if self.extractor else None]

    def schedule(self, step: int, last: bool):
        """Make pending the samplers whose turn it is after `step`; all of them after the last."""
        self.pending = [sampler for sampler in self.samplers if last or step % sampler.every == 0]

    def run(self, pipeline: DDIMCustomPipeline, step: int) -> Iterator[dict[str, float]]:
        """Sample with each pending one on all processes, save its grid and perhaps the model; yield figures to log."""
        while self.pending:
            sampler, began = self.pending[0], time.perf_counter()
            grid, statistics = self._sample(sampler, pipeline)
            if grid is None:
                return
            values = {f"sampler-{sampler.name}/seconds": time.perf_counter() - began}
            if statistics is not None:
                values |= self._judge(sampler, statistics, pipeline, step)
            if self.accelerator.is_main_process:
                self._save_grid(sampler, grid, step)
            self.pending.pop(0)
            yield values
            self.accelerator.wait_for_everyone()

    def _interrupt(self, pipeline, number, timestep, tensors):
        if self.stop.received:
            raise _Interrupted
        return tensors

    def _sample(self, sampler: Sampler, pipeline: DDIMCustomPipeline) -> tuple[list[torch.Tensor] | None, Any]:
        """This process's share: images of the grid, and statistics of all features; None when asked to stop."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        size, hidden = self.config.eval_batch_size, not self.accelerator.is_main_process
        first, last = (sampler.images * part // processes for part in (rank, rank + 1))
        rounds = math.ceil(math.ceil(sampler.images / processes) / size)  # as many on every process
        grid, statistics = [], Statistics() if self.extractor else None
        title = f"sampling {sampler.images} images in {sampler.steps} steps, eta {sampler.eta:g}"
        with tqdm(total=last - first, desc=title, unit="image", leave=False, disable=hidden) as bar:
            for number in range(rounds):
                seeds = range(first + number * size, min(first + (number + 1) * size, last))
                if seeds:
                    with suppress(_Interrupted):
                        pixels = self._images(pipeline, sampler, seeds)
                        grid += list(pixels[: max(0, GRID_IMAGES - len(grid))])
                        if statistics is not None:
                            statistics.update(self.extractor(pixels))
                    bar.update(len(seeds))
                if self.stop.requested():
                    return None, None
        return grid, statistics

    def _images(self, pipeline: DDIMCustomPipeline, sampler: Sampler, seeds: range) -> torch.Tensor:
        x = pipeline(
            len(seeds),
            None,
            sampler.eta,
            sampler.steps,
            output_type="latent",
            seeds=seeds,
            callback_on_step_end=self._interrupt,
        ).images
        return states_to_pixels(x)

    def _judge(self, sampler: Sampler, statistics, pipeline: DDIMCustomPipeline, step: int) -> dict[str, float]:
        """The distance over all processes' images; the model is kept if it is this sampler's best."""
        statistics = statistics.reduced(self.accelerator)
        main = self.accelerator.is_main_process
        (distance,) = broadcast_object_list([frechet_distance(statistics, self.reference) if main else None])
        values = {f"sampler-{sampler.name}/{self.extractor.metric}": distance}
        if distance < self.best.get(sampler, math.inf):
            self.best[sampler] = distance
            if self.accelerator.is_main_process:
                self._keep(sampler, pipeline)
                self.accelerator.print(
                    f"step {step}: {self.extractor.metric} {distance:.3f} ({self.extractor.name}, {sampler.images} "
                    f"images) is the best of {sampler.name}; kept in best-{sampler.name}"
                )
        return values

    def _keep(self, sampler: Sampler, pipeline: DDIMCustomPipeline):
        """Replace best-<steps>-<eta> as a whole."""
        folder = Path(self.config.output_dir) / f"best-{sampler.name}"
        partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            save_model(pipeline, partial)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)

    def _save_grid(self, sampler: Sampler, grid: list[torch.Tensor], step: int):
        picture = image_grid(pixels_to_pil(torch.stack(grid)))
        folder = Path(self.config.output_dir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"step-{step:07d}-{sampler.name}.png")
        for tracker in self.accelerator.trackers:
            pixels = np.asarray(picture)[None]
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({f"sampler-{sampler.name}/grid": pixels}, step=step, **layout)
