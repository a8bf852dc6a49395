"""The scheduler, held against the paper's formulas in float64 and against stock where stock is right."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from ddim_hf import DDIMSchedulerCustom

T = 1000
SPACINGS = ("leading", "trailing", "linspace")
# linear schedule of the paper, from its definition and in float64 throughout
ALPHAS = np.cumprod(1 - np.linspace(1e-4, 0.02, T))


def oracle(x, output, alpha, alpha_prev, eta=0.0, noise=0.0, prediction_type="epsilon", clip=None, rederive=False):
    """x at tau_{i-1} and the predicted x_0, in float64, from eq. 9, 12 and 16."""
    if prediction_type == "epsilon":
        x0, eps = np.sqrt(1 / alpha) * x - np.sqrt(1 / alpha - 1) * output, output
    elif prediction_type == "sample":
        x0, eps = output, (x - np.sqrt(alpha) * output) / np.sqrt(1 - alpha)
    else:
        x0 = np.sqrt(alpha) * x - np.sqrt(1 - alpha) * output
        eps = np.sqrt(alpha) * output + np.sqrt(1 - alpha) * x
    x0 = x0 if clip is None else np.clip(x0, -clip, clip)
    eps = (x - np.sqrt(alpha) * x0) / np.sqrt(1 - alpha) if rederive else eps
    sigma = eta * np.sqrt((1 - alpha_prev) / (1 - alpha)) * np.sqrt(1 - alpha / alpha_prev)
    mean = np.sqrt(alpha_prev) * x0 + np.sqrt(np.maximum(1 - alpha_prev - sigma**2, 0)) * eps
    return mean + sigma * noise, x0


def transitions(scheduler):
    """(tau_i, alpha at tau_i, alpha at tau_{i-1}) of each step, alphas as float64 columns of the oracle's."""
    tau = scheduler.timesteps.numpy()
    return tau, ALPHAS[tau][:, None], np.append(ALPHAS[tau[1:]], 1.0)[:, None]


def error(got, wanted):
    """Largest difference, relative to the largest value wanted."""
    got, wanted = (np.asarray(value, dtype=np.float64) for value in (got, wanted))
    assert got.shape == wanted.shape
    return np.abs(got - wanted).max() / np.abs(wanted).max()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The schedule


@pytest.mark.parametrize("spacing", SPACINGS)
def test_each_spacing_has_its_definition(spacing):
    """For every S, tau is S strictly decreasing ints in [0, T), each within rounding of the spacing's definition."""
    scheduler = DDIMSchedulerCustom(timestep_spacing=spacing)
    for steps in range(1, T + 1):
        scheduler.set_timesteps(steps)
        tau = scheduler.timesteps.numpy()
        i = np.arange(steps)[::-1]
        exact = {
            "leading": i * (T // steps),
            "trailing": (i + 1) * T / steps - 1,
            "linspace": i * (T - 1) / max(steps - 1, 1),
        }[spacing]
        assert scheduler.num_inference_steps == len(tau) == steps
        assert np.abs(tau - exact).max() <= (0 if spacing == "leading" else 0.5 + 1e-9)
        assert 0 <= tau[-1] and tau[0] < T and (np.diff(tau) < 0).all()


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("total", [1, 2, 7, 64])
def test_short_diffusions_have_every_number_of_steps(spacing, total):
    """With few training timesteps too, each S gives S different timesteps in [0, T), quadratic ones as well."""
    for skip_type in ("uniform", "quad"):
        scheduler = DDIMSchedulerCustom(num_train_timesteps=total, timestep_spacing=spacing, skip_type=skip_type)
        for steps in range(1, total + 1):
            scheduler.set_timesteps(steps)
            tau = scheduler.timesteps.tolist()
            assert len(set(tau)) == steps and tau == sorted(tau, reverse=True) and 0 <= tau[-1] and tau[0] < total


@pytest.mark.parametrize("spacing, surplus", [("leading", 0), ("trailing", 62), ("linspace", 0)])
def test_timesteps_are_stocks_without_the_surplus(spacing, surplus):
    """Timesteps equal stock's for every S, less the -1 that stock's trailing spacing adds for 62 of them."""
    ours, stock = DDIMSchedulerCustom(timestep_spacing=spacing), DDIMScheduler(timestep_spacing=spacing)
    longer = 0
    for steps in range(1, T + 1):
        ours.set_timesteps(steps)
        stock.set_timesteps(steps)
        assert ours.timesteps.tolist() == stock.timesteps.tolist()[:steps]
        assert stock.timesteps.tolist()[steps:] in ([], [-1])
        longer += len(stock.timesteps) > steps
    assert longer == surplus


@pytest.mark.parametrize(
    "spacing, wrong, unfinished", [("leading", 0, 0), ("trailing", 984, 372), ("linspace", 998, 0)]
)
def test_stock_takes_wrong_transitions(spacing, wrong, unfinished):
    """Stock's tau_{i-1} = t - T // S is off its own schedule for 984 trailing counts, where 372 end short of the data,
    and for 998 linspace ones; ours ends at the data for all."""
    ours, stock = DDIMSchedulerCustom(timestep_spacing=spacing), DDIMScheduler(timestep_spacing=spacing)
    off, short = 0, 0
    x0, eps = torch.full((1, 1, 1, 1), 0.5), torch.ones(1, 1, 1, 1)
    for steps in range(1, T + 1):
        ours.set_timesteps(steps)
        stock.set_timesteps(steps)
        tau = stock.timesteps.tolist()
        off += any(max(t - T // steps, -1) != following for t, following in zip(tau, tau[1:] + [-1], strict=True))
        for scheduler in (stock, ours):
            last = scheduler.timesteps[-1]
            x = scheduler.add_noise(x0, eps, last[None])
            reached = abs(scheduler.step(eps, last, x).prev_sample.item() - 0.5) < 1e-4
            assert reached or scheduler is stock
            short += not reached
    assert (off, short) == (wrong, unfinished)


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_explicit_timesteps_are_the_schedule(kind):
    """Explicit timesteps are taken as they are, and each step goes to the next of them."""
    scheduler = DDIMSchedulerCustom(clip_sample=False)
    scheduler.set_timesteps(timesteps=kind([901, 37, 36, 5]))
    assert scheduler.timesteps.tolist() == [901, 37, 36, 5] and scheduler.num_inference_steps == 4
    tau, alpha, alpha_prev = transitions(scheduler)
    x, output = draw(2, 1, 2, 2), draw(2, 1, 2, 2, seed=1)
    for t, a, a_prev in zip(tau, alpha[:, 0], alpha_prev[:, 0], strict=True):
        wanted, _ = oracle(x.double().numpy(), output.double().numpy(), a, a_prev)
        assert error(scheduler.step(output, t, x).prev_sample, wanted) < 2e-5


def test_timestep_off_the_schedule_steps_to_the_next_below():
    """A timestep that is not on the schedule steps to the largest scheduled one below it, or else to the data."""
    scheduler = DDIMSchedulerCustom(clip_sample=False)
    scheduler.set_timesteps(timesteps=[800, 300, 100])
    x, output = draw(1, 1, 2, 2), draw(1, 1, 2, 2, seed=1)
    for t, below in ((999, 800), (799, 300), (101, 100), (50, None), (0, None)):
        alpha_prev = 1.0 if below is None else ALPHAS[below]
        wanted, _ = oracle(x.double().numpy(), output.double().numpy(), ALPHAS[t], alpha_prev)
        assert error(scheduler.step(output, t, x).prev_sample, wanted) < 2e-5


# The transition


@pytest.mark.parametrize("spacing", SPACINGS)
@torch.inference_mode()
def test_every_transition_of_every_number_of_steps_is_exact(spacing):
    """Each transition of S = 1..1000 is within 2e-5 of the formulas, with eta 0, 0.4 and 1 in turn; one from the same
    timestep to the same one at the same eta is taken once (each S has its spacing, as the test above says)."""
    scheduler = DDIMSchedulerCustom(clip_sample=False, timestep_spacing=spacing)
    x, output, noise = draw(T, 2), draw(2, seed=1), draw(2, seed=2)
    rows, x64 = x.unbind(), x.double().numpy()
    worst, seen, count = 0.0, set(), 0
    for steps in range(1, T + 1):
        scheduler.set_timesteps(steps)
        tau, alpha, alpha_prev = transitions(scheduler)
        eta = (0.0, 0.4, 1.0)[steps % 3]
        keys = [(t, below, eta) for t, below in zip(tau.tolist(), [*tau[1:].tolist(), None], strict=True)]
        new = [i for i, key in enumerate(keys) if key not in seen]
        if not new:
            continue
        seen.update(keys)
        got = [scheduler.step(output, t, rows[t], eta, False, None, noise, False)[0] for t in tau[new].tolist()]
        steps_at = tau[new], alpha[new], alpha_prev[new]
        wanted, _ = oracle(x64[steps_at[0]], output.double().numpy(), *steps_at[1:], eta, noise.double().numpy())
        scale = np.abs(wanted).max(1, keepdims=True)
        worst = max(worst, (np.abs(torch.stack(got).double().numpy() - wanted) / scale).max())
        count += len(got)
    assert worst < 2e-5 and 10_000 < count == len(seen)


@torch.inference_mode()
def test_every_transition_equals_stocks_where_stock_is_right():
    """With leading spacing, each transition of each S gives stock's prev_sample and x_0 within 1e-5, eta 0 and 1."""
    ours, stock = DDIMSchedulerCustom(), DDIMScheduler()
    x, output, noise = draw(1, 1, 2, 2), draw(1, 1, 2, 2, seed=1), draw(1, 1, 2, 2, seed=2)
    seen = set()  # stock's transition is a function of t and T // S alone
    for steps in range(1, T + 1):
        ours.set_timesteps(steps)
        stock.set_timesteps(steps)
        tau = ours.timesteps.tolist()
        for t in tau[:1] + [t for t in tau if (t, T // steps) not in seen]:
            eta = t % 2
            got = ours.step(output, t, x, eta=eta, variance_noise=noise, return_dict=False)
            wanted = stock.step(output, t, x, eta=eta, variance_noise=noise, return_dict=False)
            assert error(got[0], wanted[0]) < 1e-5 and error(got[1], wanted[1]) < 1e-5
            seen.add((t, T // steps))
    assert len(seen) > 4000


CONFIGS = [
    dict(),
    dict(clip_sample=False),
    dict(clip_sample_range=0.3),
    dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, set_alpha_to_one=False),
    dict(beta_schedule="squaredcos_cap_v2"),
    dict(trained_betas=np.linspace(0.001, 0.03, 60).tolist(), num_train_timesteps=60),
    dict(thresholding=True, sample_max_value=1.5, dynamic_thresholding_ratio=0.9),
    dict(thresholding=True),
    dict(prediction_type="sample"),
    dict(prediction_type="v_prediction"),
    dict(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    dict(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, beta_schedule="scaled_linear", clip_sample=False
    ),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: "-".join(map(str, config)) or "default")
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_every_config_key_means_what_it_means_in_stock(config, eta):
    """With the same config, generator and arguments, each step and the forward process equal stock's within 1e-5, and
    the predicted x_0, in which float32's rounding is 1 / sqrt(alpha) times as large, within 2e-5."""
    ours, stock = DDIMSchedulerCustom(**config), DDIMScheduler(**config)
    assert torch.equal(ours.alphas_cumprod, stock.alphas_cumprod) or error(ours.betas, stock.betas) < 1e-6
    for steps in (1, 7, 50):
        for rederive in (False, True):
            ours.set_timesteps(steps)
            stock.set_timesteps(steps)
            generators = [torch.Generator().manual_seed(steps) for _ in range(2)]
            assert ours.timesteps.tolist() == stock.timesteps.tolist()
            x = draw(2, 3, 4, 4)
            for i, t in enumerate(stock.timesteps):
                output = draw(2, 3, 4, 4, seed=i + 1)
                got = ours.step(output, t, x, eta, rederive, generators[0])
                wanted = stock.step(output, t, x, eta, rederive, generators[1])
                assert error(got.pred_original_sample, wanted.pred_original_sample) < 2e-5
                assert error(got.prev_sample, wanted.prev_sample) < 1e-5
                x = wanted.prev_sample
    t = torch.tensor([0, 31])
    for name in ("add_noise", "get_velocity"):
        got, wanted = (getattr(scheduler, name)(x, output, t) for scheduler in (ours, stock))
        assert error(got, wanted) < 1e-5
    assert ours.init_noise_sigma == stock.init_noise_sigma and ours.order == stock.order and len(ours) == len(stock)
    assert ours.scale_model_input(x, 3) is x


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_true_prediction_gives_the_data_back(spacing, prediction_type):
    """Given the true eps (or x_0, or v) at every step, sampling returns x_0, and predicts it at every step."""
    scheduler = DDIMSchedulerCustom(clip_sample=False, timestep_spacing=spacing, prediction_type=prediction_type)
    x0, eps = draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=1)
    for steps in (1, 3, 10, 61, 1000):
        scheduler.set_timesteps(steps)
        x = scheduler.add_noise(x0, eps, scheduler.timesteps[:1])
        for t in scheduler.timesteps:
            truth = {"epsilon": eps, "sample": x0, "v_prediction": scheduler.get_velocity(x0, eps, t)}
            x, predicted = scheduler.step(truth[prediction_type], t, x, return_dict=False)
            assert error(predicted, x0) < 1e-3  # float32's rounding of x, 158 times as large at alpha_T
        assert error(x, x0) < 1e-3


def test_x0_as_printed_does_not_invert_the_forward_process():
    """As printed (coefficient 1 / sqrt(alpha_{tau_{i-1}})) the true eps does not give x_0 back."""
    scheduler = DDIMSchedulerCustom(clip_sample=False, x0_formula="as_printed")
    scheduler.set_timesteps(50)
    x0, eps = draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=1)
    x = scheduler.add_noise(x0, eps, scheduler.timesteps[:1])
    for t, alpha, alpha_prev in zip(*(column.ravel() for column in transitions(scheduler)), strict=True):
        noised = scheduler.add_noise(x0, eps, torch.tensor([t]))
        _, predicted = scheduler.step(eps, t, noised, return_dict=False)
        printed = noised.double().numpy() / np.sqrt(alpha) - eps.double().numpy() / np.sqrt(alpha_prev)
        assert error(predicted, printed) < 2e-5
        x = scheduler.step(eps, t, x).prev_sample
    assert error(predicted, x0) > 0.5 and error(x, x0) > 0.5


def test_sigma_hat_is_ddpms_larger_variance():
    """sigma_hat adds eta sqrt(1 - alpha_i / alpha_{i-1}) noise to the mean of eq. 16, and none onto the data."""
    scheduler = DDIMSchedulerCustom(clip_sample=False, variance="sigma_hat")
    scheduler.set_timesteps(20)
    x, output, noise = draw(1, 1, 2, 2), draw(1, 1, 2, 2, seed=1), draw(1, 1, 2, 2, seed=2)
    for t, alpha, alpha_prev in zip(*(column.ravel() for column in transitions(scheduler)), strict=True):
        mean, _ = oracle(x.double().numpy(), output.double().numpy(), alpha, alpha_prev, eta=1)
        sigma_hat = np.sqrt(1 - alpha / alpha_prev) if alpha_prev < 1 else 0
        got = scheduler.step(output, t, x, eta=1, variance_noise=noise).prev_sample
        assert error(got, mean + sigma_hat * noise.double().numpy()) < 2e-5


def test_sigma_hat_leaves_the_data_alone_whatever_its_alpha():
    """With set_alpha_to_one=False too, sigma_hat adds no noise in the step onto tau_0, and adds it in all others."""
    config = dict(clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing", variance="sigma_hat")
    scheduler = DDIMSchedulerCustom(**config)
    scheduler.set_timesteps(10)
    x, output, noise = draw(1, 1, 2, 2), draw(1, 1, 2, 2, seed=1), draw(1, 1, 2, 2, seed=2)
    for t in scheduler.timesteps.tolist():
        quiet, noisy = (scheduler.step(output, t, x, 1.0, variance_noise=n).prev_sample for n in (0 * noise, noise))
        assert torch.equal(quiet, noisy) == (t == 99)


def test_eta_0_draws_no_noise():
    """At eta 0 neither the given generator nor the global one moves; at eta 1 the given one does, the global not."""
    scheduler = DDIMSchedulerCustom()
    scheduler.set_timesteps(10)
    generator = torch.Generator().manual_seed(0)
    own, everyones = generator.get_state(), torch.get_rng_state()
    scheduler.step(draw(1, 1, 2, 2), 900, draw(1, 1, 2, 2), eta=0.0, generator=generator)
    scheduler.step(draw(1, 1, 2, 2), 900, draw(1, 1, 2, 2), eta=0.0)
    assert torch.equal(generator.get_state(), own)
    scheduler.step(draw(1, 1, 2, 2), 900, draw(1, 1, 2, 2), eta=1.0, generator=generator)
    assert not torch.equal(generator.get_state(), own)
    assert torch.equal(torch.get_rng_state(), everyones)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("final", [True, False])
def test_invert_step_inverts_step(prediction_type, final):
    """invert_step undoes step for each prediction type, and predict_epsilon gives the eps that step used."""
    config = dict(clip_sample=False, set_alpha_to_one=final, timestep_spacing="trailing")
    scheduler = DDIMSchedulerCustom(prediction_type=prediction_type, **config)
    scheduler.set_timesteps(25)
    x, output = draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=1)
    for t in scheduler.timesteps.tolist():
        eps = scheduler.predict_epsilon(output, t, x)
        following, x0 = scheduler.step(output, t, x, return_dict=False)
        alpha = ALPHAS[t]
        assert error(math.sqrt(alpha) * x0.double() + math.sqrt(1 - alpha) * eps.double(), x) < 2e-5
        assert error(scheduler.invert_step(eps, t, following, prediction_type="epsilon"), x) < 2e-5
        if prediction_type == "sample" and final and t == scheduler.timesteps[-1]:
            with pytest.raises(ValueError, match="predict_epsilon"):
                scheduler.invert_step(output, t, following)
        else:
            assert error(scheduler.invert_step(output, t, following), x) < 5e-4  # v's inverse is ill-conditioned


def test_variance_is_stocks():
    """_get_variance, which trainers ask diffusers' DDIM for, is stock's between any two timesteps."""
    for config in (dict(), dict(set_alpha_to_one=False, beta_schedule="squaredcos_cap_v2")):
        ours, stock = DDIMSchedulerCustom(**config), DDIMScheduler(**config)
        for t, prev in ((0, -1), (999, 998), (980, 960), (420, 400), (99, -1), (10, 10)):
            wanted = stock._get_variance(t, prev)
            torch.testing.assert_close(ours._get_variance(t, prev), wanted, rtol=1e-3, atol=1e-7)


# The end of the cosine schedule in float16


@pytest.mark.parametrize("clip_sample", [True, False])
@pytest.mark.parametrize("variance_noise", [0.0, 1.0])
def test_float16_reaches_the_end_of_the_cosine_schedule(clip_sample, variance_noise):
    """At t = T - 1, where 1 / sqrt(alpha) is 20,291, a float16 step is float64's to float16's precision, with clipping
    and without; float16 ends at 65,504, and an x_0 beyond it does not reach x at tau_{i-1}."""
    scheduler = DDIMSchedulerCustom(beta_schedule="squaredcos_cap_v2", clip_sample=clip_sample)
    scheduler.set_timesteps(timesteps=[999, 500])
    x, output, noise = (draw(4, 3, 8, 8, seed=seed).half() for seed in range(3))
    x[0, 0, 0, :2], output[0, 0, 0, :2] = 4.0, torch.tensor([-1.0, 4.0])  # inf, and inf - inf, if scaled one by one
    eta = float(variance_noise > 0)
    got = scheduler.step(output, 999, x, eta, variance_noise=noise)
    wanted = scheduler.step(output.double(), 999, x.double(), eta, variance_noise=noise.double())
    assert got.prev_sample.dtype == got.pred_original_sample.dtype == torch.float16
    assert got.prev_sample.isfinite().all() == (wanted.prev_sample.abs() < 65504).all()
    inside = wanted.prev_sample.abs() < 65504
    assert error(got.prev_sample[inside].double(), wanted.prev_sample[inside]) < 1e-3
    if clip_sample:
        assert error(got.pred_original_sample.double(), wanted.pred_original_sample) < 1e-3


# A schedule that is patched


def tamed(alphas_cumprod):
    """Another schedule on the same timesteps, as trainers patch one for zero terminal SNR."""
    root = alphas_cumprod.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def patch(scheduler, how):
    if how == "assigned":
        scheduler.alphas_cumprod = tamed(scheduler.alphas_cumprod)
    elif how == "changed in place":
        scheduler.alphas_cumprod.copy_(tamed(scheduler.alphas_cumprod))
    else:
        scheduler.betas = torch.cat([scheduler.betas[:1], scheduler.betas[1:] * 1.01])
        scheduler.alphas = 1 - scheduler.betas
        scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, dim=0)


@pytest.mark.parametrize("used_before", [False, True])
@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("how", ["assigned", "changed in place", "by its betas"])
def test_a_patched_schedule_is_followed(how, final, used_before, tmp_path):
    """After alphas_cumprod is patched, each method computes with it as stock's do; betas and alphas follow, and so do
    copies made from the config, in memory or on disk."""
    config = dict(clip_sample=False, set_alpha_to_one=final, prediction_type="v_prediction")
    ours, stock = DDIMSchedulerCustom(**config), DDIMScheduler(**config)
    x, output, t = draw(2, 1, 2, 2), draw(2, 1, 2, 2, seed=1), torch.tensor([999, 400])
    for scheduler in (ours, stock):
        scheduler.set_timesteps(10)
        if used_before:
            scheduler.add_noise(x, output, t)
            scheduler.step(output, 900, x)
        patch(scheduler, how)
    if not final:
        stock.final_alpha_cumprod = stock.alphas_cumprod[0]
    for time in (900, 500, 0):
        assert error(ours.step(output, time, x).prev_sample, stock.step(output, time, x).prev_sample) < 1e-5
    for name in ("add_noise", "get_velocity"):
        assert error(getattr(ours, name)(x, output, t), getattr(stock, name)(x, output, t)) < 1e-5
    assert error(torch.cumprod(1 - ours.betas.double(), 0), stock.alphas_cumprod) < 1e-6
    assert torch.equal(ours.alphas, 1 - ours.betas) and ours.final_alpha_cumprod == (final or ours.alphas_cumprod[0])
    ours.save_pretrained(tmp_path)
    for copy in (DDIMSchedulerCustom.from_config(ours.config), DDIMSchedulerCustom.from_pretrained(tmp_path)):
        assert error(copy.alphas_cumprod, stock.alphas_cumprod) < 1e-5


@pytest.mark.parametrize(
    "changes",
    [
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"set_alpha_to_one": False},
        {"beta_end": 0.01, "beta_schedule": "scaled_linear"},
        {"num_train_timesteps": 500},
        {"trained_betas": [0.1, 0.2, 0.3]},
    ],
    ids=str,
)
def test_a_changed_config_is_followed(changes, tmp_path):
    """A scheduler whose config was changed steps as the one that is loaded from what it saves."""
    scheduler, x, output = DDIMSchedulerCustom(clip_sample=False), draw(2, 1, 2, 2), draw(2, 1, 2, 2, seed=1)
    scheduler.change_config(**changes)
    scheduler.save_pretrained(tmp_path)
    loaded = DDIMSchedulerCustom.from_pretrained(tmp_path)
    assert torch.equal(scheduler.alphas_cumprod, loaded.alphas_cumprod) and len(scheduler) == len(loaded)
    for each in (scheduler, loaded):
        each.set_timesteps(2)
        assert all(each.config[key] == value for key, value in changes.items())
    for t in scheduler.timesteps:
        assert torch.equal(scheduler.step(output, t, x).prev_sample, loaded.step(output, t, x).prev_sample)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variance": "sigma-hat"}, "variance is 'sigma-hat'; allowed: 'sigma', 'sigma_hat'"),
        ({"clip_sampel": False}, "the config has no clip_sampel; allowed: beta_end, .*x0_formula"),
        ({"trained_betas": [-0.1]}, "betas"),
    ],
)
def test_a_change_that_the_constructor_would_refuse_raises(changes, message):
    """And leaves the scheduler as it was."""
    scheduler = DDIMSchedulerCustom()
    before = dict(scheduler.config)
    with pytest.raises(ValueError, match=message):
        scheduler.change_config(**changes)
    assert dict(scheduler.config) == before and len(scheduler) == 1000


def test_a_moved_schedule_is_the_same():
    """Assigning the same values, as trainers do that move the table to a device, leaves the config as it was."""
    scheduler = DDIMSchedulerCustom()
    config = dict(scheduler.config)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.clone()
    assert dict(scheduler.config) == config and scheduler.config.trained_betas is None


def test_the_number_of_trained_betas_is_the_diffusions_length():
    """trained_betas of another length than num_train_timesteps set T everywhere: len, timesteps, config and copies."""
    scheduler = DDIMSchedulerCustom(trained_betas=np.linspace(0.01, 0.2, 25))
    for ours in (scheduler, DDIMSchedulerCustom.from_config(scheduler.config)):
        ours.set_timesteps(25)
        assert len(ours) == ours.config.num_train_timesteps == 25
        assert ours.timesteps.tolist() == list(range(24, -1, -1))
        with pytest.raises(ValueError, match="num_inference_steps is 26; allowed: whole numbers from 1 to 25"):
            ours.set_timesteps(26)
