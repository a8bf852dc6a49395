"""A row of results: a metric, its value, and the protocol that it was measured by."""

import hashlib
import json
from typing import Any

from ..reports.metrics import CELL, MEASURED


def protocol(row: dict[str, Any]) -> dict[str, Any]:
    """What makes two figures the same one, as a file of them holds it (a tuple is a list there).

    Where a model or images lie does not, if their content is known.
    """
    known = row.get("weights_hash") or row.get("images_hash")
    left_out = (*MEASURED, "guide_model", *(["model"] if known else []))
    kept = {key: value for key, value in row.items() if key not in left_out and value is not None}
    return json.loads(json.dumps(kept))


def differing(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """For each row what tells it from the others, key by key, in few words; not its place in a table."""
    protocols = [protocol(row) for row in rows]
    keys = [key for key in dict.fromkeys(key for row in protocols for key in row) if key not in CELL]
    keys = [key for key in keys if any(row.get(key) != protocols[0].get(key) for row in protocols)]
    return [{key: _brief(row[key]) for key in keys if key in row} for row in protocols]


def _brief(value: Any) -> str:
    """At most 60 characters; of a hash, and of what is longer, 8 hex digits."""
    if isinstance(value, dict):
        value = ", ".join(f"{key} {setting}" for key, setting in value.items()) or "default"
    text = str(value)
    if len(text) in (32, 64) and set(text) <= set("0123456789abcdef"):
        return text[:8]
    return text if len(text) <= 60 else hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]


def line(row: dict[str, Any]) -> str:
    """A row for the terminal."""
    keys = ("num_inference_steps", "eta", "tau", "variance", "guidance_scale", "guidance_interval", "guide_model")
    keys += ("implementation", "split", "num_images")
    settings = " ".join(f"{key}={row[key]}" for key in keys if row.get(key) is not None)
    text = f"{row['metric']} {row['value']:.6g}  {settings}"
    if "seconds" in row:
        waited, total = row["seconds_waiting"], row["seconds"] or 1
        text += (
            f"  ({row['num_images'] / total:.1f} images/s; features {row['seconds_features']:.1f} s beside the "
            f"sampling, which waited {waited:.1f} of {total:.1f} s, {waited / total:.1%})"
        )
    return text
