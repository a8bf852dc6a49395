"""What the methods return, as it is shown."""

from configparser import ConfigParser

import torch
from training_runs import ROOT

import ddim_hf


def test_an_output_is_shown_in_one_line(pipe):
    """The repr of each output names its fields, their kinds and shapes, and no pixel."""
    images = torch.rand(2, 1, 8, 8)
    sampled, states = pipe(2, num_inference_steps=3), pipe(1, num_inference_steps=3, return_trajectory=True)
    assert repr(sampled) == "DDIMPipelineOutput(images=2 x L image of 8 x 8, calibrated=False)"
    assert "trajectory=4 x Tensor [1, 1, 8, 8] float32" in repr(states)
    assert repr(pipe.invert(images, 3)) == "DDIMInversionOutput(latents=Tensor [2, 1, 8, 8] float32)"
    rebuilt = repr(pipe.reconstruct(images, 3, output_type="np"))
    assert rebuilt.startswith("DDIMReconstructionOutput(images=ndarray [2, 8, 8, 1] float32, mse=Tensor [2]")
    assert all("\n" not in text for text in (repr(states), rebuilt))


def test_pictures_are_made_with_public_names(pipe):
    """The package itself has what a callback needs to show its states."""
    grid = ddim_hf.image_grid(ddim_hf.states_to_images(torch.zeros(4, 1, 8, 8), "pil"))
    assert grid.size == (2 * 52, 2 * 52)


def test_the_version_is_that_of_the_package():
    """ddim_hf.__version__ is the version that is installed."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert ddim_hf.__version__ == setup["metadata"]["version"]
