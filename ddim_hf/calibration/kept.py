"""Few-step schedules in a scheduler's config: for which network and sampler they hold, and what they are worth."""

import hashlib
import inspect
from itertools import groupby
from numbers import Real
from typing import Any

import torch

from ..guidance import Condition
from ..scheduling_ddim_custom import DDIMSchedulerCustom
from .certificate import Certificate, is_better
from .fitting import Schedule

OF_CLASSES = " of classes "  # in a key, before them


def keep_schedules(
    scheduler: DDIMSchedulerCustom,
    fitted: dict[int, tuple[Schedule, Certificate]],
    condition: Condition,
    *,
    weights_hash: str,
    **settings: int,
):
    """Put what `fit_schedules` yields, by S, into the scheduler's config, save what plain steps are as good as.

    Others that are there stay if they were fitted to the same network and sampler: those of other steps, guidance or
    classes, and those that a new one is to replace but, being no better than plain steps, does not.

    Args:
        condition: the classes and guidance of the images that they were fitted to.
        weights_hash: the network's.
        settings: of the fit, for the record.
    """
    schedules = {}
    classes = {} if condition.classes is None else {"classes": condition.classes}
    for steps, (schedule, certificate) in fitted.items():
        if is_better(steps, certificate):
            made = {"settings": settings, "certificate": certificate}
            schedules[_key(steps, condition) + _of_classes(condition.classes)] = schedule._asdict() | classes | made
    sampler = describe_sampler(scheduler.config)
    record = {"weights_hash": weights_hash, "sampler": sampler, "schedules": schedules}
    record = add_schedules_of(scheduler.config.calibrated_schedules, record)
    scheduler.change_config(calibrated_schedules=record if record["schedules"] else None)


def add_schedules_of(there: dict[str, Any] | None, record: dict[str, Any]) -> dict[str, Any]:
    """Return a record of schedules with those of another beside its own, if it is of the same network and sampler."""
    same = there and all(there.get(key) == record[key] for key in ("weights_hash", "sampler"))
    return record | {"schedules": there["schedules"] | record["schedules"]} if same else record


def find_schedule(config: dict[str, Any], num_inference_steps: int, condition: Condition) -> dict[str, Any] | None:
    """Return the timesteps and weights that a config holds for so many steps of its sampler; None if none.

    A schedule is for the guidance that it was fitted with, and for the classes that it was fitted to; of several it is
    the one for the fewest classes.
    """
    record = config.get("calibrated_schedules") or {}
    key, wanted = _key(num_inference_steps, condition), set(condition.classes or [])
    found = [
        schedule
        for name, schedule in record.get("schedules", {}).items()
        if name.split(OF_CLASSES)[0] == key and wanted <= set(schedule.get("classes") or [])
    ]
    if not found or condition.guide is not None:
        return None
    if record["sampler"] != describe_sampler(config, record["sampler"]):
        return None
    best = min(found, key=lambda schedule: len(schedule.get("classes") or []))
    return {"timesteps": best["timesteps"], "weights": best["weights"]}


def _key(steps: int, condition: Condition) -> str:
    """What a schedule goes by beside its classes: its steps, and the guidance if there is some."""
    scale = round(float(condition.scale), 6)  # whatever kind of number it came as
    guidance = f" at guidance_scale {scale}" if scale != 1 else ""
    interval = " in {} to {}".format(*condition.interval) if condition.interval else ""
    whole = isinstance(steps, Real) and not isinstance(steps, bool) and float(steps).is_integer()
    return f"{int(steps) if whole else repr(steps)}{guidance}{interval}"  # what is not whole is refused later


def _of_classes(classes: list[int] | None) -> str:
    """Classes, which are in order, as the end of a key: " of classes 0-3+7"."""
    if classes is None:
        return ""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(classes), lambda pair: pair[1] - pair[0])]
    return OF_CLASSES + "+".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def describe_sampler(config: dict[str, Any], keys: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the config keys that say how plain steps at eta 0 are taken, or those of them named by `keys`."""
    parameters = inspect.signature(DDIMSchedulerCustom.__init__).parameters
    keys = keys or (parameters.keys() - {"self", "variance", "calibrated_schedules"})
    sampler = {key: config.get(key) for key in sorted(keys)}
    if sampler.get("trained_betas") is not None:  # as many as timesteps
        betas = torch.as_tensor(sampler["trained_betas"], dtype=torch.float32)
        sampler["trained_betas"] = hashlib.sha256(betas.cpu().numpy().tobytes()).hexdigest()
    return sampler
