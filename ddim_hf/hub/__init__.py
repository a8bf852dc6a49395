"""The Hub: models go up with a true card, and come down as safetensors."""

from .push import load_model, model_card, push_pipeline, push_to_hub, resolve_model, write_model_card

__all__ = ["load_model", "model_card", "push_pipeline", "push_to_hub", "resolve_model", "write_model_card"]
