"""The DDIM sampler of Song, Meng and Ermon (2020), arXiv:2010.02502, written from its formulas.

alpha_t below is the cumulative product that diffusers calls `alphas_cumprod`; tau_1 < ... < tau_S is the schedule's
own subsequence of the timesteps, and tau_0 stands for the data, where alpha is 1.
"""

import inspect
import math
from bisect import bisect_left
from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal, NamedTuple

import diffusers
import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMScheduler, DDIMSchedulerOutput
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from .noise_schedules import betas_of, make_betas, quadratic_timesteps, rescale_zero_terminal_snr

CHOICES = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "skip_type": ("uniform", "quad"),
    "x0_formula": ("exact", "as_printed"),
    "variance": ("sigma", "sigma_hat"),
}
PLAIN = (1.0, 0.0, 0.0)  # the weights of a DDIM step
# of the config, by which a scheduler has its betas
BETA_KEYS = "num_train_timesteps beta_start beta_end beta_schedule trained_betas rescale_betas_zero_snr".split()


class Transition(NamedTuple):
    """One step tau_i -> tau_{i-1}: alpha at both, in float64, and whether tau_{i-1} is tau_0, the data."""

    alpha: float
    alpha_prev: float
    onto_data: bool


class DDIMSchedulerCustom(SchedulerMixin, ConfigMixin):
    """DDIM sampling (paper eq. 12 and 16), exact for every number of steps.

    Each config key of `diffusers.DDIMScheduler` is here with the same default and meaning. The transition goes from
    each timestep to the one that follows it on the schedule, so every spacing and number of steps ends at the data.

    `alphas_cumprod` is what every method computes with. To patch the schedule, assign another tensor to it: `betas`,
    `alphas` and `final_alpha_cumprod` follow, and so does the config, so that copies and saved folders have the same
    schedule. Values changed in place count too, from the next call of a method on.

    Args:
        num_train_timesteps: T, the length of the diffusion the network was trained on.
        beta_start: first beta of the linear schedules.
        beta_end: last beta of the linear schedules.
        beta_schedule: "linear", "scaled_linear" (linear in sqrt(beta)) or "squaredcos_cap_v2" (the cosine schedule).
        trained_betas: the betas one by one, which override the three keys above; their number is T.
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
        calibrated_schedules: few-step schedules fitted to a network, which `ddim_hf.calibration` makes and reads; the
            scheduler itself only keeps them.

    Raises:
        ValueError: a key has a value outside what is listed, or a beta is negative or not finite. Betas that take
            alphas_cumprod out of (0, 1) pass; the steps that they leave without a meaning raise.
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
        calibrated_schedules: dict[str, Any] | None = None,
    ):
        for key, allowed in CHOICES.items():
            if self.config[key] not in allowed and not (key == "beta_schedule" and trained_betas is not None):
                raise ValueError(f"{key} is {self.config[key]!r}; allowed: {', '.join(map(repr, allowed))}")

        # In float32 to the letter of diffusers, because networks are trained on these values; float64 from here on.
        self.betas = make_betas(num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas)
        if rescale_betas_zero_snr:
            self.betas = rescale_zero_terminal_snr(self.betas)
        self.alphas = 1.0 - self.betas
        self._take_alphas(torch.cumprod(self.alphas, dim=0))
        if len(self) != num_train_timesteps:
            self._register(num_train_timesteps=len(self))
        self.init_noise_sigma = 1.0
        self.num_inference_steps = None
        self.timesteps = torch.arange(len(self) - 1, -1, -1)
        self._ascending: list[int] = []  # the schedule tau_1 < ... < tau_S
        self._weights: dict[int, tuple] | None = None  # by timestep
        self._history: list[torch.Tensor] = []  # with weights, the last predictions of eps, the newest first

    def __len__(self) -> int:
        return len(self._alpha)

    # From other schedulers

    @classmethod
    def from_config(
        cls, config: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> "DDIMSchedulerCustom | tuple[DDIMSchedulerCustom, dict[str, Any]]":
        """Return the scheduler of a config, as in diffusers, but with the betas and prediction type that it had there.

        Args:
            config: this class's, or that of another of diffusers' schedulers: a saved one names its class and is taken
                as by `from_scheduler`; `scheduler.config` does not, and its keys are taken at their word.
            return_unused_kwargs: return the `kwargs` that are no config keys too.
            kwargs: config keys that take another value.

        Raises:
            ValueError: a value outside its range, or a config of a process that has no betas.
        """
        if isinstance(config, dict):
            source = getattr(diffusers, str(config.get("_class_name")), None)
            if isinstance(source, type) and issubclass(source, SchedulerMixin) and source is not DDIMScheduler:
                keys = cls._process_of(source.from_config(config), config, kwargs)
            elif "_use_default_values" in config and "beta_schedule" not in config:
                raise _not_a_ddim("the scheduler of this config", "its process has no betas")
            else:
                keys = _keys_left_out(config)
            kwargs = {**keys, **kwargs}
        return super().from_config(config, return_unused_kwargs, **kwargs)

    @classmethod
    def from_scheduler(cls, scheduler: SchedulerMixin, **changes: Any) -> "DDIMSchedulerCustom":
        """Return the DDIM of the diffusion that another scheduler samples, by its own betas and prediction type.

        Other config keys carry over as in diffusers' `from_config`: where both classes have them, and where they were
        given to `scheduler` rather than left at its class's defaults.

        Args:
            scheduler: one that has betas: any of diffusers' for DDPM's process, whatever its class.
            changes: config keys that take another value.

        Raises:
            ValueError: the scheduler's process has no betas (flow matching, EDM, variance exploding, consistency
                models), or its network's prediction is of another kind than eps, x_0 and v.
        """
        changes = {**cls._process_of(scheduler, scheduler.config, changes), **changes}
        # With the class's name diffusers drops the keys that are that class's own without a word.
        return super().from_config({**scheduler.config, "_class_name": type(scheduler).__name__}, **changes)

    @classmethod
    def _process_of(cls, scheduler: SchedulerMixin, config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
        """The config keys that make ours a scheduler of the same betas and prediction type as `scheduler`."""
        alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
        prediction_type = scheduler.config.get("prediction_type", "epsilon")
        reason = None
        if alphas_cumprod is None:
            reason = "its process has no betas"
        elif scheduler.config.get("use_flow_sigmas"):
            reason = "use_flow_sigmas makes its process flow matching"
        elif scheduler.config.get("timestep_type") == "continuous":
            reason = "its network takes noise levels, not timesteps"
        elif prediction_type not in CHOICES["prediction_type"]:
            reason = f"its prediction_type is {prediction_type!r}"
        if reason is not None:
            raise _not_a_ddim(type(scheduler).__name__, reason)

        keys = _keys_left_out(config)
        if changes.keys() & set(BETA_KEYS):
            return keys
        beta_schedule = config.get("beta_schedule", "linear")
        if beta_schedule in CHOICES["beta_schedule"] or config.get("trained_betas") is not None:
            ours = super().from_config(config, **keys).alphas_cumprod
            theirs = alphas_cumprod.to(ours)  # some have 2^-24 where ours is 0 (zero terminal SNR)
            if ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-4, atol=1e-7):
                return keys
        # Betas that no key of ours gives: sigmoid, Laplace, shifted or patched ones.
        return keys | {"trained_betas": betas_of(alphas_cumprod).tolist(), "rescale_betas_zero_snr": False}

    def scale_model_input(self, sample: torch.Tensor, timestep: int | torch.Tensor | None = None) -> torch.Tensor:
        """Return `sample` as it is: DDIM's network takes x_t unscaled."""
        return sample

    # The noise schedule

    @property
    def config(self) -> FrozenDict:
        """The config, with the betas that alphas_cumprod has now."""
        self._follow_alphas()
        return super().config

    def to_json_string(self) -> str:
        """What `save_pretrained` writes."""
        self._follow_alphas()
        return super().to_json_string()

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        return self._alphas_cumprod

    @alphas_cumprod.setter
    def alphas_cumprod(self, alphas_cumprod: torch.Tensor):
        changed = alphas_cumprod.tolist() != self._alpha
        self._take_alphas(alphas_cumprod)
        if changed:
            self.betas = betas_of(alphas_cumprod)
            self.alphas = 1.0 - self.betas
            betas = self.betas.tolist()
            self._register(num_train_timesteps=len(betas), trained_betas=betas, rescale_betas_zero_snr=False)

    def _take_alphas(self, alphas_cumprod: torch.Tensor):
        self._alphas_cumprod, self._alphas_version = alphas_cumprod, _version(alphas_cumprod)
        self.final_alpha_cumprod = torch.tensor(1.0) if self.config.set_alpha_to_one else alphas_cumprod[0]
        self._alpha: list[float] = alphas_cumprod.tolist()
        self._sqrt_tables: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}

    def _follow_alphas(self):
        """Take alphas_cumprod anew where its values were changed in place."""
        alphas_cumprod = vars(self).get("_alphas_cumprod")  # not while it is made
        if alphas_cumprod is not None and _version(alphas_cumprod) != self._alphas_version:
            self.alphas_cumprod = alphas_cumprod

    def change_config(self, **changes: Any):
        """Give config keys other values, which copies and saved folders have too.

        With a key of the betas, or set_alpha_to_one, the noise schedule is made anew; timesteps have to be set again.

        Raises:
            ValueError: an unknown key, or a value that the constructor would refuse.
        """
        keys = inspect.signature(DDIMSchedulerCustom.__init__).parameters.keys() - {"self"}
        if unknown := sorted(changes.keys() - keys):
            raise ValueError(f"the config has no {', '.join(unknown)}; allowed: {', '.join(sorted(keys))}")
        changed = type(self)(**{key: value for key, value in self.config.items() if key in keys} | changes)
        if changes.keys() & {*BETA_KEYS, "set_alpha_to_one"}:
            changes["num_train_timesteps"] = len(changed)
            vars(self).update({key: value for key, value in vars(changed).items() if key != "_internal_dict"})
        self._register(**changes)

    def _register(self, **changes: Any):
        # from_config passes over the keys that the config lists as defaults.
        defaults = [key for key in self.config.get("_use_default_values", []) if key not in changes]
        self.register_to_config(**changes, _use_default_values=defaults)

    # The timesteps

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
        weights: Sequence[Sequence[float]] | None = None,
    ):
        """Choose tau, the timesteps that sampling visits, and forget what `step` has seen.

        Args:
            num_inference_steps: S, in 1..T.
            device: where `self.timesteps` is put.
            timesteps: tau itself, instead of a number: strictly decreasing ints in [0, T).
            weights: with timesteps, (w_0, w_1, w_2) of each, at the first none but w_0 and at the second neither w_2:
                `step` then takes w_0 eps_i + w_1 eps_{i+1} + w_2 eps_{i+2}, of this prediction and the two before it,
                for eps_i, and has to be called for each timestep in turn. (1, 0, 0) is DDIM.

        Raises:
            ValueError: neither or both of the first two are given, or the values are outside these ranges.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("give one of num_inference_steps and timesteps, not both and not neither")
        self._follow_alphas()
        if timesteps is None:
            timesteps = self._spaced_timesteps(num_inference_steps)
        else:
            timesteps = check_timesteps(timesteps, len(self))
        weights = None if weights is None else self._checked_weights(weights, timesteps)
        self.num_inference_steps = len(timesteps)
        self.timesteps = torch.tensor(timesteps, dtype=torch.int64, device=device)

        self._ascending = timesteps[::-1]
        self._weights, self._history = weights, []

    def _spaced_timesteps(self, steps: int) -> list[int]:
        total = len(self)
        number = isinstance(steps, Real) and not isinstance(steps, bool)
        if not (number and 1 <= steps <= total and steps == int(steps)):
            raise ValueError(f"num_inference_steps is {steps!r}; allowed: whole numbers from 1 to {total}")
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

    def _checked_weights(self, weights: Sequence[Sequence[float]], timesteps: list[int]) -> dict[int, tuple]:
        if len(weights) != len(timesteps):
            raise ValueError(f"weights has {len(weights)} rows; allowed: one for each of {len(timesteps)} timesteps")
        for i, row in enumerate(weights):
            if len(row) != 3 or not all(map(math.isfinite, row)) or any(row[i + 1 :]):
                allowed = "3 finite numbers, and 0 for predictions before the first step"
                raise ValueError(f"weights of step {i + 1} are {list(row)}; allowed: {allowed}")
        return {t: tuple(map(float, row)) for t, row in zip(timesteps, weights, strict=True)}

    def _alpha_at(self, timestep: int | torch.Tensor) -> float:
        self._follow_alphas()
        timestep = int(timestep)
        if not 0 <= timestep < len(self._alpha):
            raise ValueError(f"timestep is {timestep}; allowed: 0 to {len(self) - 1}")
        return self._alpha[timestep]

    def _transition(self, timestep: int | torch.Tensor) -> Transition:
        """The transition from `timestep` to the largest scheduled timestep below it, or to the data."""
        if self.num_inference_steps is None:
            raise ValueError("the scheduler has no timesteps yet; call set_timesteps first")
        timestep = int(timestep)
        alpha, below = self._alpha_at(timestep), bisect_left(self._ascending, timestep)
        alpha_prev = self._alpha[self._ascending[below - 1]] if below > 0 else float(self.final_alpha_cumprod)
        if not (0 <= alpha <= alpha_prev <= 1 and alpha < 1 and alpha_prev > 0):
            raise ValueError(
                f"alphas_cumprod goes from {alpha:.3g} at timestep {timestep} to {alpha_prev:.3g}, where eq. 12 "
                "has no meaning; allowed: from 0 up to below 1, and not down"
            )
        return Transition(alpha, alpha_prev, onto_data=below == 0)

    def _get_variance(self, timestep: int, prev_timestep: int) -> torch.Tensor:
        """sigma squared at eta = 1, between any two timesteps; by this name other code asks diffusers' DDIM for it."""
        alpha_prev = self._alpha_at(prev_timestep) if prev_timestep >= 0 else float(self.final_alpha_cumprod)
        return torch.tensor(sigma_at(self._alpha_at(timestep), alpha_prev) ** 2)

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
        # Notation (<in the code> -> <in the paper>), with tau_i the timestep:
        # - sample, prev_sample -> x_{tau_i}, x_{tau_{i-1}}
        # - alpha, alpha_prev -> alpha_{tau_i}, alpha_{tau_{i-1}}
        # - epsilon -> eps_theta(x_{tau_i}), the noise that the network sees in x_{tau_i}
        # - x0 -> f_theta(x_{tau_i}), the x_0 that it predicts so
        # - sigma -> sigma_{tau_i}(eta), the standard deviation of the new noise
        # - coeff -> the coefficient of the "direction pointing to x_t"
        alpha, alpha_prev, onto_data = self._transition(timestep)

        # 1. sigma = eta sqrt((1 - alpha_prev) / (1 - alpha)) sqrt(1 - alpha / alpha_prev)  (eq. 16)
        sigma = eta * sigma_at(alpha, alpha_prev)

        # 2. coeff = sqrt(1 - alpha_prev - sigma^2)  (eq. 12)
        coeff_squared = 1 - alpha_prev - sigma**2
        if eta < 0 or coeff_squared < -1e-12:
            raise ValueError(f"eta is {eta}; allowed: 0 (DDIM) to 1 (DDPM)")
        coeff = math.sqrt(max(coeff_squared, 0.0))

        # 3. x_0 and eps, from what the network predicts. float16 ends at 65,504, which x_t / sqrt(alpha) may exceed
        # (sqrt(alpha) is 1 / 20,291 at the end of the cosine schedule), so that its step is computed in float32.
        half = sample.dtype == torch.float16
        sample = sample.float() if half else sample
        prediction_type = self.config.prediction_type
        if self._weights is not None:
            model_output, prediction_type = self._weighted(model_output, timestep, sample, alpha)
        x0 = self._predict_x0(model_output, sample, alpha, alpha_prev, prediction_type)
        epsilon = self._predict_epsilon(model_output, sample, alpha, prediction_type)
        x0 = self._bound(x0, may_overwrite=x0 is not model_output)
        if use_clipped_model_output:
            epsilon = epsilon_from_x0(x0, sample, alpha)

        # 4. mean = sqrt(alpha_prev) x_0 + coeff eps  (eq. 12)
        prev_sample = combine(math.sqrt(alpha_prev), x0, coeff, epsilon)

        # 5. x_{tau_{i-1}} = mean + sigma noise  (eq. 12)
        if eta > 0:
            if self.config.variance == "sigma_hat":
                # sigma_hat = sqrt(1 - alpha / alpha_prev)  (section 5); the data itself is seen without it, as in DDPM
                sigma = 0.0 if onto_data else eta * math.sqrt(1 - alpha / alpha_prev)
            prev_sample.add_(self._noise(model_output, generator, variance_noise), alpha=sigma)

        if half:
            prev_sample, x0 = prev_sample.half(), x0.half()
        if not return_dict:
            return prev_sample, x0
        return DDIMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=x0)

    def _weighted(
        self, model_output: torch.Tensor, timestep: int | torch.Tensor, sample: torch.Tensor, alpha: float
    ) -> tuple[torch.Tensor, str]:
        """What takes the place of the network's output under the schedule's weights, and its prediction type."""
        if int(timestep) not in self._weights:
            raise ValueError(f"timestep is {int(timestep)}; allowed with weights: {self._ascending[::-1]}")
        weights, kind = self._weights[int(timestep)], self.config.prediction_type
        epsilon = self._predict_epsilon(model_output, sample, alpha, kind).to(sample.dtype)
        self._history = [epsilon, *self._history[:2]]
        return (model_output, kind) if weights == PLAIN else (weigh(weights, self._history), "epsilon")

    def _predict_x0(
        self, model_output: torch.Tensor, sample: torch.Tensor, alpha: float, alpha_prev: float, prediction_type: str
    ) -> torch.Tensor:
        """The x_0, not clipped yet, that an output of this prediction type means."""
        if prediction_type == "sample":
            return model_output.to(sample.dtype)
        if prediction_type == "v_prediction":
            # x_0 = sqrt(alpha) x_t - sqrt(1 - alpha) v  (Salimans and Ho 2022, appendix D)
            return combine(math.sqrt(alpha), sample, -math.sqrt(1 - alpha), model_output)
        if alpha == 0:
            raise ValueError(
                "alpha is 0 at this timestep (zero terminal SNR), where eps does not determine x_0; "
                "allowed: prediction_type 'v_prediction' or 'sample'"
            )
        if self.config.x0_formula == "as_printed":
            # x_0 = sqrt(1 / alpha) x_t - eps / sqrt(alpha_prev)  (the misprint of eq. 9)
            return combine(1 / math.sqrt(alpha), sample, -1 / math.sqrt(alpha_prev), model_output)
        # x_0 = sqrt(1 / alpha) x_t - sqrt(1 / alpha - 1) eps  (eq. 9)
        return combine(1 / math.sqrt(alpha), sample, -math.sqrt(1 - alpha) / math.sqrt(alpha), model_output)

    def _predict_epsilon(
        self, model_output: torch.Tensor, sample: torch.Tensor, alpha: float, prediction_type: str
    ) -> torch.Tensor:
        """The eps that an output of this prediction type means."""
        if prediction_type == "epsilon":
            return model_output
        if prediction_type == "sample":
            return epsilon_from_x0(model_output, sample, alpha)
        # eps = sqrt(1 - alpha) x_t + sqrt(alpha) v  (Salimans and Ho 2022, appendix D)
        return combine(math.sqrt(1 - alpha), sample, math.sqrt(alpha), model_output)

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
        return self._predict_epsilon(model_output, sample, self._alpha_at(timestep), self.config.prediction_type)

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
        prediction_type = prediction_type or self.config.prediction_type
        if prediction_type not in CHOICES["prediction_type"]:
            raise ValueError(f"prediction_type is {prediction_type!r}; allowed: {CHOICES['prediction_type']}")

        # With x for x_{tau_i}, x' for x_{tau_{i-1}}, a = sqrt(alpha) and b = sqrt(1 - alpha) at tau_i, a' and b' at
        # tau_{i-1}:  x = a x_0 + b eps (eq. 4)  and, at eta = 0,  x' = a' x_0 + b' eps (eq. 12).
        alpha, alpha_prev, _ = self._transition(timestep)
        a, b = math.sqrt(alpha), math.sqrt(1 - alpha)
        a_prev, b_prev = math.sqrt(alpha_prev), math.sqrt(1 - alpha_prev)
        if prediction_type == "epsilon":
            # x_0 = (x' - b' eps) / a', and so  x = (a / a') x' + (b - (a / a') b') eps
            scale = a / a_prev
            output_scale = b - scale * b_prev
        elif prediction_type == "v_prediction":
            # x_0 = a x - b v and eps = b x + a v make  x' = (a a' + b b') x - (b a' - a b') v
            scale = 1 / (a * a_prev + b * b_prev)
            output_scale = scale * (b * a_prev - a * b_prev)
        elif b_prev == 0:
            raise ValueError("a 'sample' prediction cannot be inverted from the data; allowed: its predict_epsilon")
        else:
            # eps = (x' - a' x_0) / b', and so  x = (b / b') x' + (a - (b / b') a') x_0
            scale = b / b_prev
            output_scale = a - scale * a_prev
        return combine(scale, sample, output_scale, model_output)

    # The forward process

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return x_t = sqrt(alpha_t) x_0 + sqrt(1 - alpha_t) eps (eq. 4).

        `original_samples` and `noise` are [B, C, H, W], `timesteps` [B] or one int tensor for all, in [0, T).
        """
        a, b = self._sqrt_alphas(original_samples, timesteps)
        return a * original_samples + b * noise

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return v = sqrt(alpha_t) eps - sqrt(1 - alpha_t) x_0 (Salimans and Ho 2022); shapes as in `add_noise`."""
        a, b = self._sqrt_alphas(sample, timesteps)
        return a * noise - b * sample

    def _sqrt_alphas(self, like: torch.Tensor, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """sqrt(alpha_t) and sqrt(1 - alpha_t), shaped to multiply `like`; each device and dtype has its own tables."""
        self._follow_alphas()
        device, dtype = like.device, like.dtype
        if (device, dtype) not in self._sqrt_tables:
            # In float64, and so on the CPU: not every device has it.
            alpha = torch.tensor(self._alpha, dtype=torch.float64, device="cpu")
            if not ((alpha >= 0) & (alpha <= 1)).all():
                raise ValueError(f"alphas_cumprod goes from {alpha.max():.3g} to {alpha.min():.3g}; allowed: 0 to 1")
            roots = alpha.sqrt(), (1 - alpha).sqrt()
            self._sqrt_tables[device, dtype] = tuple(root.to(dtype).to(device) for root in roots)
        timesteps = timesteps.to(device)
        shape = (-1,) + (1,) * (like.ndim - 1)
        return tuple(table[timesteps].view(shape) for table in self._sqrt_tables[device, dtype])


def check_timesteps(timesteps: Sequence[int], total: int) -> list[int]:
    """Return timesteps as ints; ValueError unless they are whole, strictly decreasing and in [0, total)."""
    try:
        given = [int(t) for t in timesteps]
        whole = all(g == t and not isinstance(t, bool) for g, t in zip(given, timesteps, strict=True))
    except (TypeError, ValueError):  # no sequence, or not of numbers
        given, whole = [], False
    if not given or not whole or any(a <= b for a, b in zip(given, given[1:], strict=False)):
        raise ValueError(f"timesteps is {timesteps!r}; allowed: strictly decreasing ints in [0, {total})")
    if given[0] >= total or given[-1] < 0:
        raise ValueError(f"timesteps runs from {given[0]} to {given[-1]}; allowed: ints in [0, {total})")
    return given


def sigma_at(alpha: float, alpha_prev: float) -> float:
    """Return sigma at eta = 1 (eq. 16), from alpha at tau_i and at tau_{i-1}."""
    return math.sqrt((1 - alpha_prev) / (1 - alpha)) * math.sqrt(1 - alpha / alpha_prev)


def epsilon_from_x0(x0: torch.Tensor, x: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return the eps that makes `x` of `x0`, in x's dtype, as a new tensor."""
    # eps = (x_t - sqrt(alpha) x_0) / sqrt(1 - alpha)  (eq. 4)
    return combine(1.0, x, -math.sqrt(alpha), x0).div_(math.sqrt(1 - alpha))


def weigh(weights: Sequence[float], predictions: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return w_0 eps_i + w_1 eps_{i+1} + ... as a new tensor; the newest prediction, eps_i, is first."""
    if len(predictions) == 1:
        return predictions[0] * weights[0]
    total = combine(weights[0], predictions[0], weights[1], predictions[1])
    for weight, prediction in zip(weights[2:], predictions[2:], strict=False):
        total.add_(prediction, alpha=weight)
    return total


def combine(a: float, x: torch.Tensor, b: float, y: torch.Tensor) -> torch.Tensor:
    """Return a x + b y in x's dtype, as a new tensor."""
    single = x.dtype == y.dtype == torch.float32  # addr would round a and b to a half precision
    if x.numel() < 2**16 or not (single and x.is_contiguous() and y.is_contiguous()):
        return x.mul(a).add_(y, alpha=b)
    # An outer product with [1] reads and writes each element once, where scaling and adding take two passes.
    one = x.new_ones(1)
    return torch.addr(x.view(1, -1), one, y.view(-1), beta=a, alpha=b).view(x.shape)


def _keys_left_out(config: dict[str, Any]) -> dict[str, Any]:
    """The keys of betas and prediction type that diffusers' from_config would set to our class's defaults, since they
    stand at the defaults of the class that the config is of."""
    ours = inspect.signature(DDIMSchedulerCustom).parameters
    left = [key for key in config.get("_use_default_values", []) if key in (*BETA_KEYS, "prediction_type")]
    return {key: config[key] for key in left if not np.array_equal(config[key], ours[key].default)}


def _not_a_ddim(scheduler: str, reason: str) -> ValueError:
    allowed = "betas at whole timesteps, and a prediction of eps, x_0 or v"
    return ValueError(f"{scheduler} cannot become a DDIM: {reason}; allowed: {allowed}")


def _version(tensor: torch.Tensor) -> int | None:
    """A number that changes with every change in place; tensors made in inference mode have none."""
    return None if tensor.is_inference() else tensor._version
