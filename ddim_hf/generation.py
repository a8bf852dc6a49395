"""Images out by the thousand: a folder that any number of processes fill, and that a killed run completes.

Image k is a function of seed + k. Its last bits also depend on how many images pass through the network at once, as
matrix products are summed in another order; its first pixel that rounds the other way follows. So the network always
sees blocks of one size, `max_batch_size`, the last one padded, and a block's rows do not depend on one another: the
same images come out for any number of processes and after any interruption. On a CPU the number of threads enters
likewise (1, 2, 4, 8 and 16 were found to agree in blocks of 16, other numbers not), so that it is rounded down to a
power of 2. Another device, block size, dtype or version of torch may change single pixels by 1.
"""

import contextlib
import inspect
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from diffusers.utils import export_to_gif, logging
from PIL import Image
from tqdm.auto import tqdm

from .files import whole_file, write_text
from .images import class_grid, image_grid, pixels_to_pil, refuse_not_finite, states_to_pixels
from .pipeline_ddim_custom import DDIMCustomPipeline, check_whole_numbers
from .processes import processes, wait_for_all
from .reports.provenance import package_versions
from .scheduling_ddim_custom import DDIMSchedulerCustom
from .unet import weights_hash

MANIFEST = "manifest.json"
PNG = "{:06d}.png"
FORMATS = ("png", "npy")
SHARD_BYTES, SHARD_IMAGES = 64 * 2**20, 1000
GIF_IMAGES, GIF_FRAMES = 16, 50
MAX_BATCH_SIZE = {"cpu": 16, "other": 256}  # for images of up to 64 x 64 pixels


def load_pipeline(
    model: str | Path,
    *,
    revision: str | None = None,
    tau: str | None = None,
    variance: str | None = None,
    fast: bool = False,
) -> DDIMCustomPipeline:
    """Load a pipeline onto this process's device.

    Args:
        model: a folder or an id on the Hub; `revision` is its branch, tag or commit.
        tau: "uniform" or "quad" instead of the scheduler's own skip_type.
        variance: "sigma" or "sigma_hat" instead of the scheduler's own.
        fast: call `enable_fast_sampling`.

    Raises:
        OSError, ValueError: nothing to load there, or an unknown tau or variance.
    """
    logging.disable_progress_bar()
    pipe = DDIMCustomPipeline.from_pretrained(model, revision=revision).to(processes().device)
    logging.enable_progress_bar()
    changes = {"skip_type": tau, "variance": variance}
    changes = {key: value for key, value in changes.items() if value is not None}
    pipe.scheduler = DDIMSchedulerCustom.from_config(pipe.scheduler.config, **changes)
    pipe.set_progress_bar_config(disable=True)
    if fast:
        pipe.enable_fast_sampling()
    return pipe


def default_max_batch_size(pipe: DDIMCustomPipeline) -> int:
    """How many images pass through the network at once, unless told: by device and image size, so that memory fits."""
    largest = MAX_BATCH_SIZE.get(pipe.device.type, MAX_BATCH_SIZE["other"])
    _, height, width = pipe.state_shape
    return max(1, min(largest, largest * 64 * 64 // (height * width)))


def sample_numbers(
    pipe: Callable,
    numbers: Sequence[int],
    *,
    seed: int,
    max_batch_size: int,
    class_labels: Sequence[Any] | None = None,
    **sampling: Any,
) -> Iterator[tuple[Sequence[int], Any]]:
    """Yield (numbers, the call's output for them) block by block; the last is padded to a whole block.

    Args:
        pipe: called as pipe(max_batch_size, seeds=[...], **sampling), and with class_labels=[...] if there are some;
            its output's first `len(numbers)` images count.
        numbers: which images; image k has the seed seed + k.
        class_labels: taken in turn: image k has the label k modulo their count.
    """
    _round_threads(pipe)
    for start in range(0, len(numbers), max_batch_size):
        block = numbers[start : start + max_batch_size]
        padded = [*block, *[block[-1]] * (max_batch_size - len(block))]
        if class_labels is not None:
            sampling["class_labels"] = [class_labels[k % len(class_labels)] for k in padded]
        yield block, pipe(max_batch_size, seeds=[seed + k for k in padded], **sampling)


def _finite_samples(
    pipe: Callable, numbers: Sequence[int], *, seed: int, **sampling: Any
) -> Iterator[tuple[Sequence[int], Any]]:
    """`sample_numbers`, where images that are NaN or infinite are an error and not black files."""
    for block, output in sample_numbers(pipe, numbers, seed=seed, **sampling):
        refuse_not_finite(output.images[: len(block)], [seed + k for k in block])
        yield block, output


def share(num_images: int, max_batch_size: int) -> list[int]:
    """The numbers of the images that fall to this process: one block after another goes to the next process."""
    state = processes()
    starts = range(state.process_index * max_batch_size, num_images, state.num_processes * max_batch_size)
    return [k for start in starts for k in range(start, min(start + max_batch_size, num_images))]


def _round_threads(pipe: Any):
    threads = torch.get_num_threads()
    if str(getattr(pipe, "device", "cpu")).startswith("cpu") and threads & (threads - 1):
        torch.set_num_threads(1 << (threads.bit_length() - 1))


def generate(
    pipe: DDIMCustomPipeline,
    output_dir: str | Path,
    *,
    num_images: int,
    num_inference_steps: int = 50,
    eta: float = 0.0,
    calibrated: bool | None = None,
    seed: int = 0,
    class_labels: Any = None,
    guidance_scale: float = 1.0,
    guidance_interval: Sequence[float] | None = None,
    guide: DDIMCustomPipeline | UNet2DModel | None = None,
    max_batch_size: int | None = None,
    format: str = "png",
    grid: int = 0,
    gif: bool = False,
    revision: str | None = None,
) -> Path:
    """Fill output_dir/images with images 0 to num_images - 1, on all processes of `accelerate launch`.

    Files appear whole or not at all, and what is there already is not made again. `manifest.json` holds the settings.
    On several machines without a common disk each keeps its own share.

    Args:
        pipe: as from `load_pipeline`.
        num_images: may be raised in a later call (not with npy, whose last shard would change).
        calibrated: as in sampling: False takes plain steps, True needs a fitted schedule.
        seed: image k is made from seed + k, and its class, alone.
        class_labels: names or numbers of classes, one, several or "all": the images take them in turn, image k the
            label k modulo their count. None is the null class.
        guidance_scale, guidance_interval, guide: as in sampling.
        max_batch_size: images through the network at once, written as a block (see this module's text); None takes
            `default_max_batch_size`.
        format: "png", one file an image, or "npy", uint8 [N, H, W, C] in shards of up to 64 MiB.
        grid: also save the first so many images as samples.png, in a row for each class if there are two of each.
        gif: also save how the first 16 images emerge, as denoising.gif.
        revision: recorded.

    Returns:
        The folder of the images.

    Raises:
        ValueError: a setting outside what is listed, another scheduler than ours, or a folder that was made with
            other settings.
    """
    _check_scheduler(pipe)
    if max_batch_size is None:
        max_batch_size = default_max_batch_size(pipe)
    check_whole_numbers(num_images=num_images, max_batch_size=max_batch_size)
    check_whole_numbers(grid=grid, least=0)
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; allowed: {', '.join(map(repr, FORMATS))}")
    labels = pipe.labels_in_turn(class_labels)
    guidance = {"guidance_scale": guidance_scale, "guidance_interval": guidance_interval, "guide": guide}
    pipe.check_sampling(eta=eta, num_inference_steps=num_inference_steps, seeds=[seed])
    condition = {"class_labels": None if class_labels is None else labels, **guidance}
    pipe.check_sampling(**condition)
    schedule = pipe.calibrated_schedule(num_inference_steps, eta=eta, calibrated=calibrated, **condition)

    folder, images = Path(output_dir), Path(output_dir) / "images"
    settings = {"num_inference_steps": num_inference_steps, "eta": eta, "seed": seed, "max_batch_size": max_batch_size}
    files = {"num_images": num_images, "format": format}
    shown = {"class_labels": labels, "guidance": _describe(guidance), "calibrated": schedule}
    _start_folder(folder, _manifest(pipe, revision) | settings | shown | files)
    # The schedule of all the classes, whichever of them a block holds.
    settings |= {"calibrated": False if schedule is None else schedule, **condition}

    state = processes()
    sample = partial(_finite_samples, pipe, output_type="latent", **settings)
    with _Progress(images, num_images, hidden=not state.is_main_process) as progress:
        if format == "png":
            _write_png(sample, images, share(num_images, max_batch_size), progress)
        else:
            _write_npy(sample, images, num_images, math.prod(pipe.state_shape), progress)
        wait_for_all()
        progress.update(all_there=True)
    if state.is_main_process:
        if grid:
            names = [pipe.id2label.get(label, "any") for label in labels or []]
            _save_grid(images, min(grid, num_images), format, folder / "samples.png", names)
        if gif:
            _save_gif(sample, min(GIF_IMAGES, num_images), folder / "denoising.gif")
    wait_for_all()
    return images


def _check_scheduler(pipe: DDIMCustomPipeline):
    """Raise ValueError for a scheduler whose settings the manifest has no words for."""
    if not isinstance(pipe.scheduler, DDIMSchedulerCustom):
        name = type(pipe.scheduler).__name__
        raise ValueError(f"the scheduler is {name}; allowed in a folder of images: DDIMSchedulerCustom")


# What a folder holds


def describe_network(pipe: DDIMCustomPipeline) -> str:
    """The dtype it runs in, and whether by fast sampling.

    Whether compilation works shows on first use only, so it is not told; images differ by that within the dtype's
    rounding, in bf16 by more than rare pixels.
    """
    if pipe.fast_network:
        return f"fast sampling, {pipe.fast_network.dtype_name}"
    return str(pipe.unet.dtype).removeprefix("torch.")


def describe_scheduler(config: dict[str, Any]) -> dict[str, Any] | None:
    """The settings of a scheduler's config, as JSON has it, that are not the default; tau and variance stand by
    themselves, and so does a fitted schedule."""
    defaults = inspect.signature(DDIMSchedulerCustom.__init__).parameters
    names = sorted(defaults.keys() & config.keys() - {"skip_type", "variance", "calibrated_schedules"})
    return {name: config[name] for name in names if config[name] != defaults[name].default} or None


def _manifest(pipe: DDIMCustomPipeline, revision: str | None) -> dict[str, Any]:
    name = pipe.config.get("_name_or_path")  # none where it was built in code
    return {
        "model": Path(name).name if name and Path(name).exists() else name,
        "revision": revision,
        "commit": pipe.commit,
        "weights_hash": weights_hash(pipe.unet),
        "scheduler": {
            key: value
            for key, value in pipe.scheduler.config.items()
            if key[0] != "_" and key != "calibrated_schedules"  # that which is used has a line of its own
        },
        "tau": pipe.scheduler.config.skip_type,
        "variance": pipe.scheduler.config.variance,
        "network": describe_network(pipe),
        "device": pipe.device.type,
        "versions": package_versions(),
    }


def _describe(guidance: dict[str, Any]) -> dict[str, Any] | None:
    """Guidance as a manifest has it, the guide by its weights; None where there is none."""
    if guidance["guidance_scale"] == 1:
        return None
    guide = guidance["guide"]
    described = {"scale": float(guidance["guidance_scale"]), "interval": guidance["guidance_interval"]}
    return described | {"guide": None if guide is None else weights_hash(getattr(guide, "unet", guide))}


def _start_folder(folder: Path, manifest: dict[str, Any]):
    """Write the manifest, unless the folder's own forbids it. Needs all processes."""
    state = processes()
    _check_manifest(folder / MANIFEST, manifest)
    state.wait_for_everyone()  # all have read it before one writes it
    with state.main_process_first():
        # The first process of each machine looks, for a disk of its own.
        if state.is_main_process or state.is_local_main_process and not (folder / MANIFEST).is_file():
            (folder / "images").mkdir(parents=True, exist_ok=True)
            for leftover in (folder / "images").glob(".*.partial.*"):  # of a killed run
                leftover.unlink()
            write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    state.wait_for_everyone()


def _check_manifest(file: Path, manifest: dict[str, Any]):
    """Refuse a folder whose images other settings made; where a model came from, and versions, do not count."""
    if not file.is_file():
        if (file.parent / "images").is_dir() and any((file.parent / "images").iterdir()):
            raise ValueError(
                f"{file.parent / 'images'} holds files but no {MANIFEST} is beside it: give another folder"
            )
        return
    try:
        there = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}): give another folder") from error
    manifest = json.loads(json.dumps(manifest))
    free = {"model", "revision", "commit", "versions"}
    if manifest["format"] == "png" and there.get("num_images", 0) <= manifest["num_images"]:
        free.add("num_images")
    differing = [key for key in manifest if key not in free and manifest[key] != there.get(key)]
    if differing:
        shown = "; ".join(_difference(key, there.get(key), manifest[key]) for key in differing)
        raise ValueError(f"{file.parent} was made with other settings: {shown}. Give another folder")


def _difference(key: str, old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        parts = (_difference(f"{key}.{k}", old.get(k), new.get(k)) for k in {**old, **new} if old.get(k) != new.get(k))
        return "; ".join(parts)
    old, new = (f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else value for value in (old, new))
    return f"{key} {old} there, {new} asked for"


# Files


def _write_png(sample: Callable, images: Path, numbers: Sequence[int], progress: "_Progress"):
    """Make those of `numbers` that are not there; one block is written while the next is sampled."""
    missing = [k for k in numbers if not (images / PNG.format(k)).is_file()]
    with ThreadPoolExecutor(2) as pool:
        writing = []
        for block, output in sample(missing):
            pictures = pixels_to_pil(states_to_pixels(output.images[: len(block)]))
            for written in writing:
                written.result()
            writing = [
                pool.submit(_save, images / PNG.format(k), picture.save)
                for k, picture in zip(block, pictures, strict=True)
            ]
            progress.update()
        for written in writing:
            written.result()


def _write_npy(sample: Callable, images: Path, num_images: int, bytes_per_image: int, progress: "_Progress"):
    """Make this process's share of the shards that are not there."""
    state = processes()
    size = max(1, min(SHARD_IMAGES, SHARD_BYTES // bytes_per_image))
    for start in range(size * state.process_index, num_images, size * state.num_processes):
        numbers = range(start, min(start + size, num_images))
        shard = images / f"{numbers[0]:08d}-{numbers[-1]:08d}.npy"
        if shard.is_file():
            continue
        blocks = []
        for block, output in sample(numbers):
            blocks.append(states_to_pixels(output.images[: len(block)]))
            progress.update(unwritten=sum(map(len, blocks)))
        pixels = torch.cat(blocks).permute(0, 2, 3, 1).contiguous().numpy()
        _save(shard, lambda beside, pixels=pixels: np.save(beside, pixels))
        progress.update()


def _save(file: Path, write: Callable[[Path], object]):
    with whole_file(file) as beside:
        write(beside)


class _Progress:
    """One bar for all processes: it counts the images in the folder, at most once a second."""

    def __init__(self, images: Path, total: int, hidden: bool):
        self.images, self.hidden, self.next_look, self.seen = images, hidden, 0.0, 0
        self.seen = 0 if hidden else self._count()
        self.bar = tqdm(total=total, initial=self.seen, desc="sampling", unit="image", smoothing=0.05, disable=hidden)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()

    def _count(self) -> int:
        with contextlib.suppress(OSError), os.scandir(self.images) as entries:
            return sum(_images_in(entry.name) for entry in entries)
        return 0

    def update(self, unwritten: int = 0, all_there: bool = False):
        """Look into the folder; `unwritten` images of this process are not there yet."""
        if self.hidden or (time.monotonic() < self.next_look and not all_there):
            return
        self.next_look = time.monotonic() + 1
        self.bar.update(max(0, self._count() + unwritten - self.bar.n))


def _images_in(name: str) -> int:
    """How many images a file holds, by its name; 0 of one that is not ours."""
    ours = re.fullmatch(r"\d{6,}\.png|(\d{8,})-(\d{8,})\.npy", name)
    if ours is None:
        return 0
    return int(ours[2]) - int(ours[1]) + 1 if ours[1] else 1


# Pictures of them


def _save_grid(images: Path, count: int, format: str, file: Path, names: Sequence[str]):
    """The first `count` images in a grid, with the names of the classes that they take in turn."""
    pictures = []
    if format == "png":
        for k in range(count):
            with Image.open(images / PNG.format(k)) as image:
                pictures.append(image.copy())
    else:
        for shard in sorted(file for file in images.glob("*.npy") if _images_in(file.name)):
            pixels = np.load(shard, mmap_mode="r")[: count - len(pictures)]
            pictures += pixels_to_pil(torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2))
    _save(file, class_grid(pictures, names).save)


def _save_gif(sample: Callable, count: int, file: Path):
    """The states of the first images from x_T to x_0, in at most GIF_FRAMES frames, the last one held."""
    blocks = [
        [states_to_pixels(x[: len(block)]) for x in output.trajectory]
        for block, output in sample(range(count), return_trajectory=True)
    ]
    states = [torch.cat(parts) for parts in zip(*blocks, strict=True)]
    chosen = np.unique(np.linspace(0, len(states) - 1, GIF_FRAMES).round().astype(int))
    frames = [image_grid(pixels_to_pil(states[i])) for i in chosen]
    frames += frames[-1:] * 10
    _save(file, lambda beside: export_to_gif(frames, str(beside), fps=10))
