"""The training loss: DDPM's L_simple (Ho et al. 2020, eq. 14), the DDIM paper's L_1 (eq. 5), and its reweightings."""

import math
from collections.abc import Callable

import torch

from .scheduling_ddim_custom import DDIMSchedulerCustom


class Objective:
    """The mean squared error of what a network predicts, as a function of a batch.

    Args:
        scheduler: gives x_t, and with its prediction_type what is to be predicted: eps, v or x_0.
        snr_gamma: weight each timestep by min-SNR (Hang et al. 2023).
        weighting: or by one of WEIGHTINGS; with neither all timesteps weigh alike.

    Raises:
        ValueError: another weighting, both at once, or one timestep that counts more than all others.
    """

    def __init__(self, scheduler: DDIMSchedulerCustom, snr_gamma: float | None = None, weighting: str | None = None):
        if snr_gamma is not None and weighting is not None:
            raise ValueError(f"snr_gamma {snr_gamma} is given with weighting {weighting!r}; allowed: one of them")
        self.scheduler = scheduler
        self.weights = None
        if snr_gamma is not None:
            self.weights = min_snr_weights(scheduler, snr_gamma)
        elif weighting is not None:
            self.weights = named_weights(scheduler, weighting)

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


# More weight at the noise end than min-SNR gives: what an error in eps counts there, by alpha, and what one in v does.
WEIGHTINGS = {
    # 1 / (1 + SNR) = 1 - alpha: less weight where little noise is left  (P2, Choi et al. 2022, eq. 8, k = gamma = 1)
    "p2": (lambda alpha: 1 - alpha, 0.0),
    # (1 + SNR) / SNR = 1 / alpha of eps  (Salimans and Ho 2022, "SNR + 1")
    "v": (torch.zeros_like, 1.0),
    # 1 + 0.1 / alpha of eps: the noise end counts, and what draws detail counts more.
    "eps+v/10": (torch.ones_like, 0.1),
}


def named_weights(scheduler: DDIMSchedulerCustom, weighting: str) -> torch.Tensor:
    """Return the weight of each timestep, float32 [T], by one of WEIGHTINGS; ValueError where one exceeds the
    sum of the others."""
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting is {weighting!r}; allowed: {', '.join(WEIGHTINGS)}")
    alpha = scheduler.alphas_cumprod.cpu().double()
    kind = scheduler.config.prediction_type
    # The squared error of eps is that of v times alpha, and that of x_0 times SNR.
    of_eps = {"epsilon": 1, "v_prediction": alpha, "sample": alpha / (1 - alpha)}[kind]
    of_v = {"epsilon": 1 / alpha, "v_prediction": torch.ones_like(alpha), "sample": 1 / (1 - alpha)}[kind]
    in_eps, in_v = WEIGHTINGS[weighting]
    weights = in_eps(alpha) * of_eps
    if in_v:
        weights = weights + in_v * of_v
    if not weights.isfinite().all() or weights.max() > weights.sum() / 2:
        raise ValueError(
            f"weighting is {weighting!r} with a schedule that ends without signal, or all but: one timestep would "
            "count more than all others; allowed: predict v"
        )
    return weights.float()


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
