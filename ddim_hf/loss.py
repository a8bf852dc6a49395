"""The training loss: DDPM's L_simple (Ho et al. 2020, eq. 14), the DDIM paper's L_1 (eq. 5), and its reweightings."""

import math
from collections.abc import Callable

import torch

from .scheduling_ddim_custom import DDIMSchedulerCustom


class Objective:
    """The mean squared error of what a network predicts, as a function of a batch.

    Args:
        scheduler: gives x_t, and with its prediction_type what is to be predicted: eps, v or x_0.
        snr_gamma: weight each timestep by min-SNR (Hang et al. 2023); None weights all alike.
    """

    def __init__(self, scheduler: DDIMSchedulerCustom, snr_gamma: float | None = None):
        self.scheduler = scheduler
        self.weights = None if snr_gamma is None else min_snr_weights(scheduler, snr_gamma)

    def __call__(
        self, predict: Callable, x0: torch.Tensor, timesteps: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss, a float32 scalar: the mean of `errors`."""
        return self.errors(predict, x0, timesteps, noise).mean()

    def errors(
        self, predict: Callable, x0: torch.Tensor, timesteps: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Return each image's weighted error, float32 [B].

        Args:
            predict: called as predict(x_t, timesteps); what it returns is compared in float32.
            x0, noise: [B, C, H, W].
            timesteps: int64 [B] in [0, T).
        """
        # x_t = sqrt(alpha_t) x_0 + sqrt(1 - alpha_t) eps  (eq. 4)
        x_t = self.scheduler.add_noise(x0, noise, timesteps)
        prediction = predict(x_t, timesteps).float()
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            target = noise
        elif kind == "sample":
            target = x0
        else:
            target = self.scheduler.get_velocity(x0, noise, timesteps)
        errors = (prediction - target).square().flatten(1).mean(1)
        if self.weights is None:
            return errors
        self.weights = self.weights.to(x0.device)
        return errors * self.weights[timesteps]


def noise_errors(
    predict: Callable,
    scheduler: DDIMSchedulerCustom,
    x0: torch.Tensor,
    timesteps: torch.Tensor,
    noise: torch.Tensor,
) -> torch.Tensor:
    """Return each image's mean squared error of eps, float32 [B], whatever the network predicts.

    The arguments are those of `Objective.errors`.
    """
    # An error in x_0 is one in eps times 1 / SNR: without a bound on the SNR, min-SNR's weights give eps's own error.
    return Objective(scheduler, snr_gamma=math.inf).errors(predict, x0, timesteps, noise)


def min_snr_weights(scheduler: DDIMSchedulerCustom, gamma: float) -> torch.Tensor:
    """Return the weight of each timestep, float32 [T], with which an error in x_0 counts min(SNR, gamma) times.

    Hang et al. 2023, section 3.4.
    """
    # SNR = alpha / (1 - alpha)
    alpha = scheduler.alphas_cumprod.cpu().double()
    snr = alpha / (1 - alpha)
    # The squared error of x_0 is that of the prediction over SNR for eps, over SNR + 1 for v.
    weights = {
        "epsilon": (gamma / snr).clamp(max=1),
        "v_prediction": snr.clamp(max=gamma) / (snr + 1),
        "sample": snr.clamp(max=gamma),
    }
    return weights[scheduler.config.prediction_type].float()
