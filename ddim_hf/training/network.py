"""The network of a run that starts from a new one: a row of UNET_CONFIGS or a file, and the flags that change it."""

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel

from ..unet import BLOCKS, UNET_CONFIGS, block_types
from .classes import null_labels
from .config import TrainingConfig, square_size


def _is_whole(value: Any) -> bool:
    return type(value) is int and value > 0


# What a file's keys that are reckoned with have to be; all others are left to UNet2DModel.
KEYS = {
    "sample_size": (lambda size: size is None or square_size(size), "a whole number from 1, or two that are equal"),
    "block_out_channels": (
        lambda every: isinstance(every, list) and every and all(map(_is_whole, every)),
        "a list of whole numbers from 1",
    ),
    "norm_num_groups": (_is_whole, "whole numbers from 1"),
    **dict.fromkeys(
        ("downsample_type", "upsample_type"),
        (lambda kind: kind in (None, *BLOCKS), ", ".join(map(json.dumps, [*BLOCKS, None]))),
    ),
}


def new_network(config: TrainingConfig) -> UNet2DModel:
    """Return the network that the settings describe, with random weights.

    Raises:
        ValueError, OSError: in one line, for a layout that is none, or that does not fit the resolution.
    """
    layout = _changed(config, dict(UNET_CONFIGS.get(config.network) or _read(Path(config.network))))
    _check(config, layout)
    return UNet2DModel(**layout)


def _read(file: Path) -> dict[str, Any]:
    """The config keys of a UNet2DModel that a JSON file holds."""
    try:
        layout = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:  # no JSON, or no text
        raise ValueError(f"network is {file}, which is not JSON: {error}") from error
    if not isinstance(layout, dict):
        raise ValueError(f"network is {file}, which holds no object; allowed: a UNet2DModel's config.json")
    layout = {key: value for key, value in layout.items() if not key.startswith("_")}
    known = set(inspect.signature(UNet2DModel).parameters)
    unknown = sorted(set(layout) - known)
    if unknown:
        raise ValueError(f"network is {file} and has {', '.join(unknown)}; allowed: config keys of UNet2DModel")
    for key, (fits, allowed) in KEYS.items():
        if key in layout and not fits(layout[key]):
            raise ValueError(f"network is {file} and has {key} {json.dumps(layout[key])}; allowed: {allowed}")
    return {"in_channels": 3, "out_channels": 3} | layout


def _changed(config: TrainingConfig, layout: dict[str, Any]) -> dict[str, Any]:
    """The layout with the changes that the settings ask for."""
    layout["sample_size"] = config.resolution
    if config.dropout is not None:
        layout["dropout"] = config.dropout
    if config.layers_per_block is not None:
        layout["layers_per_block"] = config.layers_per_block
    before = len(layout.get("block_out_channels", ())) or 4
    if config.block_out_channels is not None:
        layout["block_out_channels"] = config.numbers("block_out_channels", least=1)
    levels = len(layout.get("block_out_channels", ())) or before
    resample = layout.get("downsample_type") or "conv"
    if config.attention_levels is not None or levels != before:
        _refuse_other_blocks(config, layout, resample)
    if config.attention_levels is not None:
        attention = config.numbers("attention_levels", least=0)
        if max(attention, default=0) >= levels:
            raise ValueError(
                f"attention_levels is {config.attention_levels}; allowed: 0 to {levels - 1} by commas, or none"
            )
        layout |= block_types([level in attention for level in range(levels)], resample)
    elif levels != before:  # attention where images are smallest
        layout |= block_types([level == levels - 1 for level in range(levels)], resample)
    return layout


def _refuse_other_blocks(config: TrainingConfig, layout: dict[str, Any], resample: str):
    """Raise ValueError for blocks that `block_types` does not give, as it would replace them."""
    defaults = inspect.signature(UNet2DModel).parameters
    kinds = {kind for key in ("down_block_types", "up_block_types") for kind in layout.get(key, defaults[key].default)}
    kinds -= {"AttnDownBlock2D", "AttnUpBlock2D", *BLOCKS[resample]}
    up = layout.get("upsample_type") or "conv"
    if kinds or up != resample:
        found = f"blocks of other types ({', '.join(sorted(kinds))})" if kinds else f"upsample_type {up}"
        raise ValueError(
            f"network {config.network} has {found} beside downsample_type {resample}, which other levels, or "
            "attention_levels, would replace; allowed: change the file"
        )


def _check(config: TrainingConfig, layout: dict[str, Any]):
    """Raise ValueError where the network could not take a batch; nothing is computed."""
    size, channels = config.resolution, (layout["in_channels"], layout["out_channels"])
    if channels not in ((1, 1), (3, 3)):
        raise ValueError(
            f"network {config.network} has in_channels and out_channels {channels}; allowed: both 1 or both 3"
        )
    factor = 2 ** (len(layout.get("block_out_channels", range(4))) - 1)
    if layout.get("class_embed_type") is not None:
        raise ValueError(f"network {config.network} has class_embed_type {layout['class_embed_type']}; allowed: null")
    if layout.get("num_class_embeds") is not None and not config.class_conditional:
        raise ValueError(f"network {config.network} has num_class_embeds; allowed: null, or with class_conditional")
    if size % factor:
        raise ValueError(f"resolution is {size}; allowed with {config.network}: multiples of {factor}")
    groups = layout.get("norm_num_groups", 32)
    if any(count % groups for count in layout.get("block_out_channels", ())):
        raise ValueError(
            f"block_out_channels is {','.join(map(str, layout['block_out_channels']))}; allowed with "
            f"{config.network}: multiples of {groups} (norm_num_groups)"
        )
    try:
        with torch.device("meta"):
            unet = UNet2DModel(**layout)
            x_t = torch.zeros(1, channels[0], size, size)
            shape = unet(x_t, torch.zeros(1), null_labels(unet, 1)).sample.shape
    except Exception as error:  # of whatever layer does not fit
        reason = " ".join(str(error).split())
        raise ValueError(f"network {config.network} does not work at {size} x {size} pixels: {reason}") from error
    if shape[1:] != (channels[0], size, size):
        raise ValueError(f"network {config.network} does not keep {size} x {size} pixels")
