"""Samplers that run during training: grids, Frechet distances, and the best model of each kept."""

import json
import math
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ..data import ImageSet
from ..evaluation.features import load_feature_extractor
from ..evaluation.frechet import Statistics, frechet_distance
from ..evaluation.references import reference_statistics
from ..files import whole_file, whole_folder, write_text
from ..images import class_grid, is_finite, pixels_to_pil, states_to_pixels
from ..pipeline_ddim_custom import DDIMCustomPipeline
from ..processes import gathered, on_main
from .config import SamplerSettings, TrainingConfig
from .result import save_model
from .stopping import Interrupted, StopRequest

GRID_IMAGES = 64


class Samplers:
    """The samplers of a run and the best distance that each has reached.

    Args:
        config: their settings, and where features come from.
        accelerator: the images are divided among its processes, image k from seed k on whichever makes it, of
            class k % K of the K that have images.
        reference: the images that the distance is taken to, with the labels that are trained.
        stop: asked between batches; a sampler that it interrupts stays in `pending`, to be run anew.

    Raises:
        ValueError, OSError: the feature extractor cannot be had.
    """

    def __init__(self, config: TrainingConfig, accelerator: Accelerator, reference: ImageSet, stop: StopRequest):
        self.config, self.accelerator, self.stop = config, accelerator, stop
        self.folder = Path(config.output_dir)
        self.settings = config.sampler_settings()
        self.pending: list[SamplerSettings] = []
        self.best: dict[SamplerSettings, float] = {}
        self.others: dict[str, list] = {}  # the best of samplers that this part of the run leaves out
        self.classes = [] if reference.labels is None else np.unique(reference.labels).tolist()
        self.extractor = self.reference = None
        if self.settings and config.feature_extractor != "none":
            named = None if config.feature_extractor == "inception" else config.feature_extractor
            self.extractor = load_feature_extractor(named, config.inception_weights, device=accelerator.device)
            known = {"cache_dir": config.cache_dir}
            self.reference = reference_statistics(reference.unlabelled(), self.extractor, **known)

    # In a checkpoint

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        best = {sampler.name: [self.best[sampler], *self._terms(sampler)] for sampler in self.best}
        return {"best": {**self.others, **best}, "pending": [sampler.name for sampler in self.pending]}

    def load_state(self, state: dict[str, Any], folder: Path):
        """Take back what `state` returned, from a checkpoint in `folder`.

        A best distance by other images or features is no longer one, nor one whose model lies elsewhere.
        """
        here = folder.resolve() == self.folder.resolve()
        kept = {name: row for name, row in state["best"].items() if here and (folder / f"best-{name}").is_dir()}
        self.others = dict(kept)
        for sampler in self.settings:
            distance, *terms = kept.get(sampler.name, [0.0])
            if terms == self._terms(sampler) and distance > 0:  # 0 is what NaN among the features once gave
                self.best[sampler] = distance
        self.pending = [sampler for sampler in self.settings if sampler.name in state["pending"]]

    def place(self) -> tuple:
        """What `take` makes the place of another process too."""
        return self.best, self.others, self.pending

    def take(self, place: tuple):
        """Take the place of the main process, the one that sees the folder."""
        self.best, self.others, self.pending = place

    def _terms(self, sampler: SamplerSettings) -> list:
        """What two distances must share to be compared."""
        return [sampler.images, self.extractor.hash if self.extractor else None]

    # During training

    def schedule(self, step: int, last: bool):
        """Make pending the samplers whose turn it is after `step`; all of them after the last."""
        self.pending = [sampler for sampler in self.settings if last or step % sampler.every == 0]

    def run(self, pipeline: DDIMCustomPipeline, step: int) -> Iterator[dict[str, float]]:
        """Sample with each pending one on all processes, save its grid and perhaps the model; yield figures to log."""
        while self.pending:
            sampler, began = self.pending[0], time.perf_counter()
            grid, statistics = self._sample(sampler, pipeline)
            if self.stop.requested():
                return
            values = {f"sampler-{sampler.name}/seconds": time.perf_counter() - began}
            if self.extractor is not None:
                try:
                    values |= self._judge(sampler, statistics, pipeline, step)
                except Interrupted:
                    return
            whole = [image for part in gathered(grid) for image in part]  # in the order of the seeds
            names = [pipeline.id2label[number] for number in self.classes]
            on_main(partial(self._save_grid, sampler, whole, step, names))
            # Done once all is written: a stop before this runs the sampler anew from the checkpoint.
            self.pending.pop(0)
            yield values

    def _sample(self, sampler: SamplerSettings, pipeline: DDIMCustomPipeline) -> tuple[list[np.ndarray], Statistics]:
        """This process's share: its images that belong to the grid, and the statistics of the features of all.

        Without features no others are drawn. Both are incomplete where the run was asked to stop.
        """
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        size, hidden = self.config.eval_batch_size, not self.accelerator.is_main_process
        images = sampler.images if self.extractor is not None else min(sampler.images, GRID_IMAGES)
        first, last = (images * part // processes for part in (rank, rank + 1))
        rounds = math.ceil(math.ceil(images / processes) / size)  # as many on every process, as each one votes
        grid: list[np.ndarray] = []
        statistics = Statistics()
        title = f"sampling {images} images in {sampler.steps} steps, eta {sampler.eta:g}"
        with tqdm(total=last - first, desc=title, unit="image", leave=False, disable=hidden) as bar:
            for number in range(rounds):
                seeds = range(first + number * size, min(first + (number + 1) * size, last))
                states = self._states(pipeline, sampler, seeds) if seeds else None
                # A process without images left, or stopped amid its own, still votes: the others wait for its vote.
                if self.stop.requested():
                    break
                if states is None:
                    continue
                finite = is_finite(states)
                states[torch.from_numpy(~finite)] = -1  # black in the grid
                pixels = states_to_pixels(states)
                grid += list(pixels[: max(0, GRID_IMAGES - seeds[0])].numpy())
                if self.extractor is not None:
                    features = self.extractor(pixels)
                    features[~finite] = np.nan  # those of a black image are finite
                    statistics.update(features, [f"seed {seed}" for seed in seeds])
                elif not finite.all():
                    bad = [seed for seed, whole in zip(seeds, finite, strict=True) if not whole]
                    print(f"sampler {sampler.name}: not finite, and black in the grid, are the seeds {bad[:5]}")
                bar.update(len(seeds))
        return grid, statistics

    def _states(self, pipeline: DDIMCustomPipeline, sampler: SamplerSettings, seeds: range) -> torch.Tensor | None:
        """Images from these seeds; None where this process was asked to stop."""
        classes = self.classes

        def interrupt(*_):
            if self.stop.received:
                raise Interrupted

        try:
            output = pipeline(
                len(seeds),
                class_labels=[classes[seed % len(classes)] for seed in seeds] if classes else None,
                eta=sampler.eta,
                num_inference_steps=sampler.steps,
                output_type="latent",
                seeds=seeds,
                callback_on_step_end=interrupt,
            )
        except Interrupted:
            return None
        return output.images

    def _judge(
        self, sampler: SamplerSettings, statistics: Statistics, pipeline: DDIMCustomPipeline, step: int
    ) -> dict[str, float]:
        """The distance over all processes' images; the model is kept if it is this sampler's best.

        Raises:
            Interrupted: the run was asked to stop meanwhile.
        """
        # All add up their sums; the main process takes the distance and tells it, so that all agree on the best.
        whole, metric = statistics.reduced(), self.extractor.metric
        try:
            distance = self.stop.on_main(frechet_distance, whole, self.reference)
        except ValueError as error:  # such as features that are not finite
            self.accelerator.print(f"step {step}: no {metric} of {sampler.name}: {error}")
            return {}
        if distance < self.best.get(sampler, math.inf):
            on_main(lambda: self._keep(sampler, pipeline, step))
            self.best[sampler] = distance
            self.accelerator.print(
                f"step {step}: {metric} {distance:.3f} ({self.extractor.name}, {sampler.images} images) is the best "
                f"of {sampler.name}; kept in best-{sampler.name}"
            )
        return {f"sampler-{sampler.name}/{metric}": distance}

    def _keep(self, sampler: SamplerSettings, pipeline: DDIMCustomPipeline, step: int):
        """Replace best-<steps>-<eta> as a whole."""
        with whole_folder(self.folder / f"best-{sampler.name}") as beside:
            save_model(pipeline, beside)
            write_text(beside / "config.json", json.dumps({"final_step": step}) + "\n")  # of the run's record

    def _save_grid(self, sampler: SamplerSettings, grid: list[np.ndarray], step: int, names: list[str]):
        picture = class_grid(pixels_to_pil(torch.from_numpy(np.stack(grid))), names)
        (self.folder / "samples").mkdir(parents=True, exist_ok=True)
        with whole_file(self.folder / "samples" / f"step-{step:07d}-{sampler.name}.png") as beside:
            picture.save(beside)
        for tracker in self.accelerator.trackers:
            pixels = np.asarray(picture)[None]
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({f"sampler-{sampler.name}/grid": pixels}, step=step, **layout)
