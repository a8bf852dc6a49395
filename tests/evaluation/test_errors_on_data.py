"""Errors on data: of the predicted noise, and of encoding followed by sampling."""

import pytest

from ddim_hf import DDIMCustomPipeline
from ddim_hf.data import load_images
from ddim_hf.evaluation.errors import denoising_loss, reconstruction_error


def test_the_denoising_loss_of_no_prediction_is_one(files):
    """A network that predicts no noise has loss 1, in every range of timesteps, and the batch size changes nothing."""
    pipe = DDIMCustomPipeline.from_pretrained(files / "tiny")
    images = load_images("digits", split="train", resolution=8, channels=1)
    loss = denoising_loss(pipe, images, num_images=30, seed=1, max_batch_size=7)[0]
    assert denoising_loss(pipe, images, num_images=30, seed=1, max_batch_size=30)[0] == pytest.approx(loss, rel=1e-5)
    assert denoising_loss(pipe, images, num_images=30, seed=2)[0] != pytest.approx(loss, rel=1e-5)
    for parameter in pipe.unet.conv_out.parameters():
        parameter.data.zero_()
    loss, ranges = denoising_loss(pipe, images, seed=0)
    assert loss == pytest.approx(1, abs=0.02) and len(ranges) == 10
    assert all(value == pytest.approx(1, abs=0.05) for *_, value in ranges)
    assert [edges[:2] for edges in ranges][::9] == [[0, 99], [900, 999]]


def test_the_reconstruction_error_is_the_mean_over_images(files):
    """The reconstruction error is the mean of what `reconstruct` reports, whatever the batch size."""
    pipe = DDIMCustomPipeline.from_pretrained(files / "tiny")
    images = load_images("digits", split="test", resolution=8, channels=1)
    expected = pipe.reconstruct(images[:10], 4).mse.mean().item()
    assert reconstruction_error(pipe, images, 4, num_images=10, max_batch_size=4) == pytest.approx(expected, rel=1e-4)
