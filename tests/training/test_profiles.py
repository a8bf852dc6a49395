"""Profiles of averages: what they weigh, and which combination of saved averages is another one."""

import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel

from ddim_hf.training.ema import Averages
from ddim_hf.training.profiles import Profile, combine_profiles, gamma_of, parse_profile

PROFILES = [Profile("ema", 0.9), Profile("ema", 0.999), Profile("power", 0.05), Profile("power", 0.2)]


def walk(steps: int) -> tuple[Averages, np.ndarray]:
    """The averages of a weight that goes at random, and where it was after each step."""
    network = torch.nn.Linear(1, 1, bias=False)
    averages, seen = Averages(network, PROFILES), []
    random = np.random.default_rng(0)
    for _ in range(steps):
        network.weight.data += float(random.standard_normal())
        averages.update()
        seen.append(network.weight.item())
    return averages, np.array(seen)


def test_a_profile_is_what_its_average_weighs():
    """Each average is the sum of the weights after each step times its profile (float32, within 1e-4)."""
    averages, seen = walk(200)
    for profile in PROFILES:
        ((_, value),) = averages.tensors()[profile.name].items()
        assert value.item() == pytest.approx(profile.weights(200) @ seen, rel=1e-4, abs=1e-4)
        assert profile.weights(200).sum() == pytest.approx(1)


def test_a_decay_is_diffusers_own():
    """The decays of an exponential average are, bit for bit, those of diffusers' EMAModel."""
    stock = EMAModel([torch.zeros(1)], decay=0.99)
    assert [float(Profile("ema", 0.99).decays(t)) for t in range(1, 3000)] == [
        stock.get_decay(t) for t in range(1, 3000)
    ]


@pytest.mark.parametrize("sigma_rel", [0.03, 0.1, 0.25])
def test_a_power_average_has_its_width(sigma_rel):
    """A power average's weights spread by sigma_rel of the run's length, and are its power function (within 1%)."""
    steps = 20_000
    weights, t = Profile("power", sigma_rel).weights(steps), (np.arange(steps) + 1) / steps
    assert np.sqrt(weights @ t**2 - (weights @ t) ** 2) == pytest.approx(sigma_rel, rel=0.01)
    gamma = gamma_of(sigma_rel)
    assert weights[steps // 2 :] == pytest.approx((gamma + 1) * t[steps // 2 :] ** gamma / steps, rel=0.01)


def test_saved_averages_give_another_one():
    """From two power averages at eight moments of a run come one that was not kept, and an exponential one, up to the
    error that is told; of one that was kept the combination is itself."""
    steps, kept = 4_000, (Profile("power", 0.05), Profile("power", 0.1))
    saved = [(profile, at) for at in range(500, steps + 1, 500) for profile in kept]
    seen = np.cumsum(np.random.default_rng(0).standard_normal(steps))
    values = np.array([profile.weights(at) @ seen[:at] for profile, at in saved])
    for wanted, most in ((Profile("power", 0.07), 0.02), (Profile("ema", 0.997), 0.1)):
        coefficients, error = combine_profiles(saved, wanted, steps)
        assert error < most
        nearest = np.abs(values[-2:] - wanted.weights(steps) @ seen).min()
        assert abs(coefficients @ values - wanted.weights(steps) @ seen) < 0.1 * nearest
    coefficients, error = combine_profiles(saved, kept[1], steps)
    assert coefficients == pytest.approx(np.eye(len(saved))[-1], abs=1e-6) and error < 1e-6


@pytest.mark.parametrize("saved", [[500], [4_000], [2_000, 3_000, 4_000]])
def test_a_combination_of_equal_weights_is_these_weights(saved):
    """However far off a combination is, its coefficients' sum is 1: averages of weights that stood still give them."""
    for wanted in (Profile("power", 0.02), Profile("ema", 0.9999), Profile("power", 0.28)):
        coefficients, error = combine_profiles([(Profile("power", 0.1), at) for at in saved], wanted, 4_000)
        assert error > 0.01 and coefficients.sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("text", ["1", "0", "power:0", "power:0.3", "power", "long:0.1", "nan", ""])
def test_no_profile_is_one_line(text):
    """What names no average is refused with what is allowed."""
    with pytest.raises(ValueError, match="allowed: a decay in"):
        parse_profile(text)


def test_names_are_read():
    """A number is a decay, and power:SIGMA_REL a power average."""
    assert parse_profile("0.999") == Profile("ema", 0.999) and parse_profile("0.999").name == "ema-0.999"
    assert parse_profile("power:0.05").name == "power-0.05"
    near = [parse_profile(text).name for text in ("0.9999999", "0.99999999")]
    assert near == ["ema-0.9999999", "ema-0.99999999"]  # which are two averages, and two files
