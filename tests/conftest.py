"""Every test talks to a Hub on this machine, never to the real one: huggingface_hub reads the address once."""

import atexit
import os
import shutil
import socket
import sys
import tempfile

import pytest
from hub_server import HubServer

HUB, HOME = HubServer(), tempfile.mkdtemp(prefix="ddim_hf_tests_")
HUB.start()
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ.update(
    HF_ENDPOINT=HUB.endpoint,
    HF_HOME=HOME,  # no token of the user's, no cache of the user's
    HF_HUB_DISABLE_XET="1",  # the server speaks LFS
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
)
for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
    os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def no_precision_left():
    """accelerate holds a process to the precision of its first Accelerator: no test's counts for the next."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state()


@pytest.fixture
def hub(monkeypatch):
    """The Hub, empty, with an empty cache before it; whoever waits before asking it again does not wait."""
    HUB.reset()
    shutil.rmtree(os.path.join(HOME, "hub"), ignore_errors=True)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return HUB


@pytest.fixture
def own_caches(tmp_path, monkeypatch):
    """Decoded images and prepared datasets lie in this test's folder."""
    import datasets

    monkeypatch.setenv("DDIM_HF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def no_network(monkeypatch):
    """Whatever asks for an address, or connects, fails."""

    def refuse(*args, **kwargs):
        raise OSError("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def tiny_unet(**overrides):
    """A UNet of channels 4 and 8 over 8x8 grey images; the same weights each time."""
    import torch
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    size = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (4, 8)}
    return UNet2DModel(**{**blocks, **size, **overrides}, layers_per_block=1, norm_num_groups=2)


@pytest.fixture(scope="module")
def pipe():
    from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom

    pipe = DDIMCustomPipeline(tiny_unet(), DDIMSchedulerCustom(skip_type="quad", beta_end=0.03))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def run(pipe, tmp_path):
    """A finished run's folder, with all that must not leave this machine."""
    folder = tmp_path / "run"
    pipe.save_pretrained(folder)
    (folder / "samples.png").write_bytes(b"\x89PNG not looked into")
    for name in ("checkpoint-10/optimizer.bin", "checkpoint-10/unet/diffusion_pytorch_model.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"secret")
    for name in ("logs/events.out", "unet/diffusion_pytorch_model.bin", "optimizer.pt", "notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"secret")
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with feature extractors and a tiny model to evaluate."""
    from evaluation_files import save_files

    return save_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with two folders of images, `a` and `b`."""
    from evaluation_files import save_folders

    return save_folders(tmp_path_factory.mktemp("folders"))
