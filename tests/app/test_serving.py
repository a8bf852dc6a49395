"""The page as it is served to browsers: what a visitor is shown, and that it is what the page says."""

import os
import re
import signal
import subprocess
import sys
import time

import gradio_client
import pytest
from conftest import tiny_unet
from page_visitor import Visitor

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom
from ddim_hf.app.page import build_page

FOLDER = "Folder,_or_id_on_the_Hub"


@pytest.fixture
def models(pipe, tmp_path):
    """A folder with two models, own and other."""
    pipe.save_pretrained(tmp_path / "own")
    DDIMCustomPipeline(tiny_unet(sample_size=16), DDIMSchedulerCustom()).save_pretrained(tmp_path / "other")
    return tmp_path


@pytest.fixture
def address(models):
    """The page of `own`, that lets visitors name others, and remembers one visitor alone."""
    blocks = build_page(str(models / "own"), allow_models=True)
    yield blocks.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False, state_session_capacity=1)[1]
    blocks.close(verbose=False)


def test_the_pictures_are_of_the_model_that_the_heading_names(address, models):
    """A visitor whom the server has forgotten, as others came, still samples from the model that was chosen."""
    visitor = Visitor(address)
    visitor.set(**{FOLDER: str(models / "other")}, Images=1, Steps=1)
    visitor.press("Load")
    assert f"The model <b>{models / 'other'}</b> makes grey images of 16 × 16" in visitor.shown
    Visitor(address), Visitor(address)
    visitor.press("Generate")
    assert f"load_pipeline('{models / 'other'}'" in visitor.shown


def test_load_means_load(address, models):
    """A model that was saved over since it was loaded is shown as it is now, the page's own too."""
    visitor = Visitor(address)
    for name, size in (("own", 16), ("other", 16), ("own", 8), ("other", 8)):
        DDIMCustomPipeline(tiny_unet(sample_size=size), DDIMSchedulerCustom()).save_pretrained(models / name)
        visitor.set(**{FOLDER: str(models / name)})
        visitor.press("Load")
        assert f"{name}</b> makes grey images of {size} × {size}" in visitor.shown


def test_no_result_outlives_its_request(address, models):
    """Where a request fails halfway, and where another model is loaded, downloads, link and Python of before go."""
    unet = tiny_unet(num_class_embeds=3)
    unet.class_embedding.weight.data[1] = float("nan")
    DDIMCustomPipeline(unet, DDIMSchedulerCustom(), id2label={0: "good", 1: "bad"}).save_pretrained(models / "other")
    visitor, of_a_result = Visitor(address), ('download="ddim-seed11', "&seed=11", "seeds=range(11, 12)")
    for last in ("Generate", "Load"):
        visitor.set(**{FOLDER: str(models / "other")})
        visitor.press("Load")
        visitor.set(Class="good", Images=1, First_seed=11, Steps=2)
        visitor.press("Generate")
        assert all(text in visitor.shown for text in of_a_result)
        visitor.set(**{FOLDER: str(models / "own"), "Class": "bad"})
        visitor.press(last)
        assert not any(text in visitor.shown for text in of_a_result)
    assert "seed 11" not in visitor.shown and "Press Generate" in visitor.shown


def test_a_link_to_what_the_model_has_not_is_refused(address):
    """A link to a schedule that the model has not gets a sentence, and no other is taken in its place."""
    (error,) = Visitor(address, "?tau=calibrated&steps=7&seed=0").errors
    assert "no calibrated schedule for 7 steps" in error


def test_ctrl_c_ends_the_page_while_a_request_runs(tmp_path):
    """The server's process ends after the pass that is under way, which minutes of others were to follow."""
    unet = tiny_unet(sample_size=128, block_out_channels=(16, 16))
    DDIMCustomPipeline(unet, DDIMSchedulerCustom()).save_pretrained(tmp_path / "slow")
    command = [sys.executable, "-m", "ddim_hf.app", str(tmp_path / "slow")]
    with subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            address = re.search(r"shown at (http://[\d.:]+)", server.stdout.readline())[1]
            client = gradio_client.Client(address, verbose=False)
            job = client.submit(num_images=2, steps=1000, api_name="/images")
            while job.status().code.name != "PROCESSING":
                time.sleep(0.05)
            server.send_signal(signal.SIGINT)
            said, errors = server.communicate(timeout=30)
        finally:
            server.kill()
    assert server.returncode == 0 and "closed" in said and "Traceback" not in errors
