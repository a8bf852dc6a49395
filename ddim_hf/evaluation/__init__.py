"""Evaluation: distances to real images, and errors on them."""

from .questions import distances, evaluate, kernel_distance, load_reference

__all__ = ["distances", "evaluate", "kernel_distance", "load_reference"]
