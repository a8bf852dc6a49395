"""Schedules fitted to a network, held against data of which everything is known."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from calibration_data import S_DATA, draw, fit, gaussian, mixture, rms, sample, sample_plainly

from ddim_hf import DDIMSchedulerCustom
from ddim_hf.calibration import Schedule, blocks, fitting
from ddim_hf.calibration.blocks import Block
from ddim_hf.calibration.certificate import error, table
from ddim_hf.calibration.fitting import gauss_newton
from ddim_hf.calibration.paths import choose_paths, one_step_errors

# The whole


def test_ten_steps_come_ten_times_closer_to_the_odes_solution():
    """On Gaussian data, from noises it has not seen, a fitted schedule ends at least 10 times closer than plain DDIM
    to x_T s / sqrt(alpha s^2 + 1 - alpha), the solution of the ODE from the first timestep of each."""
    scheduler = DDIMSchedulerCustom(clip_sample=False)
    network, x = gaussian(scheduler), draw(range(1000, 1032)).double()
    schedule, _ = fit(network, scheduler, draw, [10], num_images=16, teacher_steps=500)[10]

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
    results = fit(mixture(scheduler), scheduler, draw, [5, 10], num_images=32, teacher_steps=100)
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
    schedule, certificate = fit(network, scheduler, draw, [6], num_images=20, teacher_steps=50)[6]
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


def test_the_teacher_is_not_among_the_plain_steps():
    """Plain steps as many as the teacher's are left out of the certificate, and their cell of the table is empty."""
    scheduler = DDIMSchedulerCustom()
    fitted = fit(mixture(scheduler), scheduler, draw, [4], num_images=4, teacher_steps=20)
    certificates = {steps: certificate for steps, (_, certificate) in fitted.items()}
    assert list(certificates[4]) == ["calibrated 4", "plain 4", "plain 8", "teacher 20"]
    _, head, row = table(certificates).splitlines()[:3]
    cells = {name: row[: head.index(name) + len(name)][-len(name) :].strip() for name in ("plain 2 S", "plain 5 S")}
    assert cells == {"plain 2 S": f"{certificates[4]['plain 8']['rms']:.4f}", "plain 5 S": ""}


def test_blur_is_no_nearness():
    """Of two sets of images equally far from the teacher's the blurred one has the greater error, which is the root
    mean square difference times the factor by which amplitudes are off; no difference is no error."""
    teacher = {"rms": 0.0, "std": 0.3, "bands": [0.04, 0.04, 0.01]}
    alike = {"rms": 0.1, "std": 0.3, "bands": [0.04, 0.04, 0.01]}
    blurred = {"rms": 0.1, "std": 0.2, "bands": [0.04, 0.01, 0.01 / 16]}  # amplitudes 1, 1/2 and 1/4 of the teacher's
    noisy = {"rms": 0.1, "std": 0.6, "bands": [0.04, 0.16, 0.16]}
    assert error(alike, teacher) == pytest.approx(0.1)
    assert error(blurred, teacher) == pytest.approx(0.2) == error(noisy, teacher)
    assert error(teacher, teacher) == 0


def test_the_same_seed_gives_the_same_schedule_whatever_the_blocks():
    """A second fit repeats the first exactly; blocks of another size change the rounding alone."""
    scheduler = DDIMSchedulerCustom()
    first, again, others = (
        fit(mixture(scheduler), scheduler, draw, [7], num_images=10, teacher_steps=40, max_batch_size=size)
        for size in (64, 64, 2)
    )
    assert first == again
    assert others[7][0].timesteps == first[7][0].timesteps
    assert np.allclose(others[7][0].weights, first[7][0].weights, atol=1e-3)
    assert scheduler.num_inference_steps is None


def test_large_states_are_fitted_on_some_of_their_values(monkeypatch):
    """Of states with more values than ELEMENTS so many are kept, the same of each image, and the fit is as good."""
    scheduler = DDIMSchedulerCustom()
    block = Block(range(2), False, torch.arange(2 * 3 * 64 * 64.0).view(2, 3, 64, 64))
    kept = block.seen(block.noise)
    assert kept.shape == (2, blocks.ELEMENTS) and len(kept[0].unique()) == blocks.ELEMENTS
    assert torch.equal(kept[1] - kept[0], torch.full((blocks.ELEMENTS,), 3 * 64 * 64.0))

    sizes = (10**9, 8)
    found = []
    for size in sizes:
        monkeypatch.setattr(blocks, "ELEMENTS", size)
        found.append(fit(mixture(scheduler), scheduler, draw, [8], num_images=64, teacher_steps=40)[8][1])
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
    blocks = [Block(range(k, k + n), False, draw(range(k, k + n))) for k, n in ((0, 2), (2, 3))]
    for block in blocks:
        fitting._follow_teacher(network, scheduler, block, fitting.tqdm(disable=True))
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
    ridge = fitting.RIDGE * (a**2).sum() / 3
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
    schedule = Schedule([900, 500, 300, 100], [[0.9, 0, 0], [1.2, -0.3, 0], [1.5, -0.7, 0.2], [1.0, 0.1, -0.1]])
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
