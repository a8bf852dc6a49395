"""Betas, and the timesteps that are not evenly spaced."""

import numpy as np
import torch


def make_betas(
    num_train_timesteps: int, beta_start: float, beta_end: float, beta_schedule: str, trained_betas=None
) -> torch.Tensor:
    """Return the [T] betas of a schedule in float32; ValueError for trained_betas that are not T values in (0, 1]."""
    if num_train_timesteps < 1:
        raise ValueError(f"num_train_timesteps is {num_train_timesteps}; allowed: whole numbers from 1")
    if trained_betas is not None:
        betas = torch.as_tensor(trained_betas, dtype=torch.float32)
        if betas.shape != (num_train_timesteps,) or not ((betas > 0) & (betas <= 1)).all():
            raise ValueError(
                f"trained_betas has shape {tuple(betas.shape)} and values from {betas.min()} to {betas.max()}; "
                f"allowed: num_train_timesteps ({num_train_timesteps}) values in (0, 1]"
            )
        return betas
    if beta_schedule == "linear":
        return torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float32)
    if beta_schedule == "scaled_linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float32) ** 2
    # Nichol and Dhariwal 2021, eq. 17: alpha follows a squared cosine, betas are capped at 0.999.
    t = np.arange(num_train_timesteps + 1) / num_train_timesteps
    alpha = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    return torch.tensor(np.minimum(1 - alpha[1:] / alpha[:-1], 0.999), dtype=torch.float32)


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
        ascending.append(max(4 * total * i * i // (5 * (steps - 1) ** 2), lowest))
    ascending = [min(t, total - steps + i) for i, t in enumerate(ascending)]
    return ascending[::-1]
