"""Denoising Diffusion Implicit Models (Song, Meng, Ermon 2020) for Hugging Face diffusers."""

from . import broken_torchvision  # noqa: F401, I001  before diffusers
from .pipeline_ddim_custom import DDIMCustomPipeline, slerp
from .pipeline_output import DDIMInversionOutput, DDIMPipelineOutput, DDIMReconstructionOutput
from .scheduling_ddim_custom import DDIMSchedulerCustom
from .unet import UNET_CONFIGS, build_unet

__all__ = [
    "UNET_CONFIGS",
    "DDIMCustomPipeline",
    "DDIMInversionOutput",
    "DDIMPipelineOutput",
    "DDIMReconstructionOutput",
    "DDIMSchedulerCustom",
    "build_unet",
    "slerp",
]
