"""The DDIM sampler of Song, Meng and Ermon (2020), arXiv:2010.02502, written from its formulas.

alpha_t below is the cumulative product that diffusers calls `alphas_cumprod`; tau_1 < ... < tau_S is the schedule's
own subsequence of the timesteps, and tau_0 stands for the data, where alpha is 1.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from .noise_schedules import make_betas, quadratic_timesteps, rescale_zero_terminal_snr

CHOICES = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "skip_type": ("uniform", "quad"),
    "x0_formula": ("exact", "as_printed"),
    "variance": ("sigma", "sigma_hat"),
}


class Transition(NamedTuple):
    """The scalars of one step tau_i -> tau_{i-1}, computed in float64."""

    sqrt_alpha: float
    sqrt_one_minus_alpha: float
    sqrt_alpha_prev: float
    one_minus_alpha_prev: float
    sigma: float  # eq. 16 at eta = 1
    sigma_hat: float  # section 5: the larger variance of DDPM


class DDIMSchedulerCustom(SchedulerMixin, ConfigMixin):
    """DDIM sampling (paper eq. 12 and 16), exact for every number of steps.

    Each config key of `diffusers.DDIMScheduler` is here with the same default and meaning. The transition goes from
    each timestep to the one that follows it on the schedule, so every spacing and number of steps ends at the data.

    Args:
        num_train_timesteps: T, the length of the diffusion the network was trained on.
        beta_start: first beta of the linear schedules.
        beta_end: last beta of the linear schedules.
        beta_schedule: "linear", "scaled_linear" (linear in sqrt(beta)) or "squaredcos_cap_v2" (the cosine schedule).
        trained_betas: betas given one by one, each in (0, 1]; overrides the three keys above.
        clip_sample: clip the predicted x_0 to [-clip_sample_range, clip_sample_range].
        set_alpha_to_one: alpha at tau_0 is 1; otherwise alphas_cumprod[0].
        steps_offset: added to the timesteps of "leading" spacing.
        prediction_type: what the network predicts: "epsilon", "sample" (x_0) or "v_prediction" (Salimans and Ho 2022).
        thresholding: dynamic thresholding of the predicted x_0 (Saharia et al. 2022) instead of clipping.
        dynamic_thresholding_ratio: the quantile of |x_0| it takes, in [0, 1].
        clip_sample_range: bound of the clipping.
        sample_max_value: largest threshold of dynamic thresholding.
        timestep_spacing: "leading", "trailing" or "linspace" (Lin et al. 2023, table 2).
        rescale_betas_zero_snr: shift the schedule so that alpha_T is 0 (Lin et al. 2023, algorithm 1).
        skip_type: "uniform" follows timestep_spacing; "quad" is the paper's quadratic tau (appendix D.2), which ends
            at 0.8 T and overrides timestep_spacing.
        x0_formula: "exact" is eq. 9. "as_printed" has 1 / sqrt(alpha_{tau_{i-1}}) as the coefficient of eps, a
            misprint in circulation; it does not invert the forward process and is there for comparison only.
        variance: "sigma" is eq. 16. "sigma_hat" draws the noise with DDPM's larger variance while the mean keeps
            eq. 16, as in the last row of the paper's table 1 (at eta = 1); the last transition, onto the data, adds
            none of it.

    Raises:
        ValueError: a key has a value outside what is listed, or the betas take alphas_cumprod out of (0, 1).
    """

    _compatibles = [scheduler.name for scheduler in KarrasDiffusionSchedulers]
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear",
        trained_betas: np.ndarray | list[float] | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading",
        rescale_betas_zero_snr: bool = False,
        skip_type: Literal["uniform", "quad"] = "uniform",
        x0_formula: Literal["exact", "as_printed"] = "exact",
        variance: Literal["sigma", "sigma_hat"] = "sigma",
    ):
        for key, allowed in CHOICES.items():
            if self.config[key] not in allowed:
                raise ValueError(f"{key} is {self.config[key]!r}; allowed: {', '.join(map(repr, allowed))}")

        # In float32 to the letter of diffusers, because networks are trained on these values; float64 from here on.
        self.betas = make_betas(num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas)
        if rescale_betas_zero_snr:
            self.betas = rescale_zero_terminal_snr(self.betas)
        self.alphas = 1.0 - self.betas
        self.alphas_cumprod = torch.cumprod(self.alphas, dim=0)
        self.final_alpha_cumprod = torch.tensor(1.0) if set_alpha_to_one else self.alphas_cumprod[0]
        self.init_noise_sigma = 1.0
        self.num_inference_steps = None
        self.timesteps = torch.arange(len(self.betas) - 1, -1, -1)

        self._alpha = self.alphas_cumprod.tolist()
        if not (self._alpha[0] < 1 and all(self._alpha[:-1]) and ((self.betas >= 0) & (self.betas <= 1)).all()):
            given = f"betas from {self.betas.min():.3g} to {self.betas.max():.3g}"
            raise ValueError(f"{given} take alphas_cumprod out of (0, 1); allowed: 0 at the last timestep only")
        self._final_alpha = 1.0 if set_alpha_to_one else self._alpha[0]
        self._ascending: list[int] = []
        self._transitions: dict[int, Transition] = {}
        self._sqrt_tables: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    def scale_model_input(self, sample: torch.Tensor, timestep: int | torch.Tensor | None = None) -> torch.Tensor:
        """Return `sample` as it is: DDIM's network takes x_t unscaled."""
        return sample

    # The schedule

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ):
        """Choose tau, the timesteps that sampling visits.

        Args:
            num_inference_steps: S, in 1..T.
            device: where `self.timesteps` is put.
            timesteps: tau itself, instead of a number: strictly decreasing ints in [0, T).

        Raises:
            ValueError: neither or both of the two are given, or the values are outside these ranges.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("give one of num_inference_steps and timesteps, not both and not neither")
        if timesteps is None:
            timesteps = self._spaced_timesteps(num_inference_steps)
        else:
            timesteps = self._checked_timesteps(timesteps)
        self.num_inference_steps = len(timesteps)
        self.timesteps = torch.tensor(timesteps, dtype=torch.int64, device=device)

        self._ascending = timesteps[::-1]
        self._transitions = {}

    def _spaced_timesteps(self, steps: int) -> list[int]:
        total = len(self._alpha)
        if isinstance(steps, bool) or steps != int(steps) or not 1 <= steps <= total:
            raise ValueError(f"num_inference_steps is {steps}; allowed: whole numbers from 1 to {total}")
        steps = int(steps)
        if self.config.skip_type == "quad":
            return quadratic_timesteps(steps, total)
        if self.config.timestep_spacing == "leading":
            ascending = np.arange(steps) * (total // steps) + self.config.steps_offset
        elif self.config.timestep_spacing == "trailing":
            # The rounded step can bring arange one entry too many, which would be timestep -1.
            ascending = np.round(np.arange(total, 0, -total / steps))[:steps][::-1] - 1
        else:
            ascending = np.linspace(0, total - 1, steps).round()
        if ascending[0] < 0 or ascending[-1] >= total:
            given = f"steps_offset {self.config.steps_offset} with num_inference_steps {steps}"
            raise ValueError(f"{given} gives timesteps {ascending[0]} to {ascending[-1]}; allowed: 0 to {total - 1}")
        return ascending[::-1].astype(np.int64).tolist()

    def _checked_timesteps(self, timesteps: Sequence[int]) -> list[int]:
        given = [int(t) for t in timesteps]
        total = len(self._alpha)
        decreasing = all(a > b for a, b in zip(given, given[1:], strict=False))
        if not given or not decreasing or any(g != t for g, t in zip(given, timesteps, strict=True)):
            raise ValueError(f"timesteps is {list(timesteps)}; allowed: strictly decreasing ints in [0, {total})")
        if given[0] >= total or given[-1] < 0:
            raise ValueError(f"timesteps runs from {given[0]} to {given[-1]}; allowed: ints in [0, {total})")
        return given

    def _make_transition(self, timestep: int, alpha_prev: float) -> Transition:
        alpha = self._alpha[timestep]
        sigma_hat = math.sqrt(1 - alpha / alpha_prev)
        return Transition(
            sqrt_alpha=math.sqrt(alpha),
            sqrt_one_minus_alpha=math.sqrt(1 - alpha),
            sqrt_alpha_prev=math.sqrt(alpha_prev),
            one_minus_alpha_prev=1 - alpha_prev,
            sigma=math.sqrt((1 - alpha_prev) / (1 - alpha)) * sigma_hat,  # eq. 16
            sigma_hat=sigma_hat,
        )

    def _transition(self, timestep: int | torch.Tensor) -> Transition:
        """The transition from `timestep` to the largest scheduled timestep below it, or to the data."""
        if self.num_inference_steps is None:
            raise ValueError("the scheduler has no timesteps yet; call set_timesteps first")
        timestep = int(timestep)
        if timestep not in self._transitions:
            if not 0 <= timestep < len(self._alpha):
                raise ValueError(f"timestep is {timestep}; allowed: 0 to {len(self._alpha) - 1}")
            below = bisect_left(self._ascending, timestep)
            alpha_prev = self._alpha[self._ascending[below - 1]] if below else self._final_alpha
            self._transitions[timestep] = self._make_transition(timestep, alpha_prev)
        return self._transitions[timestep]

    # Sampling

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Go from x at tau_i to x at tau_{i-1} (eq. 12).

        Args:
            model_output: the network's prediction at (sample, timestep), of the sample's shape.
            timestep: tau_i. One that is not on the schedule steps to the largest scheduled timestep below it.
            sample: x at tau_i, [B, C, H, W]; the result has its dtype.
            eta: scale of the noise, in [0, 1]: 0 is DDIM, draws nothing and is deterministic; 1 is DDPM.
            use_clipped_model_output: derive eps anew from the clipped x_0.
            generator: draws the noise; a list has one generator per image.
            variance_noise: the noise itself instead, of the sample's shape.
            return_dict: return a tuple if False.

        Returns:
            `prev_sample` (x at tau_{i-1}) and `pred_original_sample` (the predicted x_0, clipped).

        Raises:
            ValueError: no set_timesteps yet, timestep outside [0, T), eta so large that eq. 12 has no real
                coefficient, both generator and variance_noise, or an epsilon prediction where alpha is 0.
        """
        tau = self._transition(timestep)
        sigma = eta * tau.sigma
        coefficient_squared = tau.one_minus_alpha_prev - sigma * sigma
        if eta < 0 or coefficient_squared < -1e-12:
            raise ValueError(f"eta is {eta}; allowed: 0 (DDIM) to 1 (DDPM)")

        # x_0 (eq. 9), and eps
        x0, epsilon = self._predict(model_output, tau, sample)
        x0 = self._bound(x0, may_overwrite=x0 is not model_output)
        if use_clipped_model_output or epsilon is None:
            source = x0 if use_clipped_model_output else model_output
            epsilon = sample.sub(source, alpha=tau.sqrt_alpha).div_(tau.sqrt_one_minus_alpha)

        # mean + sigma noise (eq. 12)
        prev_sample = combine(tau.sqrt_alpha_prev, x0, math.sqrt(max(coefficient_squared, 0.0)), epsilon)
        if eta > 0:
            # The image itself is seen without sigma_hat's noise, as in DDPM's sampler.
            sigma_hat = tau.sigma_hat if tau.sigma > 0 else 0.0
            scale = tau.sigma if self.config.variance == "sigma" else sigma_hat
            prev_sample.add_(self._noise(model_output, generator, variance_noise), alpha=eta * scale)

        if not return_dict:
            return prev_sample, x0
        return DDIMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=x0)

    def _predict(
        self, model_output: torch.Tensor, tau: Transition, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x_0 before clipping and eps, from what the network predicts; eps is None where step derives it from x_0."""
        if self.config.prediction_type == "sample":
            return model_output.to(sample.dtype), None
        if self.config.prediction_type == "v_prediction":
            x0 = combine(tau.sqrt_alpha, sample, -tau.sqrt_one_minus_alpha, model_output)
            return x0, combine(tau.sqrt_one_minus_alpha, sample, tau.sqrt_alpha, model_output)
        if tau.sqrt_alpha == 0:
            raise ValueError(
                "alpha is 0 at this timestep (zero terminal SNR), where eps does not determine x_0; "
                "allowed: prediction_type 'v_prediction' or 'sample'"
            )
        if self.config.x0_formula == "exact":
            epsilon_coefficient = tau.sqrt_one_minus_alpha / tau.sqrt_alpha
        else:
            epsilon_coefficient = 1 / tau.sqrt_alpha_prev
        return combine(1 / tau.sqrt_alpha, sample, -epsilon_coefficient, model_output), model_output

    def _bound(self, x0: torch.Tensor, may_overwrite: bool) -> torch.Tensor:
        if self.config.thresholding:
            # Saharia et al. 2022, section 2.3: clip each image at a quantile s >= 1 of its |x_0|, then divide by s.
            values = x0.flatten(1).to(torch.promote_types(x0.dtype, torch.float32))
            s = torch.quantile(values.abs(), self.config.dynamic_thresholding_ratio, dim=1, keepdim=True)
            s = s.clamp(1, self.config.sample_max_value)
            return values.clamp(-s, s).div_(s).view(x0.shape).to(x0.dtype)
        if self.config.clip_sample:
            bound = self.config.clip_sample_range
            return x0.clamp_(-bound, bound) if may_overwrite else x0.clamp(-bound, bound)
        return x0

    def _noise(self, like: torch.Tensor, generator, variance_noise: torch.Tensor | None) -> torch.Tensor:
        if variance_noise is None:
            return randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)
        if generator is not None:
            raise ValueError("generator and variance_noise are both given; allowed: one of them")
        return variance_noise

    # Encoding

    def predict_epsilon(
        self, model_output: torch.Tensor, timestep: int | torch.Tensor, sample: torch.Tensor
    ) -> torch.Tensor:
        """Return the eps that the network's output at (sample, timestep) means, whatever its prediction_type.

        Shapes are the sample's. Raises ValueError for a timestep outside [0, T).
        """
        tau = self._transition(timestep)
        if self.config.prediction_type == "epsilon":
            return model_output
        if self.config.prediction_type == "sample":
            return sample.sub(model_output, alpha=tau.sqrt_alpha).div_(tau.sqrt_one_minus_alpha)
        return combine(tau.sqrt_one_minus_alpha, sample, tau.sqrt_alpha, model_output)

    def invert_step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        prediction_type: Literal["epsilon", "sample", "v_prediction"] | None = None,
    ) -> torch.Tensor:
        """Go from x at tau_{i-1} to x at tau_i: the inverse of `step` at eta 0 without clipping (eq. 13 backwards).

        Args:
            model_output: the prediction that `step` would be given; the result x solves
                `step(model_output, timestep, x).prev_sample == sample`.
            timestep: tau_i, the timestep to go to.
            sample: x at tau_{i-1}, [B, C, H, W].
            prediction_type: what model_output is, if not the config's.

        Returns:
            x at tau_i, of the sample's shape and dtype.

        Raises:
            ValueError: timestep outside [0, T), or a "sample" prediction at tau_1, where x_0 holds nothing of x.
        """
        tau = self._transition(timestep)
        prediction_type = prediction_type or self.config.prediction_type
        if prediction_type not in CHOICES["prediction_type"]:
            raise ValueError(f"prediction_type is {prediction_type!r}; allowed: {CHOICES['prediction_type']}")
        sqrt_one_minus_alpha_prev = math.sqrt(tau.one_minus_alpha_prev)
        if prediction_type == "epsilon":
            scale = tau.sqrt_alpha / tau.sqrt_alpha_prev
            output_scale = tau.sqrt_one_minus_alpha - scale * sqrt_one_minus_alpha_prev
        elif prediction_type == "v_prediction":
            scale = 1 / (tau.sqrt_alpha_prev * tau.sqrt_alpha + sqrt_one_minus_alpha_prev * tau.sqrt_one_minus_alpha)
            output_scale = scale * (
                tau.sqrt_alpha_prev * tau.sqrt_one_minus_alpha - sqrt_one_minus_alpha_prev * tau.sqrt_alpha
            )
        elif sqrt_one_minus_alpha_prev == 0:
            raise ValueError("a 'sample' prediction cannot be inverted from the data; allowed: its predict_epsilon")
        else:
            scale = tau.sqrt_one_minus_alpha / sqrt_one_minus_alpha_prev
            output_scale = tau.sqrt_alpha - scale * tau.sqrt_alpha_prev
        return combine(scale, sample, output_scale, model_output)

    # The forward process

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return x_t = sqrt(alpha_t) x_0 + sqrt(1 - alpha_t) eps (eq. 4).

        `original_samples` and `noise` are [B, C, H, W], `timesteps` [B] or one int tensor for all, in [0, T).
        """
        signal, sigma = self._sqrt_alphas(original_samples, timesteps)
        return signal * original_samples + sigma * noise

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return v = sqrt(alpha_t) eps - sqrt(1 - alpha_t) x_0 (Salimans and Ho 2022); shapes as in `add_noise`."""
        signal, sigma = self._sqrt_alphas(sample, timesteps)
        return signal * noise - sigma * sample

    def _sqrt_alphas(self, like: torch.Tensor, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """sqrt(alpha_t) and sqrt(1 - alpha_t), shaped to multiply `like`; each device and dtype has its own tables."""
        key = like.device, like.dtype
        if key not in self._sqrt_tables:
            alpha = torch.tensor(self._alpha, dtype=torch.float64)
            self._sqrt_tables[key] = alpha.sqrt().to(*key), (1 - alpha).sqrt().to(*key)
        timesteps = timesteps.to(like.device)
        shape = (-1,) + (1,) * (like.ndim - 1)
        return tuple(table[timesteps].view(shape) for table in self._sqrt_tables[key])


def combine(a: float, x: torch.Tensor, b: float, y: torch.Tensor) -> torch.Tensor:
    """Return a x + b y in x's dtype, as a new tensor."""
    single = x.dtype == y.dtype == torch.float32  # addr would round a and b to a half precision
    if x.numel() < 2**16 or not (single and x.is_contiguous() and y.is_contiguous()):
        return x.mul(a).add_(y, alpha=b)
    # An outer product with [1] reads and writes each element once, where scaling and adding take two passes.
    one = x.new_ones(1)
    return torch.addr(x.view(1, -1), one, y.view(-1), beta=a, alpha=b).view(x.shape)
