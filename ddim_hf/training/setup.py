"""What a run is made of before its first step: how it was launched, its network, its data, its folder."""

import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from diffusers import UNet2DModel
from filelock import FileLock, Timeout

from ..data import ImageSet, load_images
from ..pipeline_ddim_custom import DDIMCustomPipeline
from ..provenance import launcher
from ..scheduling_ddim_custom import DDIMSchedulerCustom
from ..unet import UNET_CONFIGS, build_unet
from .config import TrainingConfig

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
PATIENCE = 60  # seconds that a run waits for the end of another in its folder
ON_CPU = "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N --mixed_precision no"


def build_accelerator(config: TrainingConfig) -> Accelerator:
    """Return the run's accelerator.

    Raises:
        ValueError: processes that do not divide the batch size, or that shard the network.
        ImportError: the logger is not installed.
    """
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        # One pass: else accelerate would take the number from its environment and divide the loss by it again.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        log_with=None if config.logger == "none" else config.logger,
        project_dir=config.output_dir,
    )
    if config.logger != "none" and not accelerator.log_with:
        raise ImportError(f"logger {config.logger} is not installed; allowed: pip install {config.logger}, or none")
    if accelerator.distributed_type in SHARDED:
        raise ValueError(
            f"launched as {accelerator.distributed_type.value}; allowed: data parallel (accelerate launch --multi_gpu)"
        )
    if accelerator.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # all steps have one shape: the first looks for its fastest kernels
    parts = accelerator.num_processes * config.gradient_accumulation_steps
    if config.batch_size % parts:
        raise ValueError(
            f"batch_size is {config.batch_size}; allowed: multiples of {parts} (processes {accelerator.num_processes} "
            f"x gradient_accumulation_steps {config.gradient_accumulation_steps})"
        )
    # accelerate launch --cpu sets the address for several processes and starts one, unless it is given mpirun.
    if accelerator.num_processes == 1 and "MASTER_ADDR" in os.environ and "RANK" not in os.environ and launcher():
        print(f"warning: accelerate launch started one process; for several on the CPU: {ON_CPU}")
    return accelerator


def build_model(config: TrainingConfig) -> tuple[UNet2DModel, DDIMSchedulerCustom]:
    """Return the network, a new one whose weights follow from the seed or a pretrained one, and its noise schedule."""
    given = {"prediction_type": config.prediction_type, "beta_schedule": config.beta_schedule}
    given = {name: value for name, value in given.items() if value is not None}
    if config.pretrained is None:
        torch.manual_seed(config.seed)
        factor = 2 ** (len(UNET_CONFIGS[config.network]["block_out_channels"]) - 1)
        if config.resolution % factor:
            raise ValueError(
                f"resolution is {config.resolution}; allowed with {config.network}: multiples of {factor}"
            )
        changes = {} if config.dropout is None else {"dropout": config.dropout}
        return build_unet(config.network, sample_size=config.resolution, **changes), DDIMSchedulerCustom(**given)
    folder, others = Path(config.pretrained), ("model_index.json", "scheduler_config.json")
    if (folder / "config.json").is_file() and not any((folder / name).is_file() for name in others):
        # A network saved by itself
        pipeline = DDIMCustomPipeline(UNet2DModel.from_pretrained(config.pretrained), DDIMSchedulerCustom())
    else:
        pipeline = DDIMCustomPipeline.from_pretrained(config.pretrained)
    size = pipeline.unet.config.sample_size
    if size != config.resolution:
        raise ValueError(f"resolution is {config.resolution}; allowed with {config.pretrained}: {size}")
    return pipeline.unet, DDIMSchedulerCustom.from_config(pipeline.scheduler.config, **given)


def load_split(config: TrainingConfig, split: str, channels: int, accelerator: Accelerator) -> ImageSet:
    """Return a split of the run's images, decoded by one process for all of a machine."""
    with accelerator.main_process_first():
        return load_images(
            config.dataset_name,
            split=split,
            resolution=config.resolution,
            channels=channels,
            image_column=config.image_column,
            config_name=config.dataset_config_name,
            revision=config.dataset_revision,
            cache_dir=config.cache_dir,
            refresh_cache=config.refresh_cache and accelerator.is_local_main_process,  # the others take what it leaves
            skip_broken=config.skip_broken,
        )


def build_optimizer(config: TrainingConfig, unet: UNet2DModel) -> torch.optim.AdamW:
    """Return AdamW over the network's parameters, in one fused kernel where the device has one."""
    fused = unet.device.type in ("cuda", "cpu")
    return torch.optim.AdamW(unet.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused)


def hold_folder(folder: Path) -> FileLock:
    """Make a run's folder and return a lock on it, which ends with the process at the latest.

    Another run that is at work there is waited for, as it may have been told to stop and be saving.

    Raises:
        ValueError: it did not end.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"another run is at work in {folder}; waiting up to {PATIENCE} s for its end", flush=True)
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            raise ValueError(
                f"another run is at work in {folder}; allowed: one at a time in an --output_dir"
            ) from None
    return lock
