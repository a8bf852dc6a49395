"""Few-step schedules in a scheduler's config: for which network and sampler they hold, and what they are worth."""

import hashlib
import inspect
from typing import Any

import torch

from .calibration import Schedule, error
from .guidance import Condition
from .scheduling_ddim_custom import DDIMSchedulerCustom

Certificate = dict[str, dict[str, Any]]


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


def is_better(steps: int, certificate: Certificate) -> bool:
    """Whether the schedule's images have less `error` than those of as many plain steps."""
    teacher = _of_teacher(certificate)
    return error(certificate[f"calibrated {steps}"], teacher) < error(certificate[f"plain {steps}"], teacher)


def _of_teacher(certificate: Certificate) -> dict[str, Any]:
    return next(figures for name, figures in certificate.items() if name.startswith("teacher"))


def table(certificates: dict[int, Certificate]) -> str:
    """Return certificates as a text: for each S the differences from the teacher, and what became of it."""
    head = ["S", "plain", "calibrated", "plain 2 S", "plain 5 S", "contrast: plain", "calibrated", "teacher"]
    rows = [head]
    for steps, certificate in certificates.items():
        ours, plain = certificate[f"calibrated {steps}"], certificate[f"plain {steps}"]
        teacher = _of_teacher(certificate)
        more = [certificate.get(f"plain {times * steps}", {}).get("rms") for times in (2, 5)]
        values = [plain["rms"], ours["rms"], *more, plain["std"], ours["std"], teacher["std"]]
        rows.append([str(steps), *("" if value is None else f"{value:.4f}" for value in values)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(0, "root mean square difference from the teacher's images, pixels in [0, 1]:")
    dropped = [str(steps) for steps, certificate in certificates.items() if not is_better(steps, certificate)]
    if dropped:
        lines.append(f"not kept, as plain steps are as good: S = {', '.join(dropped)}")
    return "\n".join(lines)
