"""The networks: one row of data each, all of them diffusers' UNet2DModel."""

import hashlib
import inspect
from typing import Any

import torch
from diffusers import UNet2DModel

# The network of DDPM (Ho et al. 2020), which the DDIM paper samples from, in the layout of google/ddpm-cifar10-32.
_DDPM = dict(norm_eps=1e-6, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, attention_head_dim=None)
_RGB = dict(in_channels=3, out_channels=3, norm_num_groups=32, **_DDPM)
_SMALL = dict(in_channels=3, out_channels=3, norm_num_groups=8, **_DDPM)
_NARROW = _SMALL | dict(norm_num_groups=4)
_GREY = dict(in_channels=1, out_channels=1, norm_num_groups=8, **_DDPM)


BLOCKS = {
    "conv": ("DownBlock2D", "UpBlock2D"),
    "resnet": ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"),
}


def _levels(
    channels: int, multiples: tuple[int, ...], layers: int, attention: int, resample: str = "conv"
) -> dict[str, Any]:
    """Blocks of a U-Net with `layers` ResNet blocks a level and self-attention at level `attention`, down and up."""
    return dict(
        layers_per_block=layers,
        block_out_channels=tuple(channels * multiple for multiple in multiples),
        **block_types([level == attention for level in range(len(multiples))], resample),
    )


def block_types(attends: list[bool], resample: str = "conv") -> dict[str, Any]:
    """UNet2DModel's config keys for blocks with self-attention at the levels that say so, down and up.

    Sizes change by a convolution, or by a ResNet block ("resnet"), past which the mean of 2 x 2 pixels goes down as it
    is, and a pixel up as 2 x 2 of its kind.
    """
    down, up = BLOCKS[resample]
    return dict(
        down_block_types=tuple("AttnDownBlock2D" if here else down for here in attends),
        up_block_types=tuple("AttnUpBlock2D" if here else up for here in reversed(attends)),
        downsample_type=resample,
        upsample_type=resample,
    )


# fmt: off
UNET_CONFIGS: dict[str, dict[str, Any]] = {
    "digits":       dict(sample_size=8,   dropout=0.0, **_GREY, **_levels(32,  (1, 2),             1, 1)),
    "images-32":    dict(sample_size=32,  dropout=0.0, **_SMALL, **_levels(16, (1, 2, 4, 8),       1, 2, "resnet")),
    "images-64":    dict(sample_size=64,  dropout=0.0, **_SMALL, **_levels(16, (1, 1, 2, 4, 8),    1, 3, "resnet")),
    "images-128":   dict(sample_size=128, dropout=0.0, **_NARROW, **_levels(8, (1, 1, 2, 4, 8, 16), 1, 4, "resnet")),
    "cifar10-64":   dict(sample_size=32,  dropout=0.1, **_RGB,  **_levels(64,  (1, 2, 2, 2),       2, 1)),
    "cifar10-128":  dict(sample_size=32,  dropout=0.1, **_RGB,  **_levels(128, (1, 2, 2, 2),       2, 1)),
    "celebahq-256": dict(sample_size=256, dropout=0.0, **_RGB,  **_levels(128, (1, 1, 2, 2, 4, 4), 2, 4)),
}
# fmt: on


def build_unet(name: str, **overrides: Any) -> UNet2DModel:
    """Return a new `UNet2DModel` with random weights, from the row `name` of UNET_CONFIGS.

    Args:
        name: a row of UNET_CONFIGS, such as "images-32" or "cifar10-64".
        overrides: config keys of UNet2DModel that replace the row's.

    Raises:
        ValueError: an unknown name, or a key that UNet2DModel does not have.
    """
    if name not in UNET_CONFIGS:
        raise ValueError(f"no network {name!r}; allowed: {', '.join(UNET_CONFIGS)}")
    unknown = set(overrides) - set(inspect.signature(UNet2DModel).parameters)
    if unknown:
        raise ValueError(f"UNet2DModel has no config key {', '.join(map(repr, sorted(unknown)))}")
    return UNet2DModel(**{**UNET_CONFIGS[name], **overrides})


def weights_hash(unet: torch.nn.Module) -> str:
    """SHA-256 over the names and values of a network's weights, in hex; the same wherever and however it is kept."""
    digest = hashlib.sha256()
    for name, value in sorted(unet.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_mark(unet: torch.nn.Module) -> tuple[list, list]:
    """Return what changes when a network's weights are trained or replaced, and takes a thousandth of their hash.

    It is how often each has been changed in place, which an assignment to `.data` does not count, and its first value.
    """
    weights = [value.detach() for value in unet.state_dict().values()]
    counts = [None if value.is_inference() else value._version for value in weights]
    return counts, torch.stack([value[(0,) * value.ndim].float() for value in weights]).tolist()
