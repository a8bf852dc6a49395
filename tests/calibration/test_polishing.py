"""All weights of a schedule at once, by the images that it ends in."""

import math

import numpy as np
import pytest
import torch
from calibration_data import draw, fit, mixture, rms, sample_plainly
from tqdm.auto import tqdm

from ddim_hf import DDIMSchedulerCustom
from ddim_hf.calibration import fitting, polishing
from ddim_hf.calibration.blocks import Block
from ddim_hf.calibration.certificate import error
from ddim_hf.calibration.few_steps import FewSteps

SETTINGS = dict(num_images=64, teacher_steps=100)


def test_polished_weights_come_nearer_to_the_teacher(monkeypatch):
    """On noises that were not fitted to, weights polished together end nearer than those of one step after another,
    along the same timesteps, for few steps and for as many as are polished on a part of the noises."""
    scheduler, steps = DDIMSchedulerCustom(), [4, 5, 12]
    polished = fit(mixture(scheduler), scheduler, draw, steps, **SETTINGS)
    monkeypatch.setattr(fitting, "polish", lambda few, weights, blocks, rounds: weights)
    stepwise = fit(mixture(scheduler), scheduler, draw, steps, **SETTINGS)
    for count in steps:
        (ours, certificate), (before, other) = polished[count], stepwise[count]
        assert ours.timesteps == before.timesteps and ours.weights[-1] == [1, 0, 0]
        name = f"calibrated {count}"
        assert certificate[name]["rms"] < 0.9 * other[name]["rms"], count


def test_what_polishing_makes_worse_is_not_kept(monkeypatch):
    """Weights that end farther off on the held-out noises are dropped for those of one step after another."""
    scheduler = DDIMSchedulerCustom()
    monkeypatch.setattr(fitting, "polish", lambda few, weights, blocks, rounds: weights)
    wanted = fit(mixture(scheduler), scheduler, draw, [5], **SETTINGS)
    monkeypatch.setattr(fitting, "polish", lambda few, weights, blocks, rounds: [[2.0, 0.0, 0.0] for _ in weights])
    assert fit(mixture(scheduler), scheduler, draw, [5], **SETTINGS) == wanted


def test_slopes_are_those_of_the_whole_walk():
    """The change of the images with each weight, for which steps before it are not taken again, is that of walks from
    the noise."""
    scheduler = DDIMSchedulerCustom(clip_sample=False)
    steps = FewSteps(mixture(scheduler), scheduler, [900, 600, 300, 100, 20], tqdm(disable=True))
    block = Block(range(3), False, draw(range(3)))
    block.images = torch.zeros(3, 1, 4, 4)
    weights = [[1.0, 0.0, 0.0], [1.2, -0.2, 0.0], [1.5, -0.7, 0.2], [1.1, -0.2, 0.1], [1.0, 0.0, 0.0]]
    rows = polishing._slopes_and_distance(steps, block, weights)
    places = [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2)]
    assert len(rows) == len(places) + 1

    def images(w):
        return steps.walk(block, w).clamp(-1, 1).double().flatten().numpy()

    assert np.array_equal(rows[-1], images(weights))
    for row, (k, j) in zip(rows, places, strict=False):
        changed = [list(w) for w in weights]
        changed[k][j] += polishing.CHANGE
        assert np.allclose(row, (images(changed) - images(weights)) / polishing.CHANGE, atol=1e-5), (k, j)


def test_the_bar_knows_how_long_it_takes():
    """The images that pass through the network are at most those that were announced, and most of them, whatever part
    of the fit is the longest."""

    class Bar(tqdm):
        announced = None

        def update(self, n=1):
            self.announced = self.announced or self.total
            self.count = getattr(self, "count", 0) + n

    scheduler = DDIMSchedulerCustom()
    for steps in ([5], [10, 20], [25]):
        bar = Bar(disable=True)
        fit(mixture(scheduler), scheduler, draw, steps, bar=bar, max_batch_size=7, **SETTINGS)
        assert 0.6 * bar.announced < bar.count <= bar.announced


def test_half_precision_is_fitted_as_it_is_sampled():
    """With states in float16 and a first step where 1 / sqrt(alpha) is 20,291, the certificate is what the pipeline's
    own scheduler makes of the schedule."""
    scheduler = DDIMSchedulerCustom(beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing")
    network = mixture(scheduler)

    def noises(numbers):
        return draw(numbers).half()

    fitted = fit(network, scheduler, noises, [5], num_images=16, teacher_steps=50)
    schedule, certificate = fitted[5]
    x = noises(range(8, 16))
    teacher = sample_plainly(network, scheduler, 50, x)
    scheduler.set_timesteps(timesteps=schedule.timesteps, weights=schedule.weights)
    for t in schedule.timesteps:
        x = scheduler.step(network(x, torch.tensor(t)), t, x).prev_sample
    pixels, wanted = ((y.double() / 2 + 0.5).clamp(0, 1) for y in (x, teacher))
    assert certificate["calibrated 5"]["rms"] == pytest.approx(rms(pixels - wanted), rel=0.05)


def test_no_number_is_worse_than_any_other():
    """Images that are not finite have an infinite error, and are never kept."""
    teacher = {"rms": 0.0, "std": 0.3, "bands": [0.04, 0.04, 0.01]}
    assert error({"rms": math.nan, "std": math.nan, "bands": [math.nan] * 3}, teacher) == math.inf
