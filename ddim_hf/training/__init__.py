"""Training: train(config) makes a model, and goes on where it was stopped."""

from .config import RECIPES, TrainingConfig
from .run import TrainingRun, TrainingStopped, train

__all__ = ["RECIPES", "TrainingConfig", "TrainingRun", "TrainingStopped", "train"]
