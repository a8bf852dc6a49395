"""Few steps: schedules fitted to a network by samples of its own, what they are worth, and where they are kept."""

from .certificate import table
from .fitting import MOST_IN_A_BLOCK, Schedule, fit_schedules
from .kept import add_schedules_of, describe_sampler, find_schedule, keep_schedules

__all__ = [
    "MOST_IN_A_BLOCK",
    "Schedule",
    "add_schedules_of",
    "describe_sampler",
    "find_schedule",
    "fit_schedules",
    "keep_schedules",
    "table",
]
