"""Evaluation: distances to real images, and errors on them."""

from .answers import evaluate
from .comparison import Comparison, compare
from .figures import distances
from .frechet import kernel_distance
from .questions import ALSO, Question
from .references import load_reference

__all__ = ["ALSO", "Comparison", "Question", "compare", "distances", "evaluate", "kernel_distance", "load_reference"]
