"""Few steps: schedules fitted to a network by samples of its own, what they are worth, and where they are kept."""

from .certificate import table
from .fitting import Schedule, fit_schedules
from .kept import describe_sampler, find_schedule, keep_schedules

__all__ = ["Schedule", "describe_sampler", "find_schedule", "fit_schedules", "keep_schedules", "table"]
