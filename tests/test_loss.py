"""The training loss against formulas written out here in float64."""

import pytest
import torch

from ddim_hf import DDIMSchedulerCustom
from ddim_hf.loss import Objective, min_snr_weights

KINDS = ("epsilon", "v_prediction", "sample")


class Guess(torch.nn.Module):
    """A network whose answer is known: half of x_t."""

    def forward(self, x_t, timesteps, return_dict):
        return (x_t / 2,)


@pytest.mark.parametrize("gamma", [None, 5.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_papers(kind, gamma):
    """The loss is the mean squared error to eps, v or x_0, each timestep weighted by min-SNR where asked for."""
    torch.manual_seed(0)
    scheduler = DDIMSchedulerCustom(prediction_type=kind)
    x0, noise, t = torch.randn(6, 3, 4, 4), torch.randn(6, 3, 4, 4), torch.tensor([0, 10, 200, 500, 800, 999])
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha = torch.cumprod(1 - betas, 0)[t].view(-1, 1, 1, 1)
    x_t = alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise
    target = {
        "epsilon": noise.double(),
        "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * x0,
        "sample": x0.double(),
    }[kind]
    errors = (x_t / 2 - target).square().mean((1, 2, 3))
    snr = (alpha / (1 - alpha)).flatten()
    if gamma is not None:
        least = torch.minimum(snr, torch.tensor(gamma))
        errors = errors * {"epsilon": least / snr, "v_prediction": least / (snr + 1), "sample": least}[kind]
    loss = Objective(scheduler, gamma)(Guess(), x0, t, noise)
    assert loss.item() == pytest.approx(errors.mean().item(), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_weigh_the_same_error_in_x0_alike(kind):
    """Whatever is predicted, an error in x_0 is weighted by min(SNR, gamma): the three kinds agree."""
    scheduler = DDIMSchedulerCustom(prediction_type=kind)
    alpha = scheduler.alphas_cumprod.double()
    squared = {"epsilon": alpha / (1 - alpha), "v_prediction": 1 / (1 - alpha), "sample": torch.ones_like(alpha)}
    assert torch.allclose(
        min_snr_weights(scheduler, 5.0).double() * squared[kind], (alpha / (1 - alpha)).clamp(max=5), rtol=1e-4
    )


def test_a_half_precision_answer_is_compared_in_float32():
    """Noise, target and loss are float32 when the network answers in bfloat16."""

    class Half(Guess):
        def forward(self, x_t, timesteps, return_dict):
            return (x_t.bfloat16(),)

    x0, noise = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    assert Objective(DDIMSchedulerCustom())(Half(), x0, torch.tensor([1, 2]), noise).dtype == torch.float32
