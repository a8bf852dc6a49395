"""What a run is made of before its first step: how it was launched, its network, its data, its folder."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)
from diffusers import UNet2DModel
from filelock import FileLock, Timeout

from ..data import ImageDescription, ImageSet, describe_images, describe_source, load_images, open_source
from ..data.sources import is_plain_folder, local_path
from ..files import read_json
from ..hub import is_model, load_configs
from ..pipeline_ddim_custom import DDIMCustomPipeline
from ..processes import COLLECTIVE_LIMIT, gathered, once_a_machine, wait_for_all
from ..reports.provenance import launcher
from ..scheduling_ddim_custom import DDIMSchedulerCustom
from ..unet import UNET_CONFIGS
from .checkpoints import STATE_FILE, list_checkpoints
from .config import PRECISIONS, TrainingConfig, square_size
from .network import new_network
from .profiles import parse_profiles

COLOUR = [name for name, row in UNET_CONFIGS.items() if row["in_channels"] == 3]
NOT_TAKEN = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
PATIENCE = 60  # seconds that a run waits for the end of another in its folder
ON_CPU = "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N --mixed_precision no"


@contextmanager
def forgotten_afterwards() -> Iterator[None]:
    """accelerate holds a process to the precision of its first Accelerator: forget it with the run that made it."""
    found = bool(AcceleratorState._shared_state)
    try:
        yield
    finally:
        if not found:
            AcceleratorState._reset_state()


def build_accelerator(config: TrainingConfig) -> Accelerator:
    """Return the run's accelerator.

    Raises:
        ValueError: a precision that the device has not, processes that do not divide the batch size, or a way of
            launching that is not taken.
        ImportError: the logger is not installed.
    """
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # else several processes would be as many runs of one
        mixed_precision=config.mixed_precision,
        # One pass: else accelerate would take the number from its environment and divide the loss by it again.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=COLLECTIVE_LIMIT)],
        log_with=None if config.logger == "none" else config.logger,
        project_dir=config.output_dir,
    )
    wait_for_all()  # as in `processes`
    if config.logger != "none" and not accelerator.log_with:
        raise ImportError(f"logger {config.logger} is not installed; allowed: pip install {config.logger}, or none")
    if accelerator.mixed_precision not in PRECISIONS:
        raise ValueError(
            f"launched with mixed_precision {accelerator.mixed_precision}; allowed: {', '.join(PRECISIONS)}"
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":  # which accelerate takes as float32
        raise ValueError("mixed_precision is fp16 on a CPU; allowed: no, bf16")
    _shard(config, accelerator)
    if accelerator.distributed_type in NOT_TAKEN:
        raise ValueError(
            f"launched as {accelerator.distributed_type.value}; allowed: accelerate launch --multi_gpu, or --use_fsdp "
            "--fsdp_version 2"
        )
    if accelerator.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # all steps have one shape: the first looks for its fastest kernels
    parts = accelerator.num_processes * config.gradient_accumulation_steps
    if config.batch_size % parts:
        raise ValueError(
            f"batch_size is {config.batch_size}; allowed: multiples of {parts} (processes {accelerator.num_processes} "
            f"x gradient_accumulation_steps {config.gradient_accumulation_steps})"
        )
    if accelerator.num_processes > 1 and accelerator.device.type == "cpu":
        accelerator.print(f"note: no GPU is used: {accelerator.num_processes} processes share the CPU")
    # accelerate launch --cpu sets the address for several processes and starts one, unless it is given mpirun.
    if accelerator.num_processes == 1 and "MASTER_ADDR" in os.environ and "RANK" not in os.environ and launcher():
        print(f"warning: accelerate launch started one process; for several on the CPU: {ON_CPU}")
    return accelerator


def _shard(config: TrainingConfig, accelerator: Accelerator):
    """Prepare the division of weights, gradients and moments among the processes, where it was asked for."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true" or accelerator.num_processes == 1:
        return
    if accelerator.distributed_type is DistributedType.MULTI_CPU:  # which accelerate leaves out, though it works there
        state = {"distributed_type": DistributedType.FSDP, "fsdp_plugin": FullyShardedDataParallelPlugin()}
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state.update(state)
    plugin = accelerator.state.fsdp_plugin
    without = {
        "fsdp_version": (plugin.fsdp_version, 2),
        "mixed_precision": (accelerator.mixed_precision, ("no", "bf16")),
        "compile": (config.compile, False),
        "channels_last": (config.channels_last, (None, False)),
    }
    for name, (given, allowed) in without.items():
        if given not in (allowed if isinstance(allowed, tuple) else (allowed,)):
            raise ValueError(f"launched with FSDP and {name} {given}; allowed with it: {allowed}")
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = ["ResnetBlock2D"]  # what is gathered at once; the rest together


def with_precision(config: TrainingConfig, accelerator: Accelerator) -> TrainingConfig:
    """Return the settings with the precision that they or else the launcher chose."""
    config = copy(config)
    config.mixed_precision = accelerator.mixed_precision
    return config


def build_model(config: TrainingConfig) -> tuple[UNet2DModel, DDIMSchedulerCustom, list[str] | None]:
    """Return the network, a new one whose weights follow from the seed or a pretrained one; its noise schedule; and
    the names of its classes, where it has such."""
    if config.pretrained is None:
        torch.manual_seed(config.seed)
        return new_network(config), _schedule(config, {}), None
    _check_ended(Path(config.pretrained))
    if _is_network_alone(Path(config.pretrained)):
        schedule, index = _configs_beside(config)
        unet = UNet2DModel.from_pretrained(config.pretrained, use_safetensors=True)
    else:
        pipeline = DDIMCustomPipeline.from_pretrained(config.pretrained)
        unet, schedule, index = pipeline.unet, pipeline.scheduler.config, pipeline.config
    _check_fit(config, unet)
    if config.dropout not in (None, unet.config.dropout):
        weights = unet.state_dict()
        unet = UNet2DModel.from_config(unet.config, dropout=config.dropout)
        unet.load_state_dict(weights)
    return unet, _schedule(config, schedule), _names(index)


def describe_model(config: TrainingConfig) -> tuple[UNet2DModel, DDIMSchedulerCustom, list[str] | None]:
    """Return what `build_model` does, from the configs alone: the network has no weights (device "meta")."""
    if config.pretrained is None:
        with torch.device("meta"):
            unet = new_network(config)
        return unet, _schedule(config, {}), None
    _check_ended(Path(config.pretrained))
    if _is_network_alone(Path(config.pretrained)):
        layout, (schedule, index) = UNet2DModel.load_config(config.pretrained), _configs_beside(config)
    else:
        with tempfile.TemporaryDirectory() as scratch:  # in place of the Hub's cache
            layout, schedule, index = load_configs(config.pretrained, cache_dir=scratch)
    dropout = {} if config.dropout is None else {"dropout": config.dropout}
    with torch.device("meta"):
        unet = UNet2DModel.from_config(layout, **dropout)
    _check_fit(config, unet)
    return unet, _schedule(config, schedule), _names(index)


def _check_ended(folder: Path):
    """Raise ValueError for the folder of a run that has not ended, whose config.json is no network's."""
    record, checkpoints = folder / "config.json", list_checkpoints(folder)
    if record.is_file() and "output_dir" in read_json(record) and not is_model(folder):
        newest = f"its newest checkpoint, {checkpoints[-1]}" if checkpoints else "its result, when it has one"
        raise ValueError(f"{folder} is of a run that has not ended; allowed: {newest}")


def _is_network_alone(folder: Path) -> bool:
    """Whether a folder holds a network that was saved by itself, with no noise schedule."""
    others = ("model_index.json", "scheduler_config.json")
    return (folder / "config.json").is_file() and not any((folder / name).is_file() for name in others)


def _configs_beside(config: TrainingConfig) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The noise schedule and the index of the model whose folder a network alone lies in; none of one that lies in no
    such folder.

    Raises:
        ValueError: then nothing says what the network predicts.
    """
    folder = Path(config.pretrained).resolve().parent
    if (folder / "model_index.json").is_file():
        _, schedule, index = load_configs(folder, cache_dir=folder)  # a folder here: nothing is kept
        return schedule, index
    if config.prediction_type is None:
        raise ValueError(
            f"{config.pretrained} is a network alone, which does not say what it predicts; allowed: with "
            "--prediction_type epsilon, v_prediction or sample"
        )
    return {}, {}


def record_of(pretrained: str | None) -> dict[str, Any] | None:
    """What is on record of the training of a model in a folder, that of a run or one in it; None where nothing is."""
    if pretrained is None:
        return None
    folder = Path(pretrained).resolve()
    try:
        record = _run_record(folder.parent if folder.name == "unet" else folder)  # of a network alone: the model's
        known = {key: record[key] for key in ("final_step", "batch_size", "dataset_name")}
        known |= {key: record[key] for key in ("snr_gamma", "loss_weighting") if record.get(key) is not None}
        return known | {"started_from": record.get("started_from")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _run_record(folder: Path) -> dict[str, Any]:
    """The record of the run that a model is of, with the model's step: of a run's result, or of a checkpoint, a
    sampler's best or a further average in its folder."""
    own = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if "batch_size" in own:
        return own
    run = read_json(folder.parent / "config.json")
    if (folder / STATE_FILE).is_file():
        step = read_json(folder / STATE_FILE)["step"]
    elif folder.name in [profile.name for profile in parse_profiles(run["ema_decay"])]:
        step = run["final_step"]
    else:
        step = own["final_step"]
    return {**run, "final_step": step}


def _names(index: Mapping[str, Any]) -> list[str] | None:
    """The names of the classes that a model's index has, in order."""
    names = index.get("id2label") or {}
    return [names[key] for key in sorted(names, key=int)] or None


def _check_fit(config: TrainingConfig, unet: UNet2DModel):
    size, channels = square_size(unet.config.sample_size), (unet.config.in_channels, unet.config.out_channels)
    if channels not in ((1, 1), (3, 3)):
        raise ValueError(f"{config.pretrained} has in_channels and out_channels {channels}; allowed: both 1 or both 3")
    if unet.config.class_embed_type is not None:
        raise ValueError(f"{config.pretrained} has class_embed_type {unet.config.class_embed_type}; allowed: null")
    if unet.config.num_class_embeds is not None and not config.class_conditional:
        raise ValueError(f"{config.pretrained} is conditioned on classes; allowed: with class_conditional")
    if size is None:
        raise ValueError(f"{config.pretrained} has sample_size {unet.config.sample_size}; allowed: that of a square")
    if size != config.resolution:
        raise ValueError(f"resolution is {config.resolution}; allowed with {config.pretrained}: {size}")


def _schedule(config: TrainingConfig, pretrained: Mapping[str, Any]) -> DDIMSchedulerCustom:
    """A model's noise schedule, with the changes that the settings ask for."""
    given = {"prediction_type": config.prediction_type, "beta_schedule": config.beta_schedule}
    given = {name: value for name, value in given.items() if value is not None}
    if config.beta_schedule is not None:
        given["trained_betas"] = None  # which would count in its place
    given["calibrated_schedules"] = None  # those that there are were fitted to the weights before this training
    return DDIMSchedulerCustom.from_config(pretrained, **given)


def check_samplers(config: TrainingConfig, scheduler: DDIMSchedulerCustom):
    """Raise ValueError where a sampler cannot run on this noise schedule, which would else show after hours."""
    for sampler in config.sampler_settings():
        try:
            DDIMSchedulerCustom.from_config(scheduler.config).set_timesteps(sampler.steps)
        except ValueError as error:
            raise ValueError(f"samplers has {sampler.name} (steps-eta): {error}") from error


def describe_split(config: TrainingConfig, split: str, channels: int) -> ImageDescription:
    """Return what a split of the run's images is, without loading it.

    Raises:
        ValueError: colour images for a network of one channel, where that is not asked for, or a run inside the folder
            of its images.
    """
    folder = local_path(config.dataset_name)
    if is_plain_folder(folder) and Path(config.output_dir).resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"output_dir is {config.output_dir}, inside the folder of images {config.dataset_name}, whose images the "
            "run's own would become; allowed: a folder outside it"
        )
    images = describe_images(config.dataset_name, split, **_options(config), **_labels(config))
    _check_channels(config, images, channels)
    return images


def _check_channels(config: TrainingConfig, images: ImageDescription, channels: int):
    # Grey images lose nothing in a network of three channels, and are taken.
    network = f"network {config.network}" if config.pretrained is None else config.pretrained
    if channels == 3 and config.grey:
        raise ValueError(f"grey is given with {network}, which has three channels; allowed: one of them")
    if channels == 1 and images.channels == 3 and not config.grey:
        raise ValueError(
            f"{config.dataset_name} holds colour images and {network} has one channel; allowed: --recipe with a "
            f"colour network ({', '.join(COLOUR)}), or --grey to make them grey"
        )


def _options(config: TrainingConfig) -> dict[str, str | None]:
    """Which of the images that a name stands for."""
    return {
        "image_column": config.image_column,
        "config_name": config.dataset_config_name,
        "revision": config.dataset_revision,
    }


def _labels(config: TrainingConfig) -> dict[str, Any]:
    return {"labelled": config.class_conditional, "label_column": config.label_column}


def load_split(config: TrainingConfig, split: str, channels: int) -> tuple[ImageSet, ImageDescription]:
    """Return a split of the run's images, decoded by one process for all of a machine, and what they are.

    The others of the machine wait for the cache's lock, which has no limit.

    Raises as `describe_split`.
    """
    described = describe_split(config, split, channels)
    if described.channels is None:  # on the Hub: it shows only when it is here
        source, split = open_source(config.dataset_name, split, **_options(config))
        described = describe_source(described.kind, described.name, split, source)
        _check_channels(config, described, channels)
    images = once_a_machine(
        lambda refresh: load_images(
            config.dataset_name,
            split=split,
            resolution=config.resolution,
            channels=channels,
            **_options(config),
            **_labels(config),
            cache_dir=config.cache_dir,
            refresh_cache=refresh,
            skip_broken=config.skip_broken,
            max_cached_bytes=config.max_cached_bytes,
        ),
        config.refresh_cache,
    )
    fingerprints = gathered(images.fingerprint)
    if len(set(fingerprints)) > 1:
        others = [number for number, one in enumerate(fingerprints) if one != fingerprints[0]]
        raise ValueError(
            f"{config.dataset_name}: the processes {others} find other images than process 0; allowed: the same ones "
            "on every machine"
        )
    return images, replace(described, num_images=len(images), label_names=images.label_names)


def build_optimizer(config: TrainingConfig, unet: UNet2DModel) -> torch.optim.AdamW:
    """Return AdamW over the network's parameters, in one fused kernel where the device has one.

    A group's `share` is its learning rate over that of the run: the class embedding may have another one.
    """
    parameters = dict(unet.named_parameters())
    embedding = parameters.pop("class_embedding.weight", None)
    groups = [{"params": list(parameters.values()), "share": 1.0}]
    if embedding is not None:
        groups.append({"params": [embedding], "share": config.class_learning_rate / config.learning_rate})
    fused = unet.device.type in ("cuda", "cpu")
    return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused)


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
