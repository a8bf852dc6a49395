"""How averages of a run's weights weigh its steps, and which combination of saved ones weighs them as another would.

Karras et al. 2024 (arXiv:2312.02696), section 3: an average's length may be chosen after the training.
"""

from dataclasses import dataclass

import numpy as np

LONGEST = 0.28  # sigma_rel; that of the mean of all steps is 0.2887


@dataclass(frozen=True)
class Profile:
    """The weight of each step in an average.

    Args:
        kind: "ema", an exponential average as diffusers' EMAModel warms it up, or "power", one by a power function.
        length: the decay in (0, 1), or sigma_rel in (0, 0.28], the average's width over the run's length.
    """

    kind: str
    length: float

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.length}"

    def decays(self, steps: np.ndarray) -> np.ndarray:
        """What the average keeps of itself at these steps, from 1: avg_t = decay avg_{t-1} + (1 - decay) w_t."""
        t = np.asarray(steps, np.float64)
        if self.kind == "power":
            # beta_t = (1 - 1 / t)^(gamma + 1)  (Karras et al. 2024, eq. 126)
            return (1 - 1 / t) ** (gamma_of(self.length) + 1)
        return np.where(t > 1, np.minimum(t / (9 + t), self.length), 0.0)

    def weights(self, step: int, steps: int | None = None) -> np.ndarray:
        """The weights of steps 1..`steps` (0 after `step`) in the average after `step`; their sum is 1."""
        decays = self.decays(np.arange(1, step + 1))
        # (1 - beta_s) beta_{s+1} ... beta_t
        later = np.append(np.cumprod(decays[:0:-1])[::-1], 1.0)
        return np.pad((1 - decays) * later, (0, (steps or step) - step))


def parse_profile(text: str) -> Profile:
    """Return the profile that a decay such as 0.999, or power:SIGMA_REL, names; ValueError for neither."""
    kind, _, number = text.strip().rpartition(":")
    try:
        profile = Profile({"": "ema", "power": "power"}[kind], float(number))
    except (KeyError, ValueError):
        profile = Profile("ema", np.nan)
    if not 0 < profile.length <= (LONGEST if profile.kind == "power" else np.nextafter(1, 0)):
        raise ValueError(f"{text!r}; allowed: a decay in (0, 1), such as 0.999, or power:SIGMA_REL in (0, {LONGEST}]")
    return profile


def parse_profiles(text: str | float | None) -> list[Profile]:
    """Return the profiles that a text such as 0.999,power:0.05 names by commas; empty for none.

    Raises:
        ValueError: one that is none, or the same twice.
    """
    if str(text).lower() == "none":
        return []
    try:
        profiles = [parse_profile(part) for part in str(text).split(",")]
    except ValueError as error:
        raise ValueError(f"ema_decay has {error}, by commas, or none") from error
    if len(set(profiles)) < len(profiles):
        raise ValueError(f"ema_decay is {text!r}; allowed: each average once")
    return profiles


def gamma_of(sigma_rel: float) -> float:
    """The exponent of the power function t^gamma whose standard deviation is sigma_rel of its length."""
    # sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))  (eq. 123), as a polynomial in gamma
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def combine_profiles(saved: list[tuple[Profile, int]], wanted: Profile, step: int) -> tuple[np.ndarray, float]:
    """Return the coefficients of saved averages whose sum is nearest to another average, and how far it is off.

    Args:
        saved: profile and step of each saved average.
        wanted, step: the average that none was kept of.

    Returns:
        The coefficients, which add up to 1, and the norm of what their sum's profile lacks, relative to the wanted
        profile's.
    """
    rows = np.stack([profile.weights(at, step) for profile, at in saved])
    target = wanted.weights(step)
    # Least squares over the profiles, as in eq. 135-138; here over all steps one by one, so that every kind will do,
    # and with coefficients that add up to 1, as each profile does: others would scale the weights.
    others = np.linalg.lstsq((rows[:-1] - rows[-1]).T, target - rows[-1], rcond=1e-10)[0]
    coefficients = np.append(others, 1 - others.sum())
    return coefficients, float(np.linalg.norm(coefficients @ rows - target) / np.linalg.norm(target))
