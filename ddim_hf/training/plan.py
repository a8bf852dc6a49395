"""What --dry_run tells of a run."""

import json
from dataclasses import asdict

from .config import TrainingConfig
from .setup import build_accelerator, build_model, load_split


def describe_plan(config: TrainingConfig) -> str:
    """Return the settings, the network's size, the memory that weights and states take, and the steps."""
    accelerator = build_accelerator(config)
    unet, _ = build_model(config)
    images = load_split(config, config.split, unet.config.in_channels, accelerator)
    count = sum(parameter.numel() for parameter in unet.parameters())
    copies = 4 + len(config.ema_decays())  # weights, gradients, two moments, the averages
    epochs = config.max_train_steps * config.batch_size / len(images)
    return "\n".join(
        [
            json.dumps(asdict(config), indent=2),
            f"parameters: {count:,}",
            f"memory for weights, gradients, optimizer and EMA: {copies * 4 * count / 2**20:,.1f} MiB a process",
            f"images: {len(images):,} of {' x '.join(map(str, images.shape[1:]))}",
            f"steps: {config.max_train_steps:,} of {config.batch_size} images ({epochs:,.1f} epochs)",
            f"processes: {accelerator.num_processes} on {accelerator.device}",
        ]
    )
