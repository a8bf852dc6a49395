"""What --dry_run tells of a run, from the descriptions of its network and its images alone."""

import json
from dataclasses import asdict

from accelerate import Accelerator

from .config import TrainingConfig
from .memory import step_memory
from .setup import check_samplers, describe_model, describe_split


def describe_plan(config: TrainingConfig, accelerator: Accelerator) -> str:
    """Return the settings, the network's size, the memory of a step, the images and the steps.

    Nothing is written, and no image and no weight is loaded.

    Raises:
        ValueError, OSError: what the run itself would say of its settings, its network or its images.
    """
    unet, scheduler = describe_model(config)
    check_samplers(config, scheduler)
    images = describe_split(config, config.split, unet.config.in_channels)
    if config.validation_split != "none":
        describe_split(config, config.validation_split, unet.config.in_channels)

    count = sum(parameter.numel() for parameter in unet.parameters())
    memory = step_memory(
        unet,
        config.batch_size // accelerator.num_processes // config.gradient_accumulation_steps,
        mixed_precision=config.mixed_precision,
        num_averages=len(config.ema_decays()),
        num_processes=accelerator.num_processes,
    )
    steps = f"steps: {config.max_train_steps:,} of {config.batch_size} images"
    if images.num_images is not None:
        steps += f" ({config.max_train_steps * config.batch_size / images.num_images:,.1f} epochs)"
    return "\n".join(
        [
            json.dumps(asdict(config), indent=2),
            f"parameters: {count:,}",
            f"memory of a step: about {memory.peak / 2**20:,.0f} MiB a process",
            f"  of it weights, moments and averages {memory.lasting / 2**20:,.1f} MiB",
            f"  of it gradients and activations {memory.passing / 2**20:,.1f} MiB",
            f"images: {images}; each to {config.resolution} x {config.resolution}",
            steps,
            f"processes: {accelerator.num_processes} on {accelerator.device}",
        ]
    )
