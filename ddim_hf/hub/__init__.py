"""The Hub: models go up with a true card, and come down as safetensors."""

from .model_card import model_card, write_model_card
from .pull import is_model, load_configs, load_model, resolve_model
from .push import push_pipeline, push_to_hub
from .trained_on import others_than_trained_on, trained_on

__all__ = [
    "is_model",
    "load_configs",
    "load_model",
    "model_card",
    "push_pipeline",
    "push_to_hub",
    "resolve_model",
    "others_than_trained_on",
    "trained_on",
    "write_model_card",
]
