"""What --dry_run tells of a run, from the descriptions of its network and its images alone."""

import json
import math
from dataclasses import asdict, replace

from accelerate import Accelerator
from accelerate.utils import DistributedType

from ..data.labels import refuse_others
from .classes import check_classes, with_classes
from .config import TrainingConfig
from .memory import step_memory
from .outlook import estimate_time, summarize
from .setup import check_samplers, describe_model, describe_split


def describe_plan(config: TrainingConfig, accelerator: Accelerator) -> str:
    """Return what the run understood, its settings, the network's size, the memory of a step, and steps and time.

    Nothing is written, and no image and no weight is loaded. The time is that of a trial with random weights.

    Raises:
        ValueError, OSError: what the run itself would say of its settings, its network or its images.
    """
    unet, scheduler, names = describe_model(config)
    check_samplers(config, scheduler)
    images = describe_split(config, config.split, unet.config.in_channels)
    known = images.label_names
    if config.class_conditional and known:
        check_classes(images.name, known, len(known), images.num_images or math.inf)
        unet, _ = with_classes(unet, known, names)
    if config.validation_split != "none":
        held_out = describe_split(config, config.validation_split, unet.config.in_channels)
        if held_out.num_folders and known:  # whose names are the labels that occur
            refuse_others(held_out.label_names, known, f"the labels of split {config.split}")

    count = sum(parameter.numel() for parameter in unet.parameters())
    sharded = accelerator.distributed_type is DistributedType.FSDP
    memory = step_memory(
        unet,
        config.batch_size // accelerator.num_processes // config.gradient_accumulation_steps,
        mixed_precision=config.mixed_precision,
        num_averages=len(config.averages()),
        num_processes=accelerator.num_processes,
        sharded=sharded,
        passes=config.gradient_accumulation_steps,
        gradient_checkpointing=config.gradient_checkpointing,
    )
    summary = summarize(config, unet, images)
    if images.num_images is not None:
        config = replace(config, max_train_steps=config.steps_for(images.num_images))
    time = "time: unknown, as the number of images is"
    if config.num_train_epochs is None or images.num_images is not None:
        time = estimate_time(
            config, unet, memory, accelerator.device, accelerator.num_processes, config.max_train_steps
        )
    return "\n".join(
        [
            *summary,
            json.dumps(asdict(config), indent=2),
            f"parameters: {count:,}",
            f"memory of a step: about {memory.peak / 2**20:,.0f} MiB a process",
            f"  of it weights, moments and averages {memory.lasting / 2**20:,.1f} MiB",
            f"  of it gradients and activations {memory.passing / 2**20:,.1f} MiB",
            *["  with FSDP: its part of weights, moments and averages; gradients are counted whole"] * sharded,
            f"images: {images}; each to {config.resolution} x {config.resolution}",
            time,
            f"processes: {accelerator.num_processes} on {accelerator.device}",
        ]
    )
