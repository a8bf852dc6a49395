"""Which images a model was trained on, as its training record or its card tells."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError

from ..files import read_json


def trained_on(model: str | Path) -> dict[str, Any]:
    """Return arguments of `load_images` that name the images of a model (a folder, or an id on the Hub).

    The split is the one that was held out for validation, or else the one that was trained on.

    Raises:
        ValueError: neither the record of its training, config.json, nor its card tells.
    """
    record = Path(model) / "config.json"
    settings = read_json(record) if record.is_file() else {}
    if settings.get("dataset_name"):
        held_out = settings.get("validation_split") or "none"
        return {
            "name": settings["dataset_name"],
            "split": held_out if held_out != "none" else settings.get("split"),
            "image_column": settings.get("image_column"),
            "config_name": settings.get("dataset_config_name"),
            "revision": settings.get("dataset_revision"),
        }
    names = _on_the_card(model)
    if not names:
        raise ValueError(f"{str(model)!r} does not tell what it was trained on; allowed: with --data")
    return {"name": names[0]}


def _on_the_card(model: str | Path) -> list[str]:
    card = Path(model) / "README.md"
    try:
        names = ModelCard.load(card if Path(model).is_dir() else str(model)).data.get("datasets")
    except (OSError, ValueError, HfHubHTTPError):  # no card, one that is not readable, or no network
        return []
    return [names] if isinstance(names, str) else names or []
