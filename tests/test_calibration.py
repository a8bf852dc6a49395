"""Schedules fitted to a network, held against data of which everything is known."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from ddim_hf import DDIMSchedulerCustom, calibration
from ddim_hf.calibration import choose_paths, fit_schedules, gauss_newton, one_step_errors

S_DATA = 0.5  # standard deviation of the Gaussian data


def gaussian(scheduler):
    """The network that perfect training on independent N(0, s^2) values gives."""

    def network(x, t):
        alpha = scheduler.alphas_cumprod[t].to(x.dtype)
        return (1 - alpha).sqrt() / (alpha * S_DATA**2 + 1 - alpha) * x

    return network


def mixture(scheduler, means=(-0.7, 0.1, 0.8), s=0.15):
    """The network that perfect training on independent values from three Gaussians gives, of any prediction type."""
    means = torch.tensor(means, dtype=torch.float64)

    def network(x, t):
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
