"""Figures that a paper could cite: distances to a reference by steps and eta, denoising loss, reconstruction error."""

import itertools
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from diffusers import DDIMPipeline, DDIMScheduler
from PIL import Image
from tqdm.auto import tqdm

from ..data import IMAGE_SUFFIXES, ImageSet, load_images
from ..generation import (
    MANIFEST,
    default_max_batch_size,
    describe_network,
    load_pipeline,
    sample_numbers,
    weights_hash,
)
from ..images import states_to_pixels
from ..pipeline_ddim_custom import DDIMCustomPipeline
from ..processes import processes
from ..scheduling_ddim_custom import DDIMSchedulerCustom
from .errors import denoising_loss, reconstruction_error
from .frechet import (
    FeatureExtractor,
    Statistics,
    feature_batches,
    frechet_distance,
    import_cleanfid,
    load_feature_extractor,
    reference_features,
    reference_statistics,
)
from .results import Results, read_manifest

CLEANFID_SPLITS = "train|test|trainval|trainval70k|custom"


@dataclass
class Reference:
    """What distances are taken to: its images, or clean-fid's precomputed statistics (`images` is None)."""

    name: str
    split: str | None
    images: ImageSet | None
    resolution: int

    def statistics(self, extractor: FeatureExtractor, mode: str, cache_dir: str | Path | None) -> Statistics:
        if self.images is not None:
            return reference_statistics(self.images, extractor, cache_dir)
        mean, covariance = self._precomputed(mode, "FID")
        return Statistics(mean, covariance, 2)  # the count is not on record, and not needed

    def features(self, extractor: FeatureExtractor, mode: str, cache_dir: str | Path | None) -> np.ndarray:
        if self.images is not None:
            return reference_features(self.images, extractor, cache_dir)
        return self._precomputed(mode, "KID")

    def _precomputed(self, mode: str, metric: str) -> Any:
        from cleanfid.features import get_reference_statistics

        try:
            return get_reference_statistics(self.name, self.resolution, mode=mode, split=self.split, metric=metric)
        except OSError as error:  # urllib's too
            raise FileNotFoundError(
                f"clean-fid has no {metric} statistics of {self.name}/{self.split} at {self.resolution} pixels here, "
                f"and cannot download them ({error}): give --reference a dataset or a folder"
            ) from error


def load_reference(
    name: str,
    *,
    resolution: int,
    channels: int,
    split: str | None = None,
    image_column: str | None = None,
    extractor: FeatureExtractor,
    cache_dir: str | Path | None = None,
) -> Reference:
    """Open what `load_images` opens or, by a name such as "cifar10/train", clean-fid's precomputed statistics.

    Raises:
        ValueError: precomputed statistics with features other than Inception's.
    """
    known = re.fullmatch(rf"([\w-]+)/({CLEANFID_SPLITS})", name)
    if known and not Path(name).exists():
        if extractor.metric != "fid":
            raise ValueError(f"reference {name!r} is clean-fid's, of Inception; {extractor.name} needs images")
        return Reference(known[1], known[2], None, resolution)
    images = load_images(
        name, split=split, resolution=resolution, channels=channels, image_column=image_column, cache_dir=cache_dir
    )
    return Reference(_short(name), images.split, images, resolution)


def _short(name: str) -> str:
    """A local path by its last part, so that no figure carries a machine's folders."""
    return Path(name).resolve().name if Path(name).exists() else name


# Distances


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
        extractor.metric, "kid" (or "kernel_distance"), and the seconds that one process spent: "seconds",
        "seconds_features" (on a GPU on a thread beside the sampling), "seconds_waiting" (of it, what the sampling
        waited).
    """
    state = processes()
    rank, total = state.process_index, state.num_processes
    starts = range(rank * block, num_images, block * total)
    numbers = [k for start in starts for k in range(start, min(start + block, num_images))]
    statistics, kept, spent, waiting, began = Statistics(), [], 0.0, 0.0, time.perf_counter()

    def extract(images: torch.Tensor) -> float:
        start = time.perf_counter()
        features = extractor(images)
        statistics.update(features)
        if reference_feats is not None:
            kept.append(features)
        return time.perf_counter() - start

    bar = tqdm(total=len(numbers), desc="sampling", unit="image", leave=False, disable=not state.is_main_process)
    with ThreadPoolExecutor(1) as pool, bar:
        submit = pool.submit if extractor.device.type != "cpu" else _at_once
        pending = None
        for own, images in sample_numbers(make, numbers, seed=seed, max_batch_size=block):
            start = time.perf_counter()
            spent += pending.result() if pending else 0
            pending = submit(extract, images[: len(own)])
            waiting += time.perf_counter() - start
            bar.update(len(own))
        start = time.perf_counter()
        spent += pending.result() if pending else 0
        waiting += time.perf_counter() - start
    figures = {"seconds": time.perf_counter() - began, "seconds_features": spent, "seconds_waiting": waiting}

    values = {extractor.metric: frechet_distance(statistics.reduced(), reference)}
    if reference_feats is not None:
        parts = gather_object([(numbers, np.concatenate(kept) if kept else None)])
        parts = [part for part in parts if part[0]]
        order = np.argsort(np.concatenate([part[0] for part in parts]))
        name = "kid" if extractor.metric == "fid" else "kernel_distance"
        values[name] = kernel_distance(reference_feats, np.concatenate([part[1] for part in parts])[order], seed)
    return values | figures


def _at_once(function: Callable, *args: Any) -> Future:
    """As an executor's submit. On a CPU a second thread would have OpenMP threads of its own, and with more threads
    than cores OpenMP's waiting ones sleep, after which sampling runs at two thirds of its speed."""
    done = Future()
    done.set_result(function(*args))
    return done


def kernel_distance(a: np.ndarray, b: np.ndarray, seed: int = 0) -> float:
    """clean-fid's KID (Binkowski et al. 2018) over features [N, D], with its random subsets fixed by `seed`."""
    import_cleanfid()
    from cleanfid import fid

    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        return fid.kernel_distance(a, b)
    finally:
        np.random.set_state(before)


def _ours(pipe: DDIMCustomPipeline, **sampling: Any) -> Callable:
    def make(block: int, seeds: list[int]) -> torch.Tensor:
        return states_to_pixels(pipe(block, seeds=seeds, output_type="latent", **sampling).images)

    return make


def _stock(pipe: DDIMCustomPipeline, **sampling: Any) -> Callable:
    config = {key: value for key, value in pipe.scheduler.config.items() if key not in ("skip_type", "variance")}
    stock = DDIMPipeline(pipe.unet, DDIMScheduler.from_config({**config, "_class_name": "DDIMScheduler"}))
    stock.set_progress_bar_config(disable=True)

    def make(block: int, seeds: list[int]) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        pixels = stock(block, generator=generators, output_type="np", **sampling).images
        return torch.from_numpy((pixels * 255).round().astype(np.uint8)).permute(0, 3, 1, 2)

    return make


# A table


def evaluate(
    model: str,
    reference: str,
    output: str | Path,
    *,
    num_inference_steps: Sequence[int] = (50,),
    eta: Sequence[float] = (0.0,),
    tau: Sequence[str] = (),
    variance: Sequence[str] = (),
    num_images: int = 50_000,
    seed: int = 0,
    max_batch_size: int | None = None,
    split: str | None = None,
    image_column: str | None = None,
    mode: str = "clean",
    feature_extractor: str | None = None,
    inception_weights: str | None = None,
    kid: bool = False,
    distance: bool = True,
    also_stock: bool = False,
    floor: str | None = None,
    loss: bool = False,
    reconstruction: Sequence[int] = (),
    data_splits: Sequence[str] = ("train", "test"),
    data_images: int | None = None,
    revision: str | None = None,
    fast: bool = False,
    cache_dir: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Fill `output` (JSON, with a Markdown table and fid_vs_steps.png beside it) with every figure that is asked for.

    It is written after each figure; those that it holds with the same protocol are not measured again.

    Args:
        model: a model's folder or id, or a folder of images.
        reference: what `load_reference` takes; with `loss` and `reconstruction` it has to be a dataset.
        num_inference_steps, eta, tau, variance: the cells are all combinations; sigma_hat is drawn at eta 1 only, and
            tau and variance are the model's own where none are given.
        num_images: images of each cell, image k made from seed + k.
        max_batch_size: as in `ddim_hf.sampling.generate`.
        floor: a split whose first `num_images` real images are measured like samples: what a perfect model would get.
        also_stock: also sample with diffusers' DDIMPipeline, which knows tau "uniform" and variance "sigma".
        loss, reconstruction: the denoising loss, and the reconstruction error in so many steps, on `data_splits`,
            the first `data_images` of each.

    Raises:
        ValueError, OSError, ImportError: in one line, what cannot be had.
    """
    if data_images is not None and data_images < 1:
        raise ValueError(f"data_images is {data_images}; allowed: whole numbers from 1")
    results, state = Results(output), processes()
    is_images = Path(model).is_dir() and not Path(model, "model_index.json").is_file()
    if not (distance or is_images or loss or reconstruction):
        raise ValueError("nothing to measure: no distance, no denoising loss and no reconstruction is asked for")
    (results.rows,) = broadcast_object_list([results.rows])  # without a shared disk each would see its own
    state.wait_for_everyone()  # all have read it before one writes it
    common = {"seed": seed, "model": _short(model)}
    data = {"image_column": image_column, "cache_dir": cache_dir}
    features = {"feature_extractor": feature_extractor, "inception_weights": inception_weights, "mode": mode}
    if is_images:
        _folder_distance(Path(model), reference, features, kid, split, results, common, data)
        return results.rows

    pipe = load_pipeline(model, revision=revision, fast=fast)
    plain = load_pipeline(model, revision=revision) if also_stock and fast else pipe  # stock knows no other
    taus, variances = tau or [pipe.scheduler.config.skip_type], variance or [pipe.scheduler.config.variance]
    cells = _cells(num_inference_steps, eta, taus, variances, also_stock) if distance else []
    if distance and also_stock and "stock" not in {cell["implementation"] for cell in cells}:
        raise ValueError(f"also stock with tau {taus}, variance {variances}; allowed: 'uniform' with 'sigma'")
    for cell in cells:  # what is wrong is said before any work
        pipe.check_sampling(max(num_images, 0), eta=cell["eta"], max_batch_size=max_batch_size)
    for steps in (*(cell["num_inference_steps"] for cell in cells), *reconstruction):
        pipe.scheduler.set_timesteps(steps)
    common |= {"weights_hash": weights_hash(pipe.unet), "network": describe_network(pipe)}
    channels, resolution, _ = pipe.state_shape
    data |= {"resolution": resolution, "channels": channels}
    splits = data_splits if loss or reconstruction else ()
    block = max_batch_size or default_max_batch_size(pipe)
    on_data = {part: load_images(reference, split=part, **data) for part in splits}
    if distance:
        extractor, names = _opened(**features)
        target = load_reference(reference, split=split, extractor=extractor, **data)
        names |= _about(target)
        prepared = (
            target.statistics(extractor, mode, cache_dir),
            target.features(extractor, mode, cache_dir) if kid else None,
        )
        if floor:
            real = load_images(reference, split=floor, **data)[:num_images]
            row = names | {"implementation": f"real images ({floor})", "num_images": len(real)}
            _measure_real(real, extractor, prepared[0], results, row)
        for cell in cells:
            measured = plain if cell["implementation"] == "stock" else pipe
            protocol = common | names | {"num_images": num_images}
            _measure_cell(measured, cell, extractor, prepared, results, protocol, block)
    for images in on_data.values():
        protocol = common | {"reference": _short(reference), "split": images.split}
        protocol |= {"num_images": min(data_images or len(images), len(images))}
        _measure_errors(pipe, images, loss, reconstruction, taus, results, protocol, max(64, block))
    return results.rows


def _about(reference: Reference) -> dict[str, Any]:
    count = None if reference.images is None else len(reference.images)
    return {"reference": reference.name, "split": reference.split, "num_reference": count}


def _cells(steps, etas, taus, variances, also_stock) -> list[dict[str, Any]]:
    """One protocol for each figure; stock knows uniform tau and sigma alone, and sigma_hat stands at eta 1."""
    cells = []
    for tau, variance in itertools.product(taus, variances):
        names = ["ddim_hf"] + ["stock"] * (also_stock and (tau, variance) == ("uniform", "sigma"))
        for eta, count, name in itertools.product(etas if variance == "sigma" else (1.0,), steps, names):
            cell = {"tau": tau, "variance": variance, "eta": float(eta), "num_inference_steps": count}
            cells.append(cell | {"implementation": name})
    return cells


def _opened(**features: Any) -> tuple[FeatureExtractor, dict[str, Any]]:
    """The extractor, and what the protocol says of it."""
    extractor = load_feature_extractor(**features, device=processes().device)
    return extractor, {
        "mode": features["mode"] if extractor.metric == "fid" else None,
        "feature_extractor": extractor.name,
        "feature_extractor_hash": extractor.hash,
    }


def _measure_real(images: torch.Tensor, extractor, reference: Statistics, results: Results, protocol):
    row = protocol | {"metric": extractor.metric, "model": None, "seed": None}
    if not results.has(row):
        statistics = Statistics().update(np.concatenate([extractor(part) for part in images.split(128)]))
        results.add(row | {"value": frechet_distance(statistics, reference)})


def _measure_cell(pipe, cell, extractor, prepared, results: Results, protocol, block: int):
    protocol = protocol | cell | {"network": describe_network(pipe)}
    metrics = [extractor.metric] + (
        ["kid" if extractor.metric == "fid" else "kernel_distance"] if prepared[1] is not None else []
    )
    if all(results.has({"metric": metric, **protocol}) for metric in metrics):
        return
    _set_scheduler(pipe, cell["tau"], cell["variance"])
    maker = _ours if cell["implementation"] == "ddim_hf" else _stock
    make = maker(pipe, num_inference_steps=cell["num_inference_steps"], eta=cell["eta"])
    values = distances(
        make, extractor, *prepared, num_images=protocol["num_images"], block=block, seed=protocol["seed"]
    )
    seconds = {key: round(values.pop(key), 3) for key in ("seconds", "seconds_features", "seconds_waiting")}
    for metric in metrics:
        results.add({"metric": metric, "value": values[metric], **protocol, **seconds})


def _set_scheduler(pipe: DDIMCustomPipeline, tau: str, variance: str):
    pipe.scheduler = DDIMSchedulerCustom.from_config(pipe.scheduler.config, skip_type=tau, variance=variance)


def _measure_errors(pipe, images: ImageSet, loss: bool, reconstruction, taus, results: Results, protocol, batch_size):
    sizes = {"num_images": protocol["num_images"], "batch_size": batch_size}
    if loss and not results.has({"metric": "denoising_loss", **protocol}):
        value, ranges = denoising_loss(pipe, images, seed=protocol["seed"], **sizes)
        results.add({"metric": "denoising_loss", "value": value, **protocol, "by_timesteps": ranges})
    protocol = {key: value for key, value in protocol.items() if key != "seed"}  # nothing is drawn
    for tau, steps in itertools.product(taus, reconstruction):
        row = {"metric": "reconstruction_mse", **protocol, "tau": tau, "eta": 0.0, "num_inference_steps": steps}
        if not results.has(row):
            _set_scheduler(pipe, tau, "sigma")
            value = reconstruction_error(pipe, images, steps, **sizes)
            results.add(row | {"value": value})


def _folder_distance(folder, reference, features, kid, split, results: Results, protocol, data):
    extractor, names = _opened(**features)
    if (folder / MANIFEST).is_file():  # what sample.py left, whose pictures beside the images are none
        folder = folder / "images"
    files = [file for file in folder.rglob("[!.]*") if file.suffix.lower() in IMAGE_SUFFIXES]
    if (folder / "config.json").is_file():
        raise FileNotFoundError(f"{str(folder)!r} is a training run that has not finished: it holds no model yet")
    if not files:
        raise FileNotFoundError(f"{str(folder)!r} holds neither model_index.json nor images")
    with Image.open(min(files)) as image:
        size = {"resolution": min(image.size), "channels": 1 if image.mode == "L" else 3}
    images = load_images(str(folder), cache_dir=data["cache_dir"], **size)
    target = load_reference(reference, split=split, extractor=extractor, **data, **size)
    protocol |= names | _about(target) | {"num_images": len(images)} | read_manifest(folder)
    own = np.concatenate(list(feature_batches(images, extractor, 128)))
    statistics = target.statistics(extractor, features["mode"], data["cache_dir"])
    value = frechet_distance(Statistics().update(own), statistics)
    results.add({"metric": extractor.metric, "value": value, **protocol})
    if kid:
        name = "kid" if extractor.metric == "fid" else "kernel_distance"
        theirs = target.features(extractor, features["mode"], data["cache_dir"])
        results.add({"metric": name, "value": kernel_distance(theirs, own, protocol["seed"] or 0), **protocol})
