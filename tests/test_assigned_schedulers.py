"""Schedulers of diffusers assigned to `pipe.scheduler`: those that docs/api.md lists work, others are refused."""

import json
import re
import threading

import diffusers
import pytest
import torch
from conftest import tiny_unet
from diffusers import DDIMPipeline, DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from training_runs import ROOT

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom

BETAS = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
S_DATA = 0.5
SECTION = (ROOT / "docs/api.md").read_text().partition("### Schedulers that can be assigned")[2].partition("\n## ")[0]
LISTED = re.findall(r"`(\w+Scheduler)`", SECTION)
DRAW_NOISE = re.compile("DDPM|Ancestral|SDE|SASolver|LCM")


def assigned(name: str):
    return getattr(diffusers, name).from_config(BETAS)


class GaussianNetwork(ModelMixin, ConfigMixin):
    """What a perfect training on independent N(0, s^2) pixels would give, between timesteps too."""

    @register_to_config
    def __init__(self, sample_size: int = 4, in_channels: int = 1):
        super().__init__()
        self.register_buffer("log_alpha", DDIMSchedulerCustom().alphas_cumprod.log())
        self.s = torch.nn.Parameter(torch.tensor(S_DATA))

    def forward(self, x, timestep):
        below = int(min(max(float(timestep), 0), 998))
        a = torch.lerp(*self.log_alpha[below : below + 2], float(timestep) - below).exp().clamp(1e-6, 1 - 1e-6)
        x0 = a.sqrt() * self.s**2 / (a * self.s**2 + 1 - a) * x
        return UNet2DOutput(sample=(x - a.sqrt() * x0) / (1 - a).sqrt())


def quiet(network) -> DDIMCustomPipeline:
    pipe = DDIMCustomPipeline(network, DDIMSchedulerCustom(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe():
    return quiet(tiny_unet())


def test_the_list_is_there():
    """docs/api.md lists schedulers, DDIM's, Euler's and DPM-Solver's among them."""
    assert {"DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"} <= set(LISTED)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the schedulers
@pytest.mark.parametrize("name", LISTED)
def test_a_listed_scheduler_reaches_the_data(name):
    """With a perfect network for Gaussian data each brings noise to the data's deviation, within 15%."""
    pipe = quiet(GaussianNetwork())
    pipe.scheduler = assigned(name)
    if "clip_sample" in pipe.scheduler.config:
        pipe.scheduler.register_to_config(clip_sample=False)
    count, steps = (16, 20) if "SDE" in name else (64, 100)  # its Brownian trees are slow
    images = pipe(count, seeds=range(count), num_inference_steps=steps, output_type="latent").images
    assert images.std().item() == pytest.approx(S_DATA, rel=0.15)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", [*LISTED, "LCMScheduler", "TCDScheduler"])
def test_every_method_works_with_a_listed_scheduler(pipe, name, tmp_path):
    """Sampling in chunks and recorded, from noise of the scheduler's own scale, is seeded; a strip ends at its seeds'
    images; encoding is refused in one line; the saved pipeline is stock's."""
    pipe.scheduler = assigned(name)
    state = dict(vars(pipe.scheduler))
    run = dict(num_inference_steps=4, output_type="latent")
    output = pipe(3, seeds=[1, 2, 3], max_batch_size=2, return_trajectory=True, **run)
    assert output.images.shape == (3, 1, 8, 8) and output.images.isfinite().all()
    assert len(output.trajectory) == len(output.timesteps) + 1 == len(output.pred_original_samples) + 1
    for number, seed in enumerate((1, 2, 3)):
        assert torch.allclose(pipe(seeds=[seed], **run).images[0], output.images[number], atol=1e-4)
    assert not torch.allclose(output.images[0], output.images[1], atol=1e-2)
    schedule = assigned(name)
    schedule.set_timesteps(4)
    noise = torch.cat([torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2, 3)])
    assert torch.allclose(output.trajectory[0], noise * schedule.init_noise_sigma)
    if not DRAW_NOISE.search(name):
        assert torch.allclose(pipe(3, latents=noise, **run).images, output.images, atol=1e-4)
        strip = pipe.interpolate(1, 3, num_images=3, **run).images
        assert torch.allclose(strip[[0, 2]], output.images[[0, 2]], atol=1e-4)
    assert pipe.interpolate(noise[0], noise[1], num_images=2, **run).images.isfinite().all()
    for encode in (pipe.invert, pipe.reconstruct):
        with pytest.raises(ValueError, match=rf"encoding with {name}; allowed: DDIMSchedulerCustom"):
            encode(torch.zeros(1, 1, 8, 8))
    assert vars(pipe.scheduler) == state  # no call left anything on it
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "DDIMPipeline"
    assert type(DiffusionPipeline.from_pretrained(tmp_path)) is DDIMPipeline


def test_a_saved_scheduler_is_named_by_its_class(pipe, tmp_path):
    """save_scheduler, into the folder of a model that had ours, leaves a folder that loads with the same betas."""
    pipe.save_pretrained(tmp_path)
    pipe.scheduler = diffusers.DDPMScheduler(beta_schedule="sigmoid")  # which DDIMScheduler does not know
    pipe.save_scheduler(tmp_path)
    loaded = DDIMCustomPipeline.from_pretrained(tmp_path).scheduler
    assert torch.allclose(loaded.alphas_cumprod, pipe.scheduler.alphas_cumprod, rtol=1e-4)


def test_noise_of_a_scheduler_without_generator_is_seeded(pipe):
    """DPMSolverSDEScheduler, whose step takes no generator, gives the image of a seed or of a generator again."""
    pipe.scheduler = assigned("DPMSolverSDEScheduler")
    run = dict(num_inference_steps=4, output_type="latent")
    latents = torch.ones(2, 1, 8, 8)
    images = [pipe(2, seeds=[1, seed], latents=latents, **run).images for seed in (2, 2, 3)]
    assert torch.equal(images[0], images[1]) and torch.equal(images[0][0], images[2][0])
    assert not torch.allclose(images[0][1], images[2][1], atol=1e-3)
    drawn = [pipe(2, torch.Generator().manual_seed(seed), latents=latents, **run).images for seed in (4, 4, 5)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


REFUSED = {
    "FlowMatchEulerDiscreteScheduler": "its process is not that of a network trained on betas",
    "FlowMatchHeunDiscreteScheduler": "its process is not",
    "EDMEulerScheduler": "its process is not",
    "EDMDPMSolverMultistepScheduler": "its process is not",
    "KarrasVeScheduler": "its process is not",
    "ScoreSdeVeScheduler": "its process is not",
    "CMStochasticIterativeScheduler": "its process is not",
    "IPNDMScheduler": "its process is not",
    "RePaintScheduler": "its step needs mask, original_image too",
    "DDIMInverseScheduler": "it goes from data to noise",
    "DPMSolverMultistepInverseScheduler": "it goes from data to noise",
}


def test_a_learned_variance_is_refused(pipe):
    """A scheduler that waits for the network's variance, which the pipeline takes off, is refused in one line."""
    pipe.scheduler = diffusers.DDPMScheduler(variance_type="learned_range")
    with pytest.raises(ValueError, match="its variance_type is learned_range, .*; allowed: those"):
        pipe(num_inference_steps=3)


@pytest.mark.parametrize("name", REFUSED)
def test_a_scheduler_that_cannot_work_is_refused(pipe, name):
    """Every method raises ValueError in one line that names the scheduler and says why."""
    pipe.scheduler = getattr(diffusers, name)()
    message = f"the scheduler is {name}: {REFUSED[name]}.*; allowed: those that docs/api.md lists"
    for call in (pipe, pipe.check_sampling, lambda: pipe.interpolate(0, 1)):
        with pytest.raises(ValueError, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("PNDMScheduler", dict(num_inference_steps=3), "num_inference_steps is 3; PNDMScheduler says: operands"),
        ("PNDMScheduler", dict(timesteps=[3, 2, 1]), "PNDMScheduler takes no timesteps; allowed: num_inference_steps"),
        ("DDPMScheduler", dict(eta=0.5), "eta is 0.5; allowed with DDPMScheduler, whose step takes none: 0.0"),
        ("EulerDiscreteScheduler", dict(use_clipped_model_output=True), "is True; allowed with Euler.*: False"),
        ("EulerDiscreteScheduler", dict(clip_sample=True), "clip_sample is True; allowed with EulerDiscreteScheduler"),
        ("EulerDiscreteScheduler", dict(timesteps=[10, 500, 900]), r"allowed: strictly decreasing ints in \[0, 1000"),
        ("DPMSolverMultistepScheduler", dict(timesteps=[900, 100.5]), "allowed: strictly decreasing ints"),
        ("HeunDiscreteScheduler", dict(timesteps=[1500, 20]), "from 1500 to 20; allowed: ints in"),
        ("UniPCMultistepScheduler", dict(num_inference_steps=0), "num_inference_steps is 0; allowed: whole numbers"),
    ],
)
def test_what_a_scheduler_would_not_heed_is_refused(pipe, name, arguments, message):
    """An argument that the assigned scheduler has no use for raises ValueError in one line, and is not dropped."""
    pipe.scheduler = assigned(name)
    with pytest.raises(ValueError, match=message) as raised:
        pipe(**arguments)
    assert "\n" not in str(raised.value)


def test_thresholding_is_turned_off_too(pipe):
    """clip_sample=False turns off an assigned scheduler's thresholding, where it has no clipping of its own."""
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler(thresholding=True)
    run = dict(num_inference_steps=3, seeds=[0], output_type="latent")
    bounded, free = pipe(**run).images, pipe(clip_sample=False, **run).images
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler()
    assert torch.equal(free, pipe(**run).images) and not torch.equal(free, bounded)


@pytest.mark.parametrize("name", [None, "DPMSolverMultistepScheduler"])
def test_calls_do_not_disturb_each_other(pipe, name):
    """A call from the callback of another, or from another thread, with other steps leaves both images as they are,
    and the schedule on pipe.scheduler too."""
    if name:
        pipe.scheduler = assigned(name)
    pipe.scheduler.set_timesteps(7)
    run = dict(seeds=[1], output_type="latent")
    alone = {steps: pipe(num_inference_steps=steps, **run).images for steps in (4, 6)}
    inner = []

    def another():
        inner.append(pipe(num_inference_steps=6, clip_sample=None if name else False, **run).images)

    def nested(*step):
        another()

    def beside(*step):
        thread = threading.Thread(target=another)
        thread.start()
        thread.join()

    for callback in (nested, beside):
        outer = pipe(num_inference_steps=4, callback_on_step_end=callback, **run).images
        assert torch.equal(outer, alone[4])
    assert len(inner) == 8 and all(torch.equal(image, alone[6]) for image in inner)
    assert len(pipe.scheduler.timesteps) == 7
