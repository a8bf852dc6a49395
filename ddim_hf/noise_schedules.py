"""Noise schedules: the betas of each kind, zero terminal SNR, and the paper's quadratic tau.

beta_t is the variance of the noise that timestep t adds; alpha_t = (1 - beta_0) ... (1 - beta_t) is what diffusers
calls `alphas_cumprod`. Timesteps count from 0 to T - 1.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch


def make_betas(
    num_train_timesteps: int,
    beta_start: float,
    beta_end: float,
    beta_schedule: str,
    trained_betas: Sequence[float] | None = None,
) -> torch.Tensor:
    """Return the betas of a schedule, float32 [T]; `trained_betas` are their own, of any length T.

    Raises ValueError for an empty schedule and for betas that are negative or not finite. Betas above 1 pass, as in
    diffusers: the steps that they spoil are refused where they are taken.
    """
    if trained_betas is not None:
        betas = torch.as_tensor(trained_betas, dtype=torch.float32)
        if betas.ndim != 1 or len(betas) == 0:
            raise ValueError(f"trained_betas has shape {tuple(betas.shape)}; allowed: a list of at least one value")
    elif num_train_timesteps < 1:
        raise ValueError(f"num_train_timesteps is {num_train_timesteps}; allowed: whole numbers from 1")
    elif beta_schedule == "linear":
        betas = torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float32)
    elif beta_schedule == "scaled_linear":
        # linear in sqrt(beta); a negative beta, which has none, is refused below
        roots = (beta**0.5 if beta >= 0 else math.nan for beta in (beta_start, beta_end))
        betas = torch.linspace(*roots, num_train_timesteps, dtype=torch.float32) ** 2
    else:
        betas = cosine_betas(num_train_timesteps)
    if not (betas.isfinite() & (betas >= 0)).all():
        raise ValueError(f"betas from {betas.min():.3g} to {betas.max():.3g}; allowed: finite values from 0")
    return betas


def cosine_betas(num_train_timesteps: int) -> torch.Tensor:
    """Return the betas of the cosine schedule, float32 [T] (Nichol and Dhariwal 2021, eq. 17)."""
    t = np.arange(num_train_timesteps + 1) / num_train_timesteps
    # alpha(t) = cos((t + s) / (1 + s) pi / 2)^2 with s = 0.008, up to a factor that cancels in beta
    alpha = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    # beta = 1 - alpha(t) / alpha(t - 1), at most 0.999
    return torch.tensor(np.minimum(1 - alpha[1:] / alpha[:-1], 0.999), dtype=torch.float32)


def betas_of(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """Return the betas, float32 [T], of which `alphas_cumprod` is the product."""
    # In float64, which not every device has.
    alpha = alphas_cumprod.detach().cpu().double()
    before = torch.cat([torch.ones_like(alpha[:1]), alpha[:-1]])
    # beta_t = 1 - alpha_t / alpha_{t-1}; where alpha is 0 already, all is noise and stays so.
    return torch.where(before == 0, 1.0, 1 - alpha / before).float()


def rescale_zero_terminal_snr(betas: torch.Tensor) -> torch.Tensor:
    """Shift and scale sqrt(alpha) so that alpha_T is 0 and the first alpha stays (Lin et al. 2023, algorithm 1)."""
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    alpha = ((root - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([alpha[:1], alpha[1:] / alpha[:-1]])


def quadratic_timesteps(steps: int, total: int) -> list[int]:
    """Return the paper's tau_i = floor(c i^2) (appendix D.2), descending, with c such that it ends at 0.8 T.

    Where neighbours would coincide (many steps) they are moved apart to the nearest free timesteps, so that there are
    always `steps` different ones in [0, total). A single step starts at 0.8 T.
    """
    last = 4 * total // 5
    if steps == 1:
        return [last]
    ascending = []
    for i in range(steps):
        lowest = ascending[-1] + 1 if ascending else 0
        # floor(c i^2) with c = 0.8 T / (S - 1)^2, in whole numbers
        ascending.append(max(4 * total * i * i // (5 * (steps - 1) ** 2), lowest))
    # Those pushed beyond T - 1 move back, as little as leaves room for the ones above them.
    ascending = [min(t, total - steps + i) for i, t in enumerate(ascending)]
    return ascending[::-1]
