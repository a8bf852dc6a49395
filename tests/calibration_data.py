"""Data of which everything is known, and what the formulas make of a schedule on them."""

import math

import torch

from ddim_hf.calibration import fit_schedules

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


def fit(*args, **settings) -> dict:
    """What `fit_schedules` yields, by S."""
    return dict(fit_schedules(*args, **settings))
