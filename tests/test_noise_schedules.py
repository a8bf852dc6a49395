"""Betas and quadratic tau, held against their definitions in float64 and against diffusers' own betas."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr as stock_rescale

from ddim_hf.noise_schedules import betas_of, make_betas, quadratic_timesteps, rescale_zero_terminal_snr


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("total", [1, 2, 60, 1000])
def test_betas_are_stocks(schedule, total):
    """Each schedule has stock's betas within 1e-6, for any T."""
    stock = DDIMScheduler(total, 0.00085, 0.012, schedule).betas
    torch.testing.assert_close(make_betas(total, 0.00085, 0.012, schedule), stock, rtol=1e-6, atol=1e-8)


def test_trained_betas_have_their_own_number():
    """Betas given one by one are taken as they are, whatever num_train_timesteps says."""
    assert make_betas(1000, 0.1, 0.2, "linear", np.array([0.25, 0.5])).tolist() == [0.25, 0.5]


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_zero_terminal_snr_is_stocks(schedule):
    """Rescaled betas end at alpha 0, keep the first alpha within float32's rounding, and are stock's within 1e-6."""
    betas = make_betas(1000, 1e-4, 0.02, schedule)
    rescaled = rescale_zero_terminal_snr(betas)
    assert rescaled[-1] == 1 and rescaled[0] == pytest.approx(betas[0].item(), abs=3e-7)
    torch.testing.assert_close(rescaled, stock_rescale(betas), rtol=0, atol=1e-6)


def test_betas_come_back_from_their_product():
    """betas_of inverts the cumulative product within float32's precision, with alphas of 0 at the end too."""
    for betas in (make_betas(1000, 1e-4, 0.02, "linear"), torch.tensor([0.25, 0.5, 1.0, 1.0])):
        alphas_cumprod = torch.cumprod(1 - betas.double(), 0)
        torch.testing.assert_close(betas_of(alphas_cumprod), betas, rtol=1e-6, atol=0)
        torch.testing.assert_close(torch.cumprod(1 - betas_of(alphas_cumprod).double(), 0), alphas_cumprod)


def test_quadratic_timesteps_are_the_papers():
    """Quadratic tau_i is floor(c i^2) up to 0.8 T, and has S different timesteps in [0, T) for all S."""
    for steps in (2, 10, 20, 28):
        wanted = [math.floor(800 * i**2 / (steps - 1) ** 2) for i in range(steps)]
        assert quadratic_timesteps(steps, 1000)[::-1] == wanted
    for steps in range(1, 1001):
        tau = np.array(quadratic_timesteps(steps, 1000))
        assert len(tau) == steps and (np.diff(tau) < 0).all() and 0 <= tau[-1] and tau[0] < 1000
        assert tau[0] == max(800, steps - 1)
