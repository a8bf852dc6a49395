"""Which images a model was trained on, as its training record or its card tells."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError

from ..data import ImageSet
from ..data.sources import local_path
from ..files import read_json


def trained_on(model: str | Path) -> dict[str, Any]:
    """Return arguments of `load_images` that name the images of a model (a folder, or an id on the Hub).

    The split is the one that was held out for validation, or else the one that was trained on.

    Raises:
        ValueError: neither the record of its training, config.json, nor its card tells, or the images were a folder or
            files that are not here.
    """
    record = Path(model) / "config.json"
    settings = read_json(record) if record.is_file() else {}
    if settings.get("dataset_name"):
        name, held_out = settings["dataset_name"], settings.get("validation_split") or "none"
        if settings.get("dataset_on_hub") is False and name != "digits" and not local_path(name).exists():
            raise ValueError(
                f"{str(model)!r} was trained on {name!r}, local images that are not here; allowed: --data with them, "
                "or with others"
            )
        return {
            "name": name,
            "split": held_out if held_out != "none" else settings.get("split"),
            "image_column": settings.get("image_column"),
            "config_name": settings.get("dataset_config_name"),
            "revision": settings.get("dataset_revision"),
        }
    names = _on_the_card(model)
    if not names:
        raise ValueError(f"{str(model)!r} does not tell what it was trained on; allowed: with --data")
    return {"name": names[0]}


def others_than_trained_on(model: str | Path, images: ImageSet) -> str | None:
    """Return a note where a model's record says that the split it was trained on held other images than these."""
    record = Path(model) / "config.json"
    settings = read_json(record) if record.is_file() else {}
    # Of a run with classes, records of before have the fingerprint of images and labels alone.
    before = None if settings.get("class_conditional") else settings.get("dataset_fingerprint")
    known = settings.get("images_fingerprint", before)
    if known is None or images.split != settings.get("split") or images.unlabelled().fingerprint == known:
        return None
    return f"note: {images.name!r} holds other images than {str(model)!r} was trained on, or decodes them otherwise"


def _on_the_card(model: str | Path) -> list[str]:
    card = Path(model) / "README.md"
    try:
        names = ModelCard.load(card if Path(model).is_dir() else str(model)).data.get("datasets")
    except (OSError, ValueError, HfHubHTTPError):  # no card, one that is not readable, or no network
        return []
    return [names] if isinstance(names, str) else names or []
