"""What the methods of DDIMCustomPipeline return."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from diffusers import ImagePipelineOutput
from diffusers.utils import BaseOutput
from PIL import Image


def in_one_line(output: BaseOutput) -> str:
    """An output's fields as what they are, without their numbers."""
    present = {field.name: getattr(output, field.name) for field in fields(output)}
    shown = (f"{name}={_in_words(value)}" for name, value in present.items() if value is not None)
    return f"{type(output).__name__}({', '.join(shown)})"


def _in_words(value: Any) -> str:
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"{type(value).__name__} {list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Image.Image):
        return f"{value.mode} image of {value.width} x {value.height}"
    if isinstance(value, list):
        return f"{len(value)} x {_in_words(value[0])}" if value else "[]"
    return repr(value)


@dataclass
class DDIMPipelineOutput(ImagePipelineOutput):
    """What sampling returns.

    Args:
        images: list of PIL images, array [N, H, W, C] in [0, 1] ("np"), tensor [N, C, H, W] in [0, 1] ("pt") or the
            states x_0 themselves ("latent").
        trajectory: with return_trajectory, the S + 1 states from x_T to x_0, each [N, C, H, W].
        pred_original_samples: with return_trajectory, the S predictions of x_0, each [N, C, H, W].
        timesteps: with return_trajectory, the S timesteps that were visited, in order.
        calibrated: whether a fitted schedule was sampled by, rather than plain steps; not part of the tuple.
    """

    trajectory: list[torch.Tensor] | None = None
    pred_original_samples: list[torch.Tensor] | None = None
    timesteps: list[float] | None = None
    calibrated: bool = False

    __repr__ = in_one_line

    def to_tuple(self) -> tuple:
        return tuple(self[key] for key in self.keys() if key != "calibrated")


@dataclass
class DDIMInversionOutput(BaseOutput):
    """What encoding returns.

    Args:
        latents: x_T, [N, C, H, W].
        residual: the worst change of any value in the last iteration of any step (exact inversion), else None.
        trajectory: with return_trajectory, the S + 1 states from x_0 to x_T.
    """

    latents: torch.Tensor
    residual: float | None = None
    trajectory: list[torch.Tensor] | None = None

    __repr__ = in_one_line


@dataclass
class DDIMReconstructionOutput(BaseOutput):
    """What encoding followed by sampling returns.

    Args:
        images: the reconstructions, as in `DDIMPipelineOutput`.
        mse: mean squared error of each image per dimension, pixels in [0, 1] (the paper's table 2), float tensor [N].
        latents: x_T, [N, C, H, W].
        residual: as in `DDIMInversionOutput`.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    mse: torch.Tensor
    latents: torch.Tensor
    residual: float | None = None

    __repr__ = in_one_line
