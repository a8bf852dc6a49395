"""What a picture of the page depends on: as the arguments of a call, as a link, and as Python."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import urlencode

from ..calibration.kept import OF_CLASSES
from ..pipeline_ddim_custom import DDIMCustomPipeline
from ..scheduling_ddim_custom import DDIMSchedulerCustom
from .limits import Limits

TAUS = {"uniform": "uniform", "quadratic": "quad", "calibrated": None}  # by the scheduler's skip_type
LARGEST_SEED = 2**53 - 1 - 1000  # what a browser's numbers hold, with room for the seeds that follow
LARGEST_GUIDANCE = 20


@dataclass(frozen=True)
class Settings:
    """Settings of sampling.

    Args:
        images: how many; image k is made from seed + k.
        steps: S, from 1 to T.
        eta: 0 is DDIM, 1 is DDPM.
        tau: "uniform", "quadratic" or "calibrated".
        seed: of the first image.
        label: the name of a class; "" for none.
        guidance: the guidance scale; 1 is none.
        model: that the visitor has named; "" is the page's own.

    Raises:
        ValueError: a value of another kind or range.
    """

    images: int = 8
    steps: int = 10
    eta: float = 0.0
    tau: str = "uniform"
    seed: int = 0
    label: str = ""
    guidance: float = 1.0
    model: str = ""

    def __post_init__(self):
        for field in fields(self):
            object.__setattr__(self, field.name, _of_type(field.type, field.name, getattr(self, field.name)))
        for name, least, most in [("images", 1, math.inf), ("steps", 1, math.inf), ("seed", 0, LARGEST_SEED)]:
            if not least <= getattr(self, name) <= most:
                allowed = f"{least} to {most}" if most < math.inf else f"from {least}"
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: {allowed}")
        if not 0 <= self.guidance <= LARGEST_GUIDANCE:
            raise ValueError(f"guidance is {self.guidance}; allowed: 0 to {LARGEST_GUIDANCE}")
        if self.tau not in TAUS:
            raise ValueError(f"tau is {self.tau!r}; allowed: {', '.join(TAUS)}")

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.images)

    @property
    def condition(self) -> dict[str, Any]:
        """The class and its guidance, as keywords of a call; nothing where there is no class."""
        guided = {"guidance_scale": self.guidance} if self.guidance != 1 else {}
        return {"class_labels": self.label, **guided} if self.label else {}

    @property
    def passes_a_step(self) -> int:
        """Of an image through the network: guidance takes two."""
        return 2 if "guidance_scale" in self.condition else 1

    def check(self, pipe: DDIMCustomPipeline, limits: Limits):
        """Raise ValueError, in one line, for what the model or the page does not do."""
        if self.guidance != 1 and not self.label:
            raise ValueError(f"guidance is {self.guidance:g} without a class; allowed: 1, or with a class")
        pipe.check_sampling(self.images, eta=self.eta, num_inference_steps=self.steps, **self.condition)
        if self.tau == "calibrated" and "calibrated" not in taus_of(pipe, self.steps, self.eta, **self.condition):
            raise ValueError(
                f"this model has no calibrated schedule for {self.steps} steps, eta {self.eta:g} and this class and "
                "guidance; allowed: uniform, quadratic"
            )
        limits.check(self.images, self.steps, self.images * self.passes_a_step)

    def offered(self, pipe: DDIMCustomPipeline) -> "Settings":
        """These settings as the controls will show them: a calibrated schedule that other steps had, and these have
        not, is replaced by what the pipeline takes by itself. Whoever presses at once sends them before that."""
        taus = taus_of(pipe, self.steps, self.eta, **self.condition)
        return self if self.tau != "calibrated" or "calibrated" in taus else replace(self, tau=taus[0])

    def pipeline(self, pipe: DDIMCustomPipeline) -> DDIMCustomPipeline:
        """The pipeline that samples by this tau: `pipe`, or a copy over the same network."""
        return pipe if self._tau(pipe) is None else with_tau(pipe, self._tau(pipe))

    def arguments(self, pipe: DDIMCustomPipeline, limits: Limits) -> dict[str, Any]:
        """The keywords of the call that makes these images."""
        arguments = {"batch_size": self.images, "num_inference_steps": self.steps, "seeds": self.seeds}
        if self.eta:
            arguments["eta"] = self.eta
        if pipe.scheduler.config.calibrated_schedules:
            arguments["calibrated"] = self.tau == "calibrated"
        arguments |= self.condition
        if self.images > limits.at_once:
            arguments["max_batch_size"] = limits.at_once
        return arguments

    def python(self, pipe: DDIMCustomPipeline, limits: Limits, model: str) -> str:
        """Three lines that make the same images."""
        tau = self._tau(pipe)
        loading = repr(model) if tau is None else f"{model!r}, tau={tau!r}"
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments(pipe, limits).items())
        return (
            "from ddim_hf.generation import load_pipeline\n"
            f"pipe = load_pipeline({loading})\n"
            f"images = pipe({arguments}).images\n"
        )

    def _tau(self, pipe: DDIMCustomPipeline) -> str | None:
        """The skip_type to change to; None for the model's own."""
        tau = TAUS[self.tau]
        return None if tau == pipe.scheduler.config.skip_type else tau

    def query(self) -> str:
        """The part of an address, after the question mark, that `from_query` reads."""
        defaults = {"label": "", "guidance": 1.0, "model": ""}
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return urlencode({name: value for name, value in values.items() if value != defaults.get(name)})

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> "Settings | None":
        """The settings that an address asks for; None where it names none of them. Raises ValueError for bad ones."""
        named = {field.name: query[field.name] for field in fields(cls) if field.name in query}
        return cls(**named) if named else None


def _of_type(kind: type, name: str, value: Any) -> Any:
    """A value from a control or an address as an int, a float or a str."""
    try:
        converted = kind(value)
        if kind is int and float(value) != converted:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        wanted = {int: "a whole number", float: "a number", str: "text"}[kind]
        raise ValueError(f"{name} is {value!r}; allowed: {wanted}") from None
    return converted


def whole(value: Any, name: str) -> int:
    """A number from a control as an int; ValueError for another value."""
    return _of_type(int, name, value)


def with_tau(pipe: DDIMCustomPipeline, skip_type: str) -> DDIMCustomPipeline:
    """A pipeline over the same network with other timesteps, as `load_pipeline(tau=...)` makes it."""
    changed = copy.copy(pipe)
    changed.scheduler = DDIMSchedulerCustom.from_config(pipe.scheduler.config, skip_type=skip_type)
    return changed


def taus_of(pipe: DDIMCustomPipeline, steps: int, eta: float = 0.0, **condition: Any) -> list[str]:
    """The schedules to choose from, what the pipeline takes by itself first; calibrated where there is one."""
    fitted = pipe.calibrated_schedule(steps, eta=eta, **condition) is not None
    plain = ["uniform", "quadratic"]
    return ["calibrated"] * fitted + (plain if pipe.scheduler.config.skip_type == "uniform" else plain[::-1])


def default_settings(pipe: DDIMCustomPipeline) -> Settings:
    """What the page begins with: images that form in two or three seconds on two cores."""
    steps = min(Settings.steps, len(pipe.scheduler))
    return Settings(steps=steps, tau=taus_of(pipe, steps)[0])


def calibrated_steps(pipe: DDIMCustomPipeline) -> list[int]:
    """The numbers of steps that the model has calibrated schedules for, without a class and guidance."""
    schedules = (pipe.scheduler.config.calibrated_schedules or {}).get("schedules", {})
    keys = (key.split(OF_CLASSES)[0] for key in schedules)
    plain = {int(key) for key in keys if key.isdigit()}  # the keys of others name their guidance too
    return sorted(steps for steps in plain if "calibrated" in taus_of(pipe, steps))
