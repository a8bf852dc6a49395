"""What a run says before its first step: what it understood, what does not fit, and how long it will take."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import psutil
import torch
from diffusers import UNet2DModel

from ..data import ImageDescription
from ..reports.words import counted, in_words
from .classes import SHOWN, null_labels
from .config import RECIPES, TrainingConfig
from .memory import AUTOCAST, StepMemory

MOST_EPOCHS = 2_000  # of one's own images: beyond, a network has learnt them by heart
LAST_TIMED = 10  # step, by which the pace is told
TRIAL_SIZE = 64  # pixels; at 256 a pass of celebahq-256 takes half a minute on a CPU core
TRANSPARENT = {"RGBA", "LA", "PA", "La", "RGBa", "I;16A"}


def summarize(config: TrainingConfig, unet: UNet2DModel, images: ImageDescription) -> list[str]:
    """Return a line that says what a run understood, and below it one for each thing that changes or does not fit."""
    size, count = config.resolution, images.num_images
    words = ["an unknown number of images" if count is None else counted(count, "image")]
    words += ["RGB" if unet.config.in_channels == 3 else "grey", f"{size} x {size}{_source_size(config, images)}"]
    parts = [", ".join(words)]
    if config.class_conditional:
        parts.append(_classes(images.label_names))
    elif images.num_folders > 1:
        parts.append(
            f"{images.num_folders} class folders seen, trained as one set (--class_conditional tells them apart)"
        )
    name = config.network or config.pretrained
    parts.append(f"network {name} of {unet.num_parameters():,} parameters")
    parts.append(_steps(config, count))
    return ["; ".join(parts), *_changes(config, unet, images), *_misfits(config, count)]


def _classes(names: Sequence[str] | None) -> str:
    if names is None:
        return "classes by labels that are not here yet"
    return f"{len(names)} classes: {', '.join(names[:SHOWN])}{', ...' * (len(names) > SHOWN)}"


def _source_size(config: TrainingConfig, images: ImageDescription) -> str:
    if images.smallest is None or {*images.smallest, *images.largest} == {config.resolution}:
        return ""
    least, most = min(images.smallest), max(images.largest)
    how = "scaled" if images.square else "centre-cropped"
    sizes = f"{least}..{most}" if least < most else f"{least} x {most}"
    some = f" ({images.looked_at} looked at)" if images.num_images != images.looked_at else ""
    return f", {how} from {sizes} pixels{some}"


def _steps(config: TrainingConfig, count: int | None) -> str:
    if count is None:
        limits = {"epochs": config.num_train_epochs, "steps": config.max_train_steps}
        return " or ".join(f"{limit:,} {unit}" for unit, limit in limits.items() if limit) + ", what ends first"
    steps = config.steps_for(count)
    epochs = steps * config.batch_size / count
    return f"{counted(steps, 'step')} of {counted(config.batch_size, 'image')} ({epochs:,.1f} epochs)"


def _changes(config: TrainingConfig, unet: UNet2DModel, images: ImageDescription) -> list[str]:
    said = []
    if unet.config.in_channels == 3 and images.channels == 1:
        said.append("note: the images are grey, and train a network for colour as they are")
    if unet.config.in_channels == 1 and images.channels == 3:
        said.append("note: the images are in colour, and are made grey")
    usual = RECIPES[config.recipe]["feature_extractor"]
    if config.sampler_settings() and config.feature_extractor == "none" and usual != "none":
        said.append(f"note: samplers save grids and take no distance (--feature_extractor {usual}, or a file)")
    if TRANSPARENT.intersection(images.modes):
        said.append("note: transparent images are laid on white")
    if images.smallest is not None and min(images.smallest) < config.resolution:
        said.append(f"note: images from {min(images.smallest)} pixels are enlarged to {config.resolution}")
    return said


def _misfits(config: TrainingConfig, count: int | None) -> list[str]:
    said = []
    if config.class_conditional and config.label_dropout == 0:
        without = "mean nothing" if config.pretrained is None else f"are left to what {config.pretrained} knew of it"
        said.append(
            "warning: label_dropout 0: the null class is not trained, and guidance and samples without a class "
            f"{without} (--label_dropout 0.1)"
        )
    if count is not None and config.steps_for(count) < config.lr_warmup_steps:
        said.append(
            f"warning: {counted(config.steps_for(count), 'step')}, and {config.lr_warmup_steps:,} of warm-up: the "
            f"learning rate never comes to its peak (--lr_warmup_steps {config.steps_for(count) // 10})"
        )
    if count is not None and count < config.batch_size:
        said.append(
            f"warning: {counted(count, 'image')}, fewer than a batch of {config.batch_size}: a step takes some twice "
            f"(--batch_size {count})"
        )
    if count is not None and config.steps_for(count) * config.batch_size > MOST_EPOCHS * count:
        epochs = config.steps_for(count) * config.batch_size / count
        said.append(
            f"warning: {epochs:,.0f} epochs, more than {MOST_EPOCHS:,}: the network will learn "
            f"{counted(count, 'image')} by heart (--num_train_epochs 200)"
        )
    return said


# Time


class Pace:
    """Says after ten steps how long the others will take; the first two, which prepare much, do not count."""

    def __init__(self):
        self.steps, self.seconds = 0, 0.0

    @contextmanager
    def step(self, wait_for_device: Callable[[], object]) -> Iterator[None]:
        """Around a step, and around nothing else."""
        began = time.perf_counter()
        yield
        self.steps += 1
        if 2 <= self.steps <= LAST_TIMED:
            wait_for_device()
        if 2 < self.steps <= LAST_TIMED:
            self.seconds += time.perf_counter() - began

    def in_words(self, to_come: int) -> str | None:
        """Return the sentence, once."""
        if self.steps != LAST_TIMED or not to_come:
            return None
        seconds = self.seconds / (LAST_TIMED - 2) * to_come
        return f"about {in_words(seconds)} for the {to_come:,} steps to come, samples and checkpoints not counted"


def estimate_time(
    config: TrainingConfig, unet: UNet2DModel, memory: StepMemory, device: torch.device, processes: int, steps: int
) -> str:
    """Return how long so many steps take, from a trial pass of a network of this layout with random weights.

    On a CPU large images are tried at a smaller size; a pass takes as much longer as they have more pixels.
    """
    share, precision = config.batch_size // processes, config.mixed_precision
    size = _trial_size(config.resolution, unet) if device.type == "cpu" else config.resolution
    pixels = (size / config.resolution) ** 2
    one = memory.lasting + memory.passing * pixels * config.gradient_accumulation_steps / share
    if device.type == "cpu" and one > psutil.virtual_memory().available:
        return "time: unknown, as one image needs more memory than is free"
    network = UNet2DModel.from_config(unet.config, sample_size=size).train()
    if config.gradient_checkpointing:
        network.enable_gradient_checkpointing()

    def seconds(count: int) -> float:
        shape = (count, unet.config.in_channels, size, size)
        x_t, timesteps = torch.zeros(shape, device=device), torch.zeros(count, dtype=torch.int64, device=device)
        began = time.perf_counter()
        with torch.autocast(device.type, AUTOCAST[precision], enabled=precision != "no"):
            loss = network(x_t, timesteps, null_labels(network, count)).sample.float().square().mean()
        loss.backward()
        loss.item()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - began

    count = 1
    try:
        network.to(device)
        passed = seconds(count)
        if passed < 5:  # the first pass prepares much
            passed = seconds(count)
        if passed < 1:
            count = min(share, 8) if device.type == "cpu" else share // config.gradient_accumulation_steps
            passed = seconds(count)
    except torch.OutOfMemoryError:
        return f"time: unknown, as a pass of {counted(count, 'image')} does not fit the device"
    total = passed / pixels * share / count * steps
    trial = f"{counted(count, 'image')} of {size} x {size}"
    return f"time: about {in_words(total)} on {device.type}, from a trial of {trial}; samples not counted"


def _trial_size(resolution: int, unet: UNet2DModel) -> int:
    """The side of a trial's images on a CPU: at most TRIAL_SIZE, where the network's levels allow it."""
    factor = 2 ** len(unet.config.block_out_channels)  # halves what the levels divide
    while resolution > TRIAL_SIZE and resolution % factor == 0:
        resolution //= 2
    return resolution
