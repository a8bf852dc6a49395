"""Denoising Diffusion Implicit Models (Song, Meng, Ermon 2020) for Hugging Face diffusers."""

from . import broken_torchvision  # noqa: F401, I001  before diffusers
from .images import image_grid, states_to_images
from .pipeline_ddim_custom import DDIMCustomPipeline, slerp
from .pipeline_output import DDIMInversionOutput, DDIMPipelineOutput, DDIMReconstructionOutput
from .scheduling_ddim_custom import DDIMSchedulerCustom
from .unet import UNET_CONFIGS, build_unet

__version__ = "0.2.0"

__all__ = [
    "UNET_CONFIGS",
    "DDIMCustomPipeline",
    "DDIMInversionOutput",
    "DDIMPipelineOutput",
    "DDIMReconstructionOutput",
    "DDIMSchedulerCustom",
    "build_unet",
    "image_grid",
    "slerp",
    "states_to_images",
]
