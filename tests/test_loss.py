"""The training loss against formulas written out here in float64."""

import itertools
import re

import pytest
import torch

from ddim_hf import DDIMSchedulerCustom
from ddim_hf.loss import Objective, min_snr_weights, noise_errors

KINDS = ("epsilon", "v_prediction", "sample")


def guess(x_t, timesteps):
    """A network whose answer is known: half of x_t."""
    return x_t / 2


def batch():
    """x_0, noise and timesteps of a batch; alpha of those timesteps, in float64."""
    torch.manual_seed(0)
    x0, noise, t = torch.randn(6, 3, 4, 4), torch.randn(6, 3, 4, 4), torch.tensor([0, 10, 200, 500, 800, 999])
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return x0, noise, t, torch.cumprod(1 - betas, 0)[t].view(-1, 1, 1, 1)


@pytest.mark.parametrize("gamma", [None, 5.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_papers(kind, gamma):
    """The loss is the mean squared error to eps, v or x_0, each timestep weighted by min-SNR where asked for."""
    x0, noise, t, alpha = batch()
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
    objective = Objective(DDIMSchedulerCustom(prediction_type=kind), gamma)
    assert objective.errors(guess, x0, t, noise).tolist() == pytest.approx(errors.tolist(), rel=1e-3)
    assert objective(guess, x0, t, noise).item() == pytest.approx(errors.mean().item(), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_of_the_noise_whatever_is_predicted(kind):
    """noise_errors is each image's squared error of the eps that follows from the prediction and x_t."""
    x0, noise, t, alpha = batch()
    x_t = alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise
    eps = {
        "epsilon": x_t / 2,
        "v_prediction": alpha.sqrt() * x_t / 2 + (1 - alpha).sqrt() * x_t,
        "sample": (x_t - alpha.sqrt() * x_t / 2) / (1 - alpha).sqrt(),
    }[kind]
    errors = noise_errors(guess, DDIMSchedulerCustom(prediction_type=kind), x0, t, noise)
    assert errors.tolist() == pytest.approx((eps - noise).square().mean((1, 2, 3)).tolist(), rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_named_weightings_are_those_of_their_papers(kind):
    """Whatever is predicted, p2 weighs each image's error of eps by 1 / (1 + SNR), and v by (1 + SNR) / SNR, which
    makes it the error of v; eps+v/10 is the sum that its name says; both at once with min-SNR, and infinite weights,
    are refused."""
    x0, noise, t, alpha = batch()
    scheduler, snr = DDIMSchedulerCustom(prediction_type=kind), (alpha / (1 - alpha)).flatten()
    errors = noise_errors(guess, scheduler, x0, t, noise).double()
    for name, weights in {
        "p2": 1 / (1 + snr),
        "v": (1 + snr) / snr,
        "eps+v/10": 1 + (1 + snr) / snr / 10,
    }.items():
        got = Objective(scheduler, weighting=name).errors(guess, x0, t, noise)
        assert got.tolist() == pytest.approx((errors * weights).tolist(), rel=1e-3)
    with pytest.raises(ValueError, match="snr_gamma 5.0 is given with weighting 'p2'; allowed: one of them"):
        Objective(scheduler, 5.0, "p2")
    ending = DDIMSchedulerCustom(prediction_type=kind, rescale_betas_zero_snr=True)
    if kind == "v_prediction":
        assert Objective(ending, weighting="v").weights.eq(1).all()
        assert Objective(ending, weighting="eps+v/10").weights.isfinite().all()
    if kind == "epsilon":
        assert Objective(ending, weighting="p2").weights.isfinite().all()
        cosine = DDIMSchedulerCustom(prediction_type=kind, beta_schedule="squaredcos_cap_v2")
        for name, scheduler in itertools.product(("v", "eps+v/10"), (ending, cosine)):
            with pytest.raises(ValueError, match=f"{re.escape(repr(name))} with a schedule that ends without signal"):
                Objective(scheduler, weighting=name)


def test_weights_at_no_signal_are_finite():
    """Where alpha is 0, as at the end of a schedule of zero terminal SNR, eps counts once and v and x_0 not at all."""
    for kind, weight in (("epsilon", 1.0), ("v_prediction", 0.0), ("sample", 0.0)):
        scheduler = DDIMSchedulerCustom(prediction_type=kind, rescale_betas_zero_snr=True)
        for gamma in (5.0, float("inf")):
            weights = min_snr_weights(scheduler, gamma)
            assert weights.isfinite().all() and weights[-1].item() == pytest.approx(weight, abs=1e-6)


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
    x0, noise, t, _ = batch()
    loss = Objective(DDIMSchedulerCustom())(lambda x_t, timesteps: x_t.bfloat16(), x0, t, noise)
    assert loss.dtype == torch.float32
