"""Where figures are kept: results.json, whose rows are a metric, its value and the protocol it was measured by."""

import json
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from ..files import write_text
from ..generation import MANIFEST
from ..metrics import FRECHET
from ..processes import processes
from ..provenance import machine, package_versions
from .tables import plot, tables

MEASURED = ("value", "by_timesteps", "seconds", "seconds_features", "seconds_waiting")


class Results:
    """The rows of a JSON file; each is a metric, its value and the protocol it was measured by.

    Every process has to call each method, and all see the main process's file.

    Raises:
        ValueError: the file is there and is not such a file.
    """

    def __init__(self, file: str | Path):
        self.file, self.rows = Path(file), []
        if self.file.is_dir():
            raise ValueError(f"output {str(file)!r} is a folder; allowed: a file, such as results.json")
        if self.file.suffix == ".md":
            raise ValueError(f"output is {str(file)!r}; allowed: a file such as results.json (its table is the .md)")
        if self.file.is_file():
            try:
                self.rows = json.loads(self.file.read_text())["results"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.file} is not a results file: give another --output") from error
        state = processes()  # broadcasting needs it
        (self.rows,) = broadcast_object_list([self.rows])  # without a shared disk each would see its own
        state.wait_for_everyone()  # all have read it before one writes it

    def has(self, row: dict[str, Any]) -> bool:
        """Whether there is a figure of this metric by this protocol."""
        return protocol(row) in map(protocol, self.rows)

    def add(self, row: dict[str, Any]):
        """Add or replace a figure; the main process writes all files anew and prints it."""
        self.rows = [other for other in self.rows if protocol(other) != protocol(row)] + [row]
        if not processes().is_main_process:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        content = {"results": self.rows, "versions": package_versions(), "machine": machine()}
        write_text(self.file, json.dumps(content, indent=2) + "\n")
        write_text(self.file.with_suffix(".md"), tables(self.rows))
        if row["metric"] in FRECHET:
            plot(self.rows, self.file.with_name("fid_vs_steps.png"))
        print(_line(row), flush=True)


def protocol(row: dict[str, Any]) -> dict[str, Any]:
    """What makes two figures the same one: where a model lies does not, if its weights are known."""
    left_out = (*MEASURED, "model") if row.get("weights_hash") else MEASURED
    return {key: value for key, value in row.items() if key not in left_out and value is not None}


def _line(row: dict[str, Any]) -> str:
    keys = ("num_inference_steps", "eta", "tau", "variance", "implementation", "split", "num_images")
    settings = " ".join(f"{key}={row[key]}" for key in keys if row.get(key) is not None)
    text = f"{row['metric']} {row['value']:.6g}  {settings}"
    if "seconds" in row:
        waited, total = row["seconds_waiting"], row["seconds"] or 1
        text += (
            f"  ({row['num_images'] / total:.1f} images/s; features {row['seconds_features']:.1f} s beside the "
            f"sampling, which waited {waited:.1f} of {total:.1f} s, {waited / total:.1%})"
        )
    return text


def read_manifest(images: Path) -> dict[str, Any]:
    """How a folder of images was sampled, where `generate` left its manifest beside it."""
    file = images.parent / MANIFEST
    if images.name != "images" or not file.is_file():
        return {}
    kept = ("model", "weights_hash", "num_inference_steps", "eta", "tau", "variance", "seed")
    manifest = json.loads(file.read_text())
    return {key: manifest[key] for key in kept if key in manifest} | {"implementation": "ddim_hf"}
