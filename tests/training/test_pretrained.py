"""What a run may start from: which noise schedule a model brings, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_unet
from diffusers import UNet2DModel
from image_files import write_folder
from training_runs import config, save_tiny_model, weights

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom
from ddim_hf.training import train
from ddim_hf.training.setup import build_model, describe_model, describe_split


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Classes a and b, v, and another noise schedule than the default."""
    place = tmp_path_factory.mktemp("models") / "tiny"
    schedule = dict(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2")
    return save_tiny_model(place, names="ab", **schedule)


def refused(message, pretrained, kind=ValueError, **settings):
    """Where the run is set up and by a dry run's way, in one line."""
    for build in (build_model, describe_model):
        with pytest.raises(kind, match=message) as caught:
            build(config(str(pretrained), "run", **settings))
        assert "\n" not in str(caught.value)


def test_a_network_alone_has_the_schedule_of_the_model_around_it(model, tmp_path):
    """--pretrained MODEL/unet is trained as MODEL is, classes and all; a network that lies elsewhere does not say what
    it predicts, and is refused without --prediction_type."""
    for build in (build_model, describe_model):
        _, scheduler, names = build(config(f"{model}/unet", tmp_path, class_conditional=True))
        assert scheduler.config.prediction_type == "v_prediction"
        assert scheduler.config.beta_schedule == "squaredcos_cap_v2"
        assert names == ["a", "b"]
    alone = shutil.copytree(f"{model}/unet", tmp_path / "alone")
    refused("is a network alone, .*; allowed: with --prediction_type", alone, class_conditional=True)
    settings = dict(class_conditional=True, prediction_type="sample")
    assert build_model(config(str(alone), tmp_path, **settings))[1].config.prediction_type == "sample"


def test_pickles_of_a_network_alone_are_refused(tmp_path):
    """Weights that could run code are refused here too."""
    tiny_unet().save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(OSError, match="safetensors"):
        build_model(config(str(tmp_path), tmp_path, prediction_type="epsilon"))


def test_a_run_that_has_not_ended_is_no_network(tmp_path):
    """Of such a run's folder the newest checkpoint is named, where there is one."""
    (tmp_path / "config.json").write_text(json.dumps({"output_dir": "run"}))
    refused("is of a run that has not ended; allowed: its result, when it has one", tmp_path)
    for step in (6, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    refused("run that has not ended; allowed: its newest checkpoint, .*/checkpoint-12$", tmp_path)


def test_networks_that_do_not_fit_are_refused(tmp_path):
    """Other channels than an image's and its noise's, and a size that is no square, are refused; two equal numbers are
    a square."""
    for channels in ((3, 6), (3, 1), (2, 2)):
        unet = UNet2DModel.from_config(tiny_unet().config, in_channels=channels[0], out_channels=channels[1])
        DDIMCustomPipeline(unet, DDIMSchedulerCustom()).save_pretrained(tmp_path / "model")
        message = rf"has in_channels and out_channels \({channels[0]}, {channels[1]}\); allowed: both 1 or both 3"
        refused(message, tmp_path / "model")
    for size in ([8, 16], [8, 8]):
        unet = tiny_unet()
        unet.register_to_config(sample_size=size)
        DDIMCustomPipeline(unet, DDIMSchedulerCustom()).save_pretrained(tmp_path / "model")
        if size == [8, 16]:
            refused(r"has sample_size \[8, 16\]; allowed: that of a square", tmp_path / "model")
    assert build_model(config(str(tmp_path / "model"), tmp_path))[0].config.sample_size == [8, 8]
    folder = train(config(str(tmp_path / "model"), tmp_path / "run", max_train_steps=1, samplers="2:0:1:2"))
    assert Path(folder / "samples.png").is_file() and weights(folder)


def test_a_noise_schedule_that_is_asked_for_is_had(tmp_path):
    """--beta_schedule replaces betas that a model lists one by one."""
    model = save_tiny_model(tmp_path / "model", trained_betas=np.linspace(1e-4, 0.02, 1000).tolist())
    _, scheduler, _ = build_model(config(model, tmp_path, beta_schedule="squaredcos_cap_v2"))
    wanted = DDIMSchedulerCustom(beta_schedule="squaredcos_cap_v2").alphas_cumprod
    assert torch.equal(scheduler.alphas_cumprod, wanted)
    assert not torch.equal(build_model(config(model, tmp_path))[1].alphas_cumprod, wanted)


def test_grey_is_for_a_network_of_one_channel(tmp_path):
    """--grey with a network for colour, which would train on colour as before, is refused."""
    place = str(write_folder(tmp_path / "images"))
    settings = config(None, tmp_path, dataset_name=place, grey=True)
    with pytest.raises(ValueError, match="grey is given with network images-32, which has three channels; allowed"):
        describe_split(settings, "train", 3)
    assert describe_split(settings, "train", 1).num_images == 5
