"""Training: train(config) makes a model, and goes on where it was stopped."""

from .config import RECIPES, TrainingConfig
from .run import TrainingRun, train
from .stopping import TrainingStopped

__all__ = ["RECIPES", "TrainingConfig", "TrainingRun", "TrainingStopped", "train"]
