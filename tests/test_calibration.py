"""Schedules fitted to a network, held against data of which everything is known."""

import copy
import json
import math
import os
import runpy
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import tiny_unet
from diffusers import DDIMPipeline
from hub_models import WRITER
from PIL import Image
from training_runs import ROOT

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom, calibration, pipeline_ddim_custom
from ddim_hf.calibrated_schedules import table
from ddim_hf.calibration import choose_paths, fit_schedules, gauss_newton, one_step_errors
from ddim_hf.generation import generate

S_DATA = 0.5  # standard deviation of the Gaussian data


def gaussian(scheduler):
    """The network that perfect training on independent N(0, s^2) values gives."""

    def network(x, t, numbers=None):
        alpha = scheduler.alphas_cumprod[t].to(x.dtype)
        return (1 - alpha).sqrt() / (alpha * S_DATA**2 + 1 - alpha) * x

    return network


def mixture(scheduler, means=(-0.7, 0.1, 0.8), s=0.15):
    """The network that perfect training on independent values from three Gaussians gives, of any prediction type."""
    means = torch.tensor(means, dtype=torch.float64)

    def network(x, t, numbers=None):
        alpha = scheduler.alphas_cumprod[t].double()
        variance = alpha * s**2 + 1 - alpha
        distance = x[..., None].double() - alpha.sqrt() * means
        share = torch.softmax(-(distance**2) / (2 * variance), dim=-1)
        # eps is -sqrt(1 - alpha) times the gradient of the log density; x_0 the posterior mean
        eps = (1 - alpha).sqrt() * (share * distance).sum(-1) / variance
        x0 = (share * (means + alpha.sqrt() * s**2 / variance * distance)).sum(-1)
        v = alpha.sqrt() * eps - (1 - alpha).sqrt() * x0
        return {"epsilon": eps, "sample": x0, "v_prediction": v}[scheduler.config.prediction_type].to(x.dtype)

    return network


def draw(numbers, shape=(1, 4, 4)):
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(k)) for k in numbers])


def sample(network, scheduler, schedule, x):
    """x_0 by a schedule, straight from the formulas in float64."""
    alpha = [*scheduler.alphas_cumprod.double()[schedule.timesteps].tolist(), 1.0]
    history = []
    for t, a, b, weights in zip(schedule.timesteps, alpha[:-1], alpha[1:], schedule.weights, strict=True):
        history = [network(x, torch.tensor(t)), *history[:2]]
        eps = sum(w * e for w, e in zip(weights, history, strict=False))
        x0 = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
        x0 = x0.clamp(-1, 1) if scheduler.config.clip_sample else x0
        x = math.sqrt(b) * x0 + math.sqrt(1 - b) * eps
    return x


def sample_plainly(network, scheduler, steps, x):
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(network(x, torch.tensor(t)), t, x).prev_sample
    return x


def rms(x):
    return x.double().square().mean().sqrt().item()


# The whole


def test_ten_steps_come_ten_times_closer_to_the_odes_solution():
    """On Gaussian data, from noises it has not seen, a fitted schedule ends at least 10 times closer than plain DDIM
    to x_T s / sqrt(alpha s^2 + 1 - alpha), the solution of the ODE from the first timestep of each."""
    scheduler = DDIMSchedulerCustom(clip_sample=False)
    network, x = gaussian(scheduler), draw(range(1000, 1032)).double()
    schedule, _ = fit_schedules(network, scheduler, draw, [10], num_images=16, teacher_steps=500)[10]

    def error(x0, first):
        alpha = scheduler.alphas_cumprod[first].item()
        return rms(x0 - x * S_DATA / math.sqrt(alpha * S_DATA**2 + 1 - alpha))

    plain = error(sample_plainly(network, scheduler, 10, x), 900)
    assert len(schedule.timesteps) == 10
    assert error(sample(network, scheduler, schedule, x), schedule.timesteps[0]) < plain / 10


CONFIGS = [
    dict(),
    dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
    dict(prediction_type="sample", set_alpha_to_one=False),
    dict(thresholding=True, dynamic_thresholding_ratio=0.9),
    dict(skip_type="quad", clip_sample=False),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_schedules_of_a_mixture_are_worth_more_than_five_times_their_steps(config):
    """On a mixture of Gaussians, for each prediction type and way to clip, held-out images of the fitted schedule are
    nearer the teacher's than those of plain DDIM in five times the steps."""
    scheduler = DDIMSchedulerCustom(**config)
    results = fit_schedules(mixture(scheduler), scheduler, draw, [5, 10], num_images=32, teacher_steps=100)
    for steps, (schedule, certificate) in results.items():
        assert len(schedule.timesteps) == len(schedule.weights) == steps
        assert schedule.weights[-1] == [1, 0, 0]
        rms_of = {name: figures["rms"] for name, figures in certificate.items()}
        assert rms_of[f"calibrated {steps}"] < rms_of[f"plain {5 * steps}"] < rms_of[f"plain {steps}"]
        assert rms_of["teacher 100"] == 0


def test_the_certificate_is_what_the_schedule_does():
    """The certificate's difference from the teacher is that of sampling the held-out noises by the formulas."""
    scheduler = DDIMSchedulerCustom()
    network = mixture(scheduler)
    schedule, certificate = fit_schedules(network, scheduler, draw, [6], num_images=20, teacher_steps=50)[6]
    x = draw(range(10, 20))
    teacher = sample_plainly(network, scheduler, 50, x)
    for name, x0 in (
        ("calibrated 6", sample(network, scheduler, schedule, x.double())),
        ("plain 12", sample_plainly(network, scheduler, 12, x)),
    ):
        pixels, wanted = ((y.double() / 2 + 0.5).clamp(0, 1) for y in (x0, teacher))
        assert certificate[name]["rms"] == pytest.approx(rms(pixels - wanted), abs=2e-5)
        spread = pixels - pixels.mean((2, 3), keepdim=True)
        assert certificate[name]["std"] == pytest.approx(rms(spread), abs=2e-5)
        assert sum(certificate[name]["bands"]) == pytest.approx(rms(spread) ** 2, rel=1e-3)


def test_blur_is_no_nearness():
    """Of two sets of images equally far from the teacher's the blurred one has the greater error, which is the root
    mean square difference times the factor by which amplitudes are off; no difference is no error."""
    teacher = {"rms": 0.0, "std": 0.3, "bands": [0.04, 0.04, 0.01]}
    alike = {"rms": 0.1, "std": 0.3, "bands": [0.04, 0.04, 0.01]}
    blurred = {"rms": 0.1, "std": 0.2, "bands": [0.04, 0.01, 0.01 / 16]}  # amplitudes 1, 1/2 and 1/4 of the teacher's
    noisy = {"rms": 0.1, "std": 0.6, "bands": [0.04, 0.16, 0.16]}
    assert calibration.error(alike, teacher) == pytest.approx(0.1)
    assert calibration.error(blurred, teacher) == pytest.approx(0.2) == calibration.error(noisy, teacher)
    assert calibration.error(teacher, teacher) == 0


def test_the_same_seed_gives_the_same_schedule_whatever_the_blocks():
    """A second fit repeats the first exactly; blocks of another size change the rounding alone."""
    scheduler = DDIMSchedulerCustom()
    first, again, others = (
        fit_schedules(mixture(scheduler), scheduler, draw, [7], num_images=10, teacher_steps=40, max_batch_size=size)
        for size in (64, 64, 2)
    )
    assert first == again
    assert others[7][0].timesteps == first[7][0].timesteps
    assert np.allclose(others[7][0].weights, first[7][0].weights, atol=1e-3)
    assert scheduler.num_inference_steps is None


def test_large_states_are_fitted_on_some_of_their_values(monkeypatch):
    """Of states with more values than ELEMENTS so many are kept, the same of each image, and the fit is as good."""
    scheduler = DDIMSchedulerCustom()
    block = calibration.Block(range(2), False, torch.arange(2 * 3 * 64 * 64.0).view(2, 3, 64, 64))
    kept = block.seen(block.noise)
    assert kept.shape == (2, calibration.ELEMENTS) and len(kept[0].unique()) == calibration.ELEMENTS
    assert torch.equal(kept[1] - kept[0], torch.full((calibration.ELEMENTS,), 3 * 64 * 64.0))

    sizes = (10**9, 8)
    found = []
    for size in sizes:
        monkeypatch.setattr(calibration, "ELEMENTS", size)
        found.append(fit_schedules(mixture(scheduler), scheduler, draw, [8], num_images=64, teacher_steps=40)[8][1])
    assert found[1]["calibrated 8"]["rms"] < min(2 * found[0]["calibrated 8"]["rms"], found[1]["plain 8"]["rms"] / 10)


# Its parts


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_table_holds_the_error_of_each_single_step(config):
    """The table has, for each two of the teacher's states, the rms error of the step that the scheduler takes."""
    scheduler = DDIMSchedulerCustom(**config)
    network = mixture(scheduler)
    scheduler.set_timesteps(6)
    timesteps, x = scheduler.timesteps.tolist(), draw(range(5))
    states, outputs = [x], []
    for t in timesteps:
        outputs.append(network(states[-1], torch.tensor(t)))
        states.append(scheduler.step(outputs[-1], t, states[-1]).prev_sample)
    blocks = [calibration.Block(range(k, k + n), False, draw(range(k, k + n))) for k, n in ((0, 2), (2, 3))]
    for block in blocks:
        calibration._follow_teacher(network, scheduler, block, calibration.tqdm(disable=True))
    table = one_step_errors(scheduler, blocks)
    for a, t in enumerate(timesteps):
        assert np.isinf(table[a, : a + 1]).all()
        for b in range(a + 1, 7):
            scheduler.set_timesteps(timesteps=[t, *timesteps[b : b + 1]])
            stepped = scheduler.step(outputs[a], t, states[a]).prev_sample
            assert table[a, b] == pytest.approx(rms(stepped - states[b]), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 1.3])
def test_paths_are_the_best_of_all(gamma):
    """For each S no other choice of states has a smaller sum of errors, the k-th counted gamma^k times."""
    errors = np.random.default_rng(0).random((9, 10))
    errors[np.tril_indices(9)] = np.inf
    paths = choose_paths(errors, gamma, 9)

    def cost(path):
        return sum(gamma**k * errors[a, b] for k, (a, b) in enumerate(zip(path, [*path[1:], 9], strict=True)))

    for steps in range(1, 10):
        best = min(cost((0, *rest)) for rest in combinations(range(1, 9), steps - 1))
        assert len(paths[steps]) == steps and paths[steps][0] == 0
        assert cost(paths[steps]) == pytest.approx(best)


def test_gauss_newton_solves_what_is_linear():
    """For residuals linear in w it returns the solution of the normal equations with the ridge, over all blocks."""
    random = np.random.default_rng(0)
    slopes, target = random.normal(size=(3, 50, 3)), random.normal(size=(3, 50))
    found = gauss_newton(lambda w: {k: slopes[k] @ w - target[k] for k in range(3)}, (1.0, 0.0, 0.0))
    a, b = slopes.reshape(150, 3), target.reshape(150)
    ridge = calibration.RIDGE * (a**2).sum() / 3
    wanted = np.linalg.solve(a.T @ a + ridge * np.eye(3), a.T @ b + ridge * np.array([1, 0, 0]))
    assert np.abs(found - wanted).max() < 1e-6


# In the scheduler


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_weights_one_and_nothing_else_are_ddim_bit_for_bit(config):
    """With the weights (1, 0, 0) at each of its timesteps a schedule gives the bits that plain steps give."""
    plain, weighted = DDIMSchedulerCustom(**config), DDIMSchedulerCustom(**config)
    network = mixture(plain)
    plain.set_timesteps(7)
    weighted.set_timesteps(timesteps=plain.timesteps.tolist(), weights=[(1, 0, 0)] * 7)
    x = y = draw(range(3))
    for t in plain.timesteps.tolist():
        x, y = plain.step(network(x, t), t, x).prev_sample, weighted.step(network(y, t), t, y).prev_sample
        assert torch.equal(x, y)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_weights_combine_the_last_three_predictions(kind):
    """Weighted steps are eq. 12 with eps-bar in the place of eps, whatever the network predicts; set_timesteps starts
    anew."""
    scheduler, epsilon = DDIMSchedulerCustom(prediction_type=kind), DDIMSchedulerCustom()
    schedule = calibration.Schedule(
        [900, 500, 300, 100], [[0.9, 0, 0], [1.2, -0.3, 0], [1.5, -0.7, 0.2], [1.0, 0.1, -0.1]]
    )
    network, wanted = mixture(scheduler), sample(mixture(epsilon), epsilon, schedule, draw(range(3)).double())
    for _ in range(2):
        scheduler.set_timesteps(timesteps=schedule.timesteps, weights=schedule.weights)
        x = draw(range(3)).double()
        for t in schedule.timesteps:
            x = scheduler.step(network(x, t), t, x).prev_sample
        assert (x - wanted).abs().max() < 1e-9


BAD_WEIGHTS = [
    ([[1, 0, 0]], "weights has 1 rows; allowed: one for each of 2 timesteps"),
    ([[1, 0, 0], [1, 0]], r"weights of step 2 are \[1, 0\]; allowed: 3 finite numbers"),
    ([[1, 0.5, 0], [1, 0, 0]], r"weights of step 1 are \[1, 0.5, 0\]; allowed: .* 0 for predictions before the first"),
    ([[1, 0, 0], [math.nan, 0, 0]], r"weights of step 2 are \[nan, 0, 0\]"),
]


@pytest.mark.parametrize("weights, message", BAD_WEIGHTS, ids=str)
def test_weights_outside_their_range_are_refused(weights, message):
    """set_timesteps and step raise ValueError for weights, or a timestep, that the schedule gives no meaning."""
    scheduler = DDIMSchedulerCustom()
    with pytest.raises(ValueError, match=message):
        scheduler.set_timesteps(timesteps=[500, 100], weights=weights)
    scheduler.set_timesteps(timesteps=[500, 100], weights=[[1, 0, 0], [1, 0, 0]])
    with pytest.raises(ValueError, match=r"timestep is 300; allowed with weights: \[500, 100\]"):
        scheduler.step(draw([0]), 300, draw([0]))


# In the pipeline

SETTINGS = dict(num_images=6, teacher_steps=12)


@pytest.fixture(scope="module")
def fitted():
    """A pipeline with schedules of 4 and 5 steps."""
    pipe = DDIMCustomPipeline(tiny_unet().eval(), DDIMSchedulerCustom(skip_type="quad"))
    pipe.set_progress_bar_config(disable=True)
    pipe.calibrate([4, 5], **SETTINGS)
    return pipe


def images(pipe, steps=4, **arguments):
    return pipe(3, num_inference_steps=steps, seeds=range(3), output_type="latent", **arguments)


def test_a_fitted_schedule_is_used_by_itself_and_nothing_else_is(fitted):
    """Where there is a schedule for S, a call takes it and its output says so; eta, timesteps, clipping of one's own
    or calibrated=False take plain steps, and so does a number of steps without a schedule."""
    plain = DDIMCustomPipeline(fitted.unet, DDIMSchedulerCustom(skip_type="quad"))
    plain.set_progress_bar_config(disable=True)
    got = images(fitted)
    record = fitted.scheduler.config.calibrated_schedules["schedules"]["4"]
    scheduler = copy.deepcopy(plain.scheduler)
    scheduler.set_timesteps(timesteps=record["timesteps"], weights=record["weights"])
    x = draw(range(3), fitted.state_shape)
    with torch.no_grad():
        for t in record["timesteps"]:
            x = scheduler.step(fitted.unet(x, t).sample, t, x).prev_sample
    assert got.calibrated and torch.equal(got.images, x)
    assert torch.allclose(images(fitted, max_batch_size=2).images, x, atol=1e-3)
    assert len(fitted(num_inference_steps=4, return_dict=False)) == 1

    taken = [3], [4, dict(calibrated=False)], [4, dict(eta=0.5)], [4, dict(clip_sample=False)]
    taken += [4, dict(timesteps=[700, 300, 100, 0])], [4, dict(use_clipped_model_output=True)]
    for steps, *arguments in taken:
        arguments = arguments[0] if arguments else {}
        got = images(fitted, steps, **arguments)
        assert not got.calibrated and torch.equal(got.images, images(plain, steps, **arguments).images)
    other = DDIMCustomPipeline(
        fitted.unet, DDIMSchedulerCustom.from_config(fitted.scheduler.config, skip_type="uniform")
    )
    other.set_progress_bar_config(disable=True)
    assert not images(other).calibrated
    for arguments in (dict(steps=3), dict(eta=1.0)):
        with pytest.raises(
            ValueError, match="calibrated is True with num_inference_steps .*; allowed: 4, 5, at eta 0"
        ):
            images(fitted, calibrated=True, **arguments)


def test_generated_images_say_which_schedule_made_them(fitted, tmp_path):
    """`generate` samples by the schedule that there is and names it in its manifest; plain steps need a new folder."""
    settings = dict(num_images=2, num_inference_steps=4, max_batch_size=2)
    folder = generate(fitted, tmp_path, **settings)
    record = fitted.scheduler.config.calibrated_schedules["schedules"]["4"]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["calibrated"] == {key: record[key] for key in ("timesteps", "weights")}
    made = fitted(2, num_inference_steps=4, seeds=range(2)).images[1]
    assert np.abs(np.asarray(Image.open(folder / "000001.png")).astype(int) - np.asarray(made)).max() <= 1
    with pytest.raises(ValueError, match="made with other settings: calibrated"):
        generate(fitted, tmp_path, calibrated=False, **settings)


def test_encoding_keeps_plain_steps(fitted):
    """invert, reconstruct and interpolation between images give what they give without a schedule; interpolation
    between seeds takes it."""
    plain = DDIMCustomPipeline(fitted.unet, DDIMSchedulerCustom(skip_type="quad"))
    plain.set_progress_bar_config(disable=True)
    x = draw(range(2), fitted.state_shape).clamp(-1, 1) / 2 + 0.5
    first, second = (x[i].permute(1, 2, 0).numpy() for i in range(2))
    for ask in (
        lambda pipe: pipe.invert(x, 4).latents,
        lambda pipe: pipe.reconstruct(x, 4, output_type="latent").images,
        lambda pipe: (
            pipe.interpolate(first, second, num_images=3, num_inference_steps=4, exact=False, output_type="pt").images
        ),
    ):
        assert torch.equal(ask(fitted), ask(plain))
    assert fitted.interpolate(1, 2, num_images=3, num_inference_steps=4).calibrated


def test_schedules_go_to_disk_and_back_and_stock_samples_plainly(fitted, tmp_path):
    """save_pretrained and save_scheduler keep the schedules, from_pretrained uses them; stock loads the folder and
    gives the images of plain steps."""
    fitted.save_pretrained(tmp_path)
    text = (tmp_path / "scheduler" / "scheduler_config.json").read_text()
    fitted.save_scheduler(tmp_path)
    assert (tmp_path / "scheduler" / "scheduler_config.json").read_text() == text
    loaded = DDIMCustomPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.scheduler.config.calibrated_schedules == fitted.scheduler.config.calibrated_schedules
    got = images(loaded)
    assert got.calibrated and torch.equal(got.images, images(fitted).images)

    stock = DDIMPipeline.from_pretrained(tmp_path)
    stock.set_progress_bar_config(disable=True)
    theirs = stock(2, num_inference_steps=4, generator=torch.manual_seed(0), output_type="np").images
    plain = dict(calibrated=False, generator=torch.manual_seed(0), output_type="np")
    uniform = DDIMCustomPipeline(stock.unet, DDIMSchedulerCustom())
    assert np.abs(theirs - uniform(2, num_inference_steps=4, **plain).images).max() < 1e-4
    again = DDIMCustomPipeline(stock.unet, stock.scheduler).scheduler.config
    assert again.calibrated_schedules == fitted.scheduler.config.calibrated_schedules


def test_schedules_go_to_the_hub_and_back(fitted, hub):
    """push_to_hub sends the schedules with the model, and the model that comes back from there uses them."""
    fitted.push_to_hub("org/fitted", token=WRITER)
    loaded = DDIMCustomPipeline.from_pretrained("org/fitted")
    loaded.set_progress_bar_config(disable=True)
    assert loaded.scheduler.config.calibrated_schedules == fitted.scheduler.config.calibrated_schedules
    got = images(loaded)
    assert got.calibrated and torch.equal(got.images, images(fitted).images)


def test_schedules_of_other_weights_warn_and_are_not_used(fitted, monkeypatch):
    """Once the weights have changed, in place or as the EMA changes them, a call warns and takes plain steps; as long
    as they have not, their hash is computed once."""
    computed = []
    hashing = pipeline_ddim_custom.weights_hash
    monkeypatch.setattr(pipeline_ddim_custom, "weights_hash", lambda unet: computed.append(unet) or hashing(unet))
    pipe = DDIMCustomPipeline(copy.deepcopy(fitted.unet), fitted.scheduler)
    pipe.set_progress_bar_config(disable=True)
    assert images(pipe).calibrated and images(pipe).calibrated and images(pipe, 5).calibrated and len(computed) == 1
    assert not images(pipe, 3).calibrated and not images(pipe, calibrated=False).calibrated and len(computed) == 1
    weights = list(pipe.unet.parameters())
    for change in (lambda: weights[3].data.mul_(1.01), lambda: weights[3].data.copy_(2 * weights[3])):
        with torch.no_grad():
            change()
        with pytest.warns(UserWarning, match="fitted to other weights .* call calibrate"):
            got = images(pipe)
        assert not got.calibrated
        assert torch.equal(got.images, images(pipe, calibrated=False).images)
    with pytest.raises(ValueError, match="no schedule of these weights"), pytest.warns(UserWarning):
        images(pipe, calibrated=True)


def test_calibrating_again_adds_to_what_holds_and_replaces_what_does_not(fitted):
    """A second call keeps the schedules of other S; after a change of the sampler or the weights it does not."""
    pipe = DDIMCustomPipeline(copy.deepcopy(fitted.unet), copy.deepcopy(fitted.scheduler))
    pipe.set_progress_bar_config(disable=True)
    before = pipe.scheduler.config.calibrated_schedules
    pipe.calibrate(6, **SETTINGS)
    after = pipe.scheduler.config.calibrated_schedules
    assert after["schedules"].keys() == {"4", "5", "6"} and after["schedules"]["4"] == before["schedules"]["4"]
    assert pipe.calibrate([4, 5], **SETTINGS).keys() == {4, 5}
    assert pipe.scheduler.config.calibrated_schedules == after
    pipe.scheduler = DDIMSchedulerCustom.from_config(pipe.scheduler.config, clip_sample=False)
    assert not images(pipe).calibrated
    pipe.calibrate(4, **SETTINGS)
    assert pipe.scheduler.config.calibrated_schedules["schedules"].keys() == {"4"} and images(pipe).calibrated


def test_a_schedule_that_plain_steps_are_as_good_as_is_not_kept(fitted):
    """Where plain steps lose nothing, as with a network that sees no noise, nothing is kept and the table says so."""
    scheduler = DDIMSchedulerCustom(clip_sample=False, timestep_spacing="linspace")
    pipe = DDIMCustomPipeline(copy.deepcopy(fitted.unet), scheduler)
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        for parameter in pipe.unet.conv_out.parameters():
            parameter.zero_()
    certificates = pipe.calibrate([3, 4], **SETTINGS)
    assert pipe.scheduler.config.calibrated_schedules is None and not images(pipe).calibrated
    assert table(certificates).endswith("not kept, as plain steps are as good: S = 3, 4")


BAD_CALIBRATIONS = [
    (dict(num_inference_steps=0), "num_inference_steps is 0; allowed"),
    (dict(num_inference_steps=[5, 12]), r"num_inference_steps is 12; allowed: below teacher_steps \(12\)"),
    (dict(num_images=1), "num_images is 1; allowed"),
    (dict(teacher_steps=1001), "teacher_steps is 1001; allowed: 2 to 1000"),
    (dict(max_batch_size=0), "max_batch_size is 0; allowed"),
]


@pytest.mark.parametrize("arguments, message", BAD_CALIBRATIONS, ids=str)
def test_calibrate_refuses_what_it_cannot_do(fitted, arguments, message):
    """calibrate raises ValueError with what was given and what is allowed, before any work."""
    with pytest.raises(ValueError, match=message):
        fitted.calibrate(**{"num_inference_steps": 5, **SETTINGS, **arguments})


# The command


def test_the_command_gives_the_same_on_two_processes(fitted, tmp_path, monkeypatch, capsys):
    """calibrate.py keeps its schedules in the model's folder, whose weights it does not touch, and says what they are
    worth; two processes find what one does, to the last digit."""
    plain, script = DDIMCustomPipeline(fitted.unet, DDIMSchedulerCustom()), str(ROOT / "examples" / "calibrate.py")
    words = ["--num_inference_steps", "3,5", "--num_images", "8", "--teacher_steps", "10", "--max_batch_size", "2"]
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        plain.save_pretrained(folder)
    written = [(folder / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns for folder in folders]
    torch.set_num_threads(1)
    monkeypatch.setattr(sys, "argv", [script, str(folders[0]), *words])
    runpy.run_path(script, run_name="__main__")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    pair = subprocess.run([*launch, script, str(folders[1]), *words], env=environment, capture_output=True, text=True)
    assert pair.returncode == 0, pair.stderr

    assert written == [(f / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns for f in folders]
    one, two = ((folder / "scheduler" / "scheduler_config.json").read_text() for folder in folders)
    assert one == two and len(one) < 4000  # bytes
    assert json.loads(one)["calibrated_schedules"]["schedules"].keys() == {"3", "5"}
    said = capsys.readouterr().out
    assert said.replace(str(folders[0]), str(folders[1])) == pair.stdout
    rows = [line.split() for line in said.splitlines()]
    assert [row[0] for row in rows[1:4]] == ["S", "3", "5"] and float(rows[3][2]) < float(rows[3][1])


def test_a_schedule_is_for_its_guidance_and_classes():
    """A schedule is used with the guidance that it was fitted with and for its classes alone; others stay beside."""
    unet = tiny_unet(num_class_embeds=4).eval()
    torch.nn.init.normal_(unet.class_embedding.weight, std=5.0)
    pipe = DDIMCustomPipeline(unet, DDIMSchedulerCustom(), {0: "cat", 1: "dog", 2: "bird"})
    pipe.set_progress_bar_config(disable=True)
    pipe.calibrate(3, class_labels=["cat", "dog"], guidance_scale=1.5, **SETTINGS)
    pipe.calibrate(3, class_labels="cat", **SETTINGS)
    guided, plain = pipe.scheduler.config.calibrated_schedules["schedules"].values()
    assert guided["classes"] == [0, 1] and plain["classes"] == [0]
    assert guided["weights"] != plain["weights"]

    def taken(**asked):
        return pipe.calibrated_schedule(3, **asked)

    assert taken(class_labels=["dog", 0], guidance_scale=1.5)["weights"] == guided["weights"]
    assert taken(class_labels="cat")["weights"] == plain["weights"]
    others = [dict(), dict(class_labels="dog"), dict(class_labels=0, guidance_scale=2)]
    others += [dict(class_labels=label, guidance_scale=1.5) for label in ("bird", ["cat", None])]
    others += [dict(class_labels=0, guidance_scale=1.5, guide=pipe.unet)]
    others += [dict(class_labels=0, guidance_scale=1.5, guidance_interval=(0, 500))]
    assert [taken(**asked) for asked in others] == [None] * len(others)
    run = dict(num_inference_steps=3, seeds=[1, 2], guidance_scale=1.5)
    assert pipe(class_labels=["cat", "dog"], **run).calibrated and not pipe(class_labels=[0, 2], **run).calibrated
    with pytest.raises(ValueError, match="no schedule .* allowed: 3 at guidance_scale 1.5, 3, at eta 0"):
        pipe(2, class_labels="bird", calibrated=True, **run)
