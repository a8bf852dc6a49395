"""The training loss: DDPM's L_simple (Ho et al. 2020, eq. 14), the DDIM paper's L_1 (eq. 5), and its reweightings."""

import torch

from .scheduling_ddim_custom import DDIMSchedulerCustom


class Objective:
    """The mean squared error of what the network predicts, as a function of a batch.

    Args:
        scheduler: gives x_t, and with its prediction_type what is to be predicted.
        snr_gamma: weight each timestep by min-SNR (Hang et al. 2023); None weights all alike.
        channels_last: lay x_t out channels-last.
    """

    def __init__(self, scheduler: DDIMSchedulerCustom, snr_gamma: float | None = None, channels_last: bool = False):
        self.scheduler, self.kind = scheduler, scheduler.config.prediction_type
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.weights = None if snr_gamma is None else min_snr_weights(scheduler, snr_gamma)

    def __call__(
        self, network: torch.nn.Module, x0: torch.Tensor, timesteps: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss, a float32 scalar; x0 and noise are [B, C, H, W], timesteps [B] in [0, T)."""
        x_t = self.scheduler.add_noise(x0, noise, timesteps).to(memory_format=self.memory_format)
        prediction = network(x_t, timesteps, return_dict=False)[0].float()
        if self.kind == "epsilon":
            target = noise
        elif self.kind == "sample":
            target = x0
        else:
            target = self.scheduler.get_velocity(x0, noise, timesteps)
        if self.weights is None:
            return torch.nn.functional.mse_loss(prediction, target)
        self.weights = self.weights.to(x0.device)
        return ((prediction - target).square().flatten(1).mean(1) * self.weights[timesteps]).mean()


def min_snr_weights(scheduler: DDIMSchedulerCustom, gamma: float) -> torch.Tensor:
    """Return the weight of each timestep, float32 [T]: min(SNR, gamma) over SNR for eps, over SNR + 1 for v.

    Hang et al. 2023, section 3.4; for x_0 the weight is min(SNR, gamma) itself.
    """
    alpha = scheduler.alphas_cumprod.double()
    snr = alpha / (1 - alpha)
    denominator = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
    return (snr.clamp(max=gamma) / denominator[scheduler.config.prediction_type]).float()
