"""Encoding, reconstruction, interpolation and the noise of eta, held against Gaussian data, where all is known."""

import copy
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from PIL import Image

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom, build_unet, slerp
from ddim_hf.inversion import solve_fixed_point

S_DATA = 0.5  # standard deviation of the data
STEPS = [10, 20, 40, 80, 160]
HALFWAY = list(range(480, -1, -20))  # beyond it untrained networks magnify rounding errors


class GaussianNetwork(ModelMixin, ConfigMixin):
    """The network that a perfect training on images of independent N(0, s^2) pixels would give."""

    @register_to_config
    def __init__(self, sample_size: int = 4, in_channels: int = 1, prediction_type: str = "epsilon"):
        super().__init__()
        self.register_buffer("alpha", DDIMSchedulerCustom().alphas_cumprod)
        self.s = torch.nn.Parameter(torch.tensor(S_DATA))  # also what tells the pipeline dtype and device

    def forward(self, x, timestep):
        a = self.alpha[timestep]
        x0 = a.sqrt() * self.s**2 / (a * self.s**2 + 1 - a) * x
        epsilon = (x - a.sqrt() * x0) / (1 - a).sqrt()
        v = a.sqrt() * epsilon - (1 - a).sqrt() * x0
        return UNet2DOutput(sample={"epsilon": epsilon, "sample": x0, "v_prediction": v}[self.config.prediction_type])


def gaussian_pipeline(**config) -> DDIMCustomPipeline:
    network = GaussianNetwork(prediction_type=config.get("prediction_type", "epsilon"))
    return quiet(DDIMCustomPipeline(network, DDIMSchedulerCustom(**{"clip_sample": False, **config})))


def quiet(pipe: DDIMCustomPipeline) -> DDIMCustomPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def random_pipeline() -> DDIMCustomPipeline:
    torch.manual_seed(0)
    unet = build_unet("digits", block_out_channels=(8, 8), norm_num_groups=4)
    with torch.no_grad():  # a trained network follows its input smoothly, which random weights of full size do not
        unet.conv_out.weight.mul_(0.1)
    return quiet(DDIMCustomPipeline(unet.eval(), DDIMSchedulerCustom()))


def draw(seed: int, count: int = 8, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def ode_scale(pipe: DDIMCustomPipeline, steps: int) -> float:
    """x_0 / x_T on the ODE's exact solution, from the first timestep of a schedule of `steps`."""
    pipe.scheduler.set_timesteps(steps)
    alpha = pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps[0]].item()
    return S_DATA / math.sqrt(alpha * S_DATA**2 + 1 - alpha)


def rms(x: torch.Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def slope(errors: list[float]) -> float:
    """p where errors fall as 1 / S^p over STEPS."""
    return -np.polyfit(np.log(STEPS), np.log(errors), 1)[0]


def test_sampling_converges_to_the_odes_solution():
    """On Gaussian data the samples approach x_T s / sqrt(alpha s^2 + 1 - alpha) as 1/S."""
    pipe, latents = gaussian_pipeline(), draw(1)
    errors = []
    for steps in STEPS:
        samples = pipe(8, latents=latents, num_inference_steps=steps, output_type="latent").images
        errors.append(rms(samples - latents * ode_scale(pipe, steps)))
    assert slope(errors) == pytest.approx(1, abs=0.1)
    assert errors[-1] < 0.01


def test_inversion_converges_to_the_inverse():
    """On Gaussian data the latents approach the inverse of the ODE's solution as 1/S."""
    pipe, x0 = gaussian_pipeline(), draw(2, scale=S_DATA)
    errors = []
    for steps in STEPS:
        latents = pipe.invert(x0, steps, input_type="latent").latents
        errors.append(rms(latents - x0 / ode_scale(pipe, steps)))
    assert slope(errors) == pytest.approx(1, abs=0.1)
    assert errors[-1] < 0.02


def test_reconstruction_error_falls():
    """The mean squared error of the plain round trip falls at least as 1/S^1.5, at every doubling of S."""
    pipe, x0 = gaussian_pipeline(), draw(3, scale=S_DATA)
    errors = [pipe.reconstruct(x0, steps, input_type="latent").mse.mean().item() for steps in STEPS]
    assert slope(errors) >= 1.5
    assert all(after < before for before, after in zip(errors, errors[1:], strict=False))


@pytest.mark.parametrize("steps", [3, 10, 100])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    "spacing", [{"timestep_spacing": "leading"}, {"timestep_spacing": "trailing"}, {"skip_type": "quad"}]
)
def test_exact_inversion_is_exact(steps, prediction_type, spacing):
    """exact=True returns the states within 1e-4 in float32, for any number of steps, spacing and prediction type."""
    pipe, x0 = gaussian_pipeline(prediction_type=prediction_type, **spacing), draw(4, scale=S_DATA)
    output = pipe.reconstruct(x0, steps, exact=True, input_type="latent", output_type="latent")
    assert (output.images - x0).abs().max() < 1e-4
    assert output.residual <= 1e-5
    assert output.mse.max() < 1e-9


def test_exact_inversion_at_zero_terminal_snr():
    """Where alpha_T is 0, which leaves eps without meaning, v prediction still inverts exactly."""
    config = dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    pipe, x0 = gaussian_pipeline(**config), draw(5, scale=S_DATA)
    pipe.unet.alpha.copy_(pipe.scheduler.alphas_cumprod)
    output = pipe.reconstruct(x0, 10, exact=True, input_type="latent", output_type="latent")
    assert (output.images - x0).abs().max() < 1e-4


def test_fixed_point_of_a_stretching_function():
    """The solver reaches fixed points from which plain iteration runs away, each image on its own."""
    slopes = torch.tensor([0.9, -1.5, 1.5]).view(3, 1, 1, 1)
    solution, residual = solve_fixed_point(lambda x: slopes * (x - 2) + 2, draw(6, count=3), 1e-5, 40)
    assert residual <= 1e-5
    torch.testing.assert_close(solution, torch.full_like(solution, 2.0), atol=1e-4, rtol=0)


def test_a_step_without_a_solution_warns_and_keeps_its_best(random_pipeline, caplog):
    """A step cut off before it converges says which one it was, and the result is no worse than the plain one's."""
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    output = random_pipeline.invert(images, 5, exact=True, max_iterations=1)
    assert output.residual > 1e-5
    assert "step 2 of 5 (timestep 200) did not converge in 1 iterations" in caplog.text
    plain = random_pipeline.reconstruct(images, 5).mse
    cut = random_pipeline.reconstruct(images, 5, exact=True, max_iterations=8, tolerance=1e-9).mse
    assert (cut <= plain).all()


def test_images_round_trip_through_a_unet(random_pipeline):
    """PIL images, uint8 arrays and tensors encode alike, in chunks too, and exact=True gives the same pixels back."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    pil = [Image.fromarray(image[..., 0]) for image in pixels]
    output = random_pipeline.reconstruct(pil, timesteps=HALFWAY, exact=True)
    for image, back in zip(pil, output.images, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(back))
    for same in (pixels, torch.from_numpy(pixels).permute(0, 3, 1, 2), pixels.astype(np.float32) / 255):
        latents = random_pipeline.invert(same, 50, max_batch_size=2).latents
        torch.testing.assert_close(latents, random_pipeline.invert(pil, 50).latents, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_exact_inversion_in_half_precision_converges(random_pipeline, dtype, caplog):
    """In half precision each exact step stops where the dtype resolves no more, in a few iterations and without a
    warning, and the round trip is closer than the plain one."""
    pipe, calls = quiet(DDIMCustomPipeline(copy.deepcopy(random_pipeline.unet), DDIMSchedulerCustom())).to(dtype), []
    pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    schedule = dict(timesteps=HALFWAY[::2], output_type="latent")
    exact = pipe.reconstruct(images, exact=True, **schedule)
    assert exact.latents.dtype == dtype and exact.residual <= 4 * torch.finfo(dtype).eps
    assert "did not converge" not in caplog.text and len(calls) < 10 * len(HALFWAY[::2])
    assert exact.mse.mean() < pipe.reconstruct(images, **schedule).mse.mean()


def test_trajectories(random_pipeline):
    """Both ways the trajectory has S + 1 states; the exact one passes the same states backwards as forwards."""
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    up = random_pipeline.invert(images, timesteps=HALFWAY, exact=True, return_trajectory=True)
    down = random_pipeline(
        2, latents=up.latents, timesteps=HALFWAY, clip_sample=False, output_type="latent", return_trajectory=True
    )
    assert len(up.trajectory) == len(down.trajectory) == 26 and len(down.pred_original_samples) == 25
    assert torch.equal(up.trajectory[-1], up.latents) and torch.equal(down.trajectory[-1], down.images)
    for there, back in zip(up.trajectory, reversed(down.trajectory), strict=True):
        torch.testing.assert_close(there, back, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("eta", "variance"), [(0, "sigma"), (0.5, "sigma"), (1, "sigma"), (1, "sigma_hat")])
def test_noise_of_eta_keeps_the_datas_variance(eta, variance):
    """At S = T every eta gives Gaussian data its variance back, and there sigma and sigma_hat agree."""
    pipe = gaussian_pipeline(variance=variance)
    samples = pipe(2000, torch.Generator().manual_seed(0), eta, 1000, output_type="latent").images
    assert samples.var().item() == pytest.approx(S_DATA**2, rel=0.02)


def test_few_steps_of_sigma_hat_add_more_noise_than_sigma():
    """At S = 20 samples of eta = 1 spread more with sigma_hat than with sigma, as in the paper's table 1."""
    spread = {
        variance: gaussian_pipeline(variance=variance)(
            2000, torch.Generator().manual_seed(0), 1.0, 20, output_type="latent"
        )
        .images.std()
        .item()
        for variance in ("sigma", "sigma_hat")
    }
    assert spread["sigma_hat"] > 1.1 * spread["sigma"]


def test_slerp():
    """Slerp keeps the norm, moves by equal angles, and has the two tensors themselves as its ends."""
    start, end = draw(7, 1), draw(8, 1)
    end *= start.norm() / end.norm()
    path = [slerp(start, end, weight) for weight in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert torch.equal(path[0], start) and torch.equal(path[-1], end)
    gaps = [(b - a).norm().item() for a, b in zip(path, path[1:], strict=False)]
    assert all(point.norm().item() == pytest.approx(start.norm().item(), rel=1e-5) for point in path)
    assert gaps == pytest.approx([gaps[0]] * 4, rel=1e-5)
    torch.testing.assert_close(slerp(start, start, 0.3), start)


def test_interpolation_between_seeds_ends_at_their_images(random_pipeline):
    """The ends of a strip, and the corners of a grid, are the images of their seeds, and of their latents."""
    single = [random_pipeline(seeds=[seed], num_inference_steps=5, output_type="pt").images[0] for seed in range(4)]
    strip = random_pipeline.interpolate(0, np.int64(1), num_images=5, num_inference_steps=5, output_type="pt").images
    grid = random_pipeline.interpolate(*range(4), num_images=3, num_inference_steps=5, output_type="pt").images
    assert len(strip) == 5 and len(grid) == 9
    for image, seed in ((strip[0], 0), (strip[4], 1), (grid[0], 0), (grid[2], 1), (grid[6], 2), (grid[8], 3)):
        torch.testing.assert_close(image, single[seed], atol=1e-5, rtol=0)
    latents = [torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    same = random_pipeline.interpolate(*latents, num_images=5, num_inference_steps=5, output_type="pt").images
    torch.testing.assert_close(same, strip, atol=1e-5, rtol=0)


def test_interpolation_between_images_ends_at_them(random_pipeline):
    """The ends of a strip between two images are these images, within 1e-3."""
    pixels = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    for ends in (list(pixels), [Image.fromarray(image[..., 0]) for image in pixels]):
        strip = random_pipeline.interpolate(*ends, num_images=3, timesteps=HALFWAY, output_type="np").images
        np.testing.assert_allclose(strip[[0, 2]], pixels / 255, atol=1e-3)


@pytest.mark.parametrize(
    ("method", "arguments", "keywords", "message"),
    [
        ("invert", (torch.full((1, 1, 8, 8), 2.0),), {}, "values from 2 to 2; allowed"),
        ("invert", (torch.zeros(1, 1, 4, 4),), {}, r"shape \(1, 1, 4, 4\); allowed"),
        ("invert", (torch.zeros(1, 1, 8, 8),), {"tolerance": 0}, "tolerance is 0"),
        ("invert", (torch.zeros(1, 1, 8, 8),), {"tolerance": "a"}, "tolerance is 'a'; allowed: above 0"),
        ("invert", (torch.zeros(1, 1, 8, 8),), {"max_iterations": 0}, "max_iterations is 0"),
        ("invert", (torch.zeros(1, 1, 8, 8),), {"max_batch_size": 0}, "max_batch_size is 0"),
        ("reconstruct", ("a.png",), {}, "images is str"),
        ("interpolate", (0, 1, 2), {}, "3 corners; allowed: 2"),
        ("interpolate", (0, torch.zeros(1, 8, 8)), {}, "corners are int, Tensor"),
        ("interpolate", (torch.zeros(1, 8, 8), torch.zeros(1, 4, 4)), {}, "corners have shapes"),
        ("interpolate", (0, 1), {"num_images": 1}, "num_images is 1"),
        ("interpolate", (np.zeros((3, 8, 8, 1)), np.zeros((8, 8, 1))), {}, r"corners of \[3, 1\] images; allowed"),
    ],
)
def test_wrong_arguments_are_named(random_pipeline, method, arguments, keywords, message):
    """Each wrong argument raises ValueError in one line that says what was given."""
    with pytest.raises(ValueError, match=message) as caught:
        getattr(random_pipeline, method)(*arguments, **keywords)
    assert "\n" not in str(caught.value)


def test_schedulers_that_cannot_be_inverted_are_refused():
    """Encoding with another scheduler, or with the misprinted formula, raises ValueError instead of wrong latents."""
    pipe = gaussian_pipeline(x0_formula="as_printed")
    with pytest.raises(ValueError, match="as_printed"):
        pipe.invert(draw(9), input_type="latent")
    pipe.scheduler = DDPMScheduler()
    with pytest.raises(ValueError, match="DDPMScheduler; allowed"):
        pipe.invert(draw(9), input_type="latent")


EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run_example(name: str, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, EXAMPLES / f"{name}.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=EXAMPLES.parent, timeout=120)


@pytest.mark.parametrize(
    ("name", "options", "written"),
    [
        ("reconstruct", ["--data", "digits", "--num_inference_steps", 5, 10, "--num_images", 2], ["png", "json"]),
        ("interpolate", ["--num_images", 3, "--num_inference_steps", 3], ["png", "gif", "json"]),
        ("trajectory", ["--num_images", 2, "--num_inference_steps", 3], ["png", "gif", "json"]),
    ],
)
def test_examples(random_pipeline, tmp_path, name, options, written):
    """Each script turns a saved model into its pictures and figures."""
    random_pipeline.save_pretrained(tmp_path / "model")
    done = run_example(name, tmp_path / "model", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    for suffix in written:
        path = tmp_path / "out" / f"{name}.{suffix}"
        if suffix == "json":
            assert json.loads(path.read_text())
        else:
            assert getattr(Image.open(path), "n_frames", 1) == (3 if suffix == "gif" else 1)


def test_bad_input_of_an_example(random_pipeline, tmp_path):
    """Bad input to a script ends in one line and exit code 2."""
    random_pipeline.save_pretrained(tmp_path / "model")
    failed = run_example("interpolate", tmp_path / "model", tmp_path / "out", "--num_images", 1)
    assert failed.returncode == 2 and failed.stderr.strip().splitlines()[-1].startswith("error: num_images is 1")
    assert "Traceback" not in failed.stderr
