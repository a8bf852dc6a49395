"""Images out by the thousand: a folder that any number of processes fill, and that a killed run completes.

Image k is a function of seed + k. Its last bits also depend on how many images pass through the network at once, as
matrix products are summed in another order; its first pixel that rounds the other way follows. So the network always
sees blocks of one size, the last one padded, and a block's rows do not depend on one another: the same images come out
for any number of processes, any batch size, and after any interruption. On a CPU the number of threads enters likewise
(1, 2, 4, 8 and 16 were found to agree in blocks of 16, other numbers not), so that it is rounded down to a power of 2.
Another device, block size, dtype or version of torch may change single pixels by 1.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import export_to_gif, logging
from PIL import Image
from tqdm.auto import tqdm

from .files import write_text
from .images import image_grid, states_to_uint8
from .pipeline_ddim_custom import DDIMCustomPipeline
from .processes import processes
from .provenance import package_versions
from .scheduling_ddim_custom import DDIMSchedulerCustom

MANIFEST = "manifest.json"
FORMATS = ("png", "npy")
SHARD_BYTES, SHARD_IMAGES = 64 * 2**20, 1000
GIF_IMAGES, GIF_FRAMES = 16, 50
BLOCK = {"cpu": 16, "other": 256}  # images of up to 64 x 64 pixels


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
    if Path(model).exists() and not Path(model, "model_index.json").is_file():
        raise FileNotFoundError(
            f"{str(model)!r} holds no model_index.json: give a model's folder or its id on the Hub"
        )
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


def block_size(pipe: DDIMCustomPipeline) -> int:
    """How many images pass through the network at once, unless told: by device and image size, so that memory fits."""
    largest = BLOCK.get(pipe.device.type, BLOCK["other"])
    _, height, width = pipe.state_shape
    return max(1, min(largest, largest * 64 * 64 // (height * width)))


def sample_numbers(
    pipe: Callable, numbers: Sequence[int], *, seed: int, block: int, **sampling: Any
) -> Iterator[tuple[Sequence[int], Any]]:
    """Yield (numbers, the call's output for them) block by block; the seeds of the last are padded to a whole block.

    Args:
        pipe: called as pipe(block, seeds=[...], **sampling); its output's first `len(numbers)` images count.
        numbers: which images; image k has the seed seed + k.
    """
    _round_threads(pipe)
    for start in range(0, len(numbers), block):
        own = numbers[start : start + block]
        padded = [seed + k for k in own] + [seed + own[-1]] * (block - len(own))
        yield own, pipe(block, seeds=padded, **sampling)


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
    seed: int = 0,
    batch_size: int | None = None,
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
        seed: image k is made from seed + k alone.
        batch_size: images that a process makes between two writes; rounded up to whole blocks of the network.
        max_batch_size: images through the network at once (see this module's text); None takes `block_size`.
        format: "png", one file an image, or "npy", uint8 [N, H, W, C] or [N, H, W] in shards of up to 64 MiB.
        grid: also save the first so many images as samples.png.
        gif: also save how the first 16 images emerge, as denoising.gif.
        revision: recorded.

    Returns:
        The folder of the images.

    Raises:
        ValueError: a setting outside what is listed, or the folder was made with other settings.
    """
    block = block_size(pipe) if max_batch_size is None else max_batch_size
    batch = block if batch_size is None else batch_size
    for name, value in (("num_images", num_images), ("batch_size", batch), ("max_batch_size", block)):
        if value != int(value) or value < 1:
            raise ValueError(f"{name} is {value}; allowed: whole numbers from 1")
    if grid < 0:
        raise ValueError(f"grid is {grid}; allowed: whole numbers from 0")
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; allowed: {', '.join(map(repr, FORMATS))}")
    pipe.check_sampling(eta=eta)
    pipe.scheduler.set_timesteps(num_inference_steps)

    state = processes()
    folder, images = Path(output_dir), Path(output_dir) / "images"
    sampling = {"num_inference_steps": num_inference_steps, "eta": eta}
    manifest = _manifest(pipe, revision) | sampling | {"seed": seed, "num_images": num_images, "format": format}
    manifest |= {"max_batch_size": block}
    _check_manifest(folder / MANIFEST, manifest)
    state.wait_for_everyone()  # all have read it before one writes it
    with state.main_process_first():
        if state.is_main_process or state.is_local_main_process and not (folder / MANIFEST).is_file():
            images.mkdir(parents=True, exist_ok=True)
            for leftover in images.glob(".*.tmp"):
                leftover.unlink()
            write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    state.wait_for_everyone()

    batch = -(-batch // block) * block
    if format == "npy":
        batch = min(SHARD_IMAGES, SHARD_BYTES // int(np.prod(pipe.state_shape))) or 1
    with _Progress(images, num_images, hidden=not state.is_main_process) as progress:
        for start in range(batch * state.process_index, num_images, batch * state.num_processes):
            numbers = range(start, min(start + batch, num_images))
            _write_missing(pipe, images, numbers, format, progress, seed=seed, block=block, **sampling)
        state.wait_for_everyone()
        progress.update(all_there=True)
    if state.is_main_process:
        if grid:
            _save_grid(images, min(grid, num_images), format, folder / "samples.png")
        if gif:
            _save_gif(pipe, folder / "denoising.gif", min(GIF_IMAGES, num_images), seed, block, sampling)
    state.wait_for_everyone()
    return images


# What a folder holds


def weights_hash(unet: torch.nn.Module) -> str:
    """SHA-256 over the names and values of a network's weights, in hex; the same wherever and however it is kept."""
    digest = hashlib.sha256()
    for name, value in sorted(unet.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def describe_network(pipe: DDIMCustomPipeline) -> str:
    """The dtype it runs in, and whether by fast sampling.

    Whether compilation works shows on first use only, so it is not told; images differ by that within the dtype's
    rounding, in bf16 by more than rare pixels.
    """
    if pipe._fast:
        return f"fast sampling, {pipe._fast.dtype_name}"
    return str(pipe.unet.dtype).removeprefix("torch.")


def _manifest(pipe: DDIMCustomPipeline, revision: str | None) -> dict[str, Any]:
    return {
        "model": Path(pipe.config._name_or_path).name
        if Path(pipe.config._name_or_path).exists()
        else pipe.name_or_path,
        "revision": revision,
        "weights_hash": weights_hash(pipe.unet),
        "scheduler": {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")},
        "tau": pipe.scheduler.config.skip_type,
        "variance": pipe.scheduler.config.variance,
        "network": describe_network(pipe),
        "device": pipe.device.type,
        "versions": package_versions(),
    }


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
    free = {"model", "revision", "versions"}
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


def _file(images: Path, numbers: Sequence[int], format: str) -> Path:
    return images / (f"{numbers[0]:06d}.png" if format == "png" else f"{numbers[0]:08d}-{numbers[-1]:08d}.npy")


def _write_missing(pipe, images: Path, numbers: range, format: str, progress: "_Progress", **sampling: Any):
    """Make those of `numbers` that are not there; one block is written while the next is sampled."""
    if format == "npy":
        if not _file(images, numbers, format).is_file():
            parts = []
            for _, output in sample_numbers(pipe, numbers, output_type="latent", **sampling):
                parts.append(states_to_uint8(output.images))
                progress.update(sum(map(len, parts)))
            _write(_file(images, numbers, format), np.concatenate(parts)[: len(numbers)])
            progress.update()
        return
    missing = [k for k in numbers if not _file(images, [k], format).is_file()]
    with ThreadPoolExecutor(2) as pool:
        pending = []
        for own, output in sample_numbers(pipe, missing, output_type="latent", **sampling):
            for future in pending:
                future.result()
            pixels = states_to_uint8(output.images)
            pending = [
                pool.submit(_write, _file(images, [k], format), row) for k, row in zip(own, pixels, strict=False)
            ]
            progress.update()
        for future in pending:
            future.result()


def _write(file: Path, pixels: np.ndarray):
    """A file that is whole or not there."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as stream:
        if file.suffix == ".npy":
            np.save(stream, pixels)
        else:
            Image.fromarray(pixels).save(stream, format="PNG")
    os.replace(temporary, file)


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
    if name.startswith("."):
        return 0
    first, _, last = Path(name).stem.partition("-")
    return int(last) - int(first) + 1 if last else 1


# Pictures of them


def _save_grid(images: Path, count: int, format: str, file: Path):
    """The first `count` images in a grid."""
    if format == "png":
        pictures = [Image.open(_file(images, [k], format)) for k in range(count)]
    else:
        shards = (np.load(shard, mmap_mode="r") for shard in sorted(images.glob("*.npy")))
        pictures = [Image.fromarray(row) for shard in shards for row in shard[:count]][:count]
    image_grid(pictures).save(file)


def _save_gif(pipe, file: Path, count: int, seed: int, block: int, sampling: dict[str, Any]):
    """The states of the first images from x_T to x_0, in at most 50 frames, the last one held."""
    parts = [
        [states_to_uint8(x[: len(own)]) for x in output.trajectory]
        for own, output in sample_numbers(
            pipe, range(count), seed=seed, block=block, output_type="latent", return_trajectory=True, **sampling
        )
    ]
    states = [np.concatenate(rows) for rows in zip(*parts, strict=True)]
    chosen = np.unique(np.linspace(0, len(states) - 1, GIF_FRAMES).round().astype(int))
    frames = [image_grid([Image.fromarray(row) for row in states[i]]) for i in chosen]
    export_to_gif([*frames, *[frames[-1]] * 10], str(file), fps=10)
