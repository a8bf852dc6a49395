"""Models for the Hub's tests: what a folder holds, and what a model that was loaded makes."""

import hashlib
from pathlib import Path

import torch
from conftest import tiny_unet
from diffusers import DDPMPipeline, DDPMScheduler

WRITER = "hf_writer"
MODEL = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
}


def images(pipe, **kwargs):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    return pipe(batch_size=2, num_inference_steps=4, generator=generator, output_type="np", **kwargs).images


def digest(folder):
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def published(folder, names=None):
    """What a folder holds, as a repo's files."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def one_line(caught, *words):
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def stock_folder(folder, **save):
    DDPMPipeline(tiny_unet(), DDPMScheduler(beta_end=0.03)).save_pretrained(folder, **save)
    return folder
