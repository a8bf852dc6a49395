"""Few-step schedules in a scheduler's config: for which network and sampler they hold, and what they are worth."""

import hashlib
import inspect
from typing import Any

import torch

from ..guidance import Condition
from ..scheduling_ddim_custom import DDIMSchedulerCustom
from .certificate import Certificate, is_better
from .fitting import Schedule


def keep_schedules(
    scheduler: DDIMSchedulerCustom,
    fitted: dict[int, tuple[Schedule, Certificate]],
    condition: Condition,
    *,
    weights_hash: str,
    **settings: int,
):
    """Put what `fit_schedules` returned into the scheduler's config, save schedules that plain steps are as good as.

    Others that are there stay if they were fitted to the same network and sampler.

    Args:
        condition: the classes and guidance of the images that they were fitted to.
        weights_hash: the network's.
        settings: of the fit, for the record.
    """
    there, sampler = scheduler.config.calibrated_schedules or {}, describe_sampler(scheduler.config)
    same = there.get("weights_hash") == weights_hash and there.get("sampler") == sampler
    schedules = dict(there["schedules"]) if same else {}
    classes = {} if condition.classes is None else {"classes": condition.classes}
    for steps, (schedule, certificate) in fitted.items():
        key = _key(steps, condition)
        schedules.pop(key, None)
        if is_better(steps, certificate):
            schedules[key] = {**schedule._asdict(), **classes, "settings": settings, "certificate": certificate}
    record = {"weights_hash": weights_hash, "sampler": sampler, "schedules": schedules}
    scheduler.change_config(calibrated_schedules=record if schedules else None)


def find_schedule(config: dict[str, Any], num_inference_steps: int, condition: Condition) -> dict[str, Any] | None:
    """Return the timesteps and weights that a config holds for so many steps of its sampler; None if none.

    A schedule is for the guidance that it was fitted with, and for the classes that it was fitted to.
    """
    record = config.get("calibrated_schedules") or {}
    found = record.get("schedules", {}).get(_key(num_inference_steps, condition))
    if found is None or record["sampler"] != describe_sampler(config, record["sampler"]):
        return None
    if condition.guide is not None or not set(condition.classes or []) <= set(found.get("classes") or []):
        return None
    return {"timesteps": found["timesteps"], "weights": found["weights"]}


def _key(steps: int, condition: Condition) -> str:
    """What a schedule goes by: its steps, and the guidance if there is some."""
    guidance = f" at guidance_scale {condition.scale}" if condition.scale != 1 else ""
    interval = " in {} to {}".format(*condition.interval) if condition.interval else ""
    return f"{steps}{guidance}{interval}"


def describe_sampler(config: dict[str, Any], keys: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the config keys that say how plain steps at eta 0 are taken, or those of them named by `keys`."""
    parameters = inspect.signature(DDIMSchedulerCustom.__init__).parameters
    keys = keys or (parameters.keys() - {"self", "variance", "calibrated_schedules"})
    sampler = {key: config.get(key) for key in sorted(keys)}
    if sampler.get("trained_betas") is not None:  # as many as timesteps
        betas = torch.as_tensor(sampler["trained_betas"], dtype=torch.float32)
        sampler["trained_betas"] = hashlib.sha256(betas.cpu().numpy().tobytes()).hexdigest()
    return sampler
