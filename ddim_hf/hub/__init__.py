"""The Hub: models go up with a true card, and come down as safetensors."""

from .model_card import model_card, write_model_card
from .pull import is_model, load_model, resolve_model
from .push import push_pipeline, push_to_hub

__all__ = [
    "is_model",
    "load_model",
    "model_card",
    "push_pipeline",
    "push_to_hub",
    "resolve_model",
    "write_model_card",
]
