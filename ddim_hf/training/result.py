"""The result of a run: its model on the disk, the card beside it, and both on the Hub where asked for."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..files import whole_file, why_not_written
from ..hub import push_to_hub, write_model_card
from ..pipeline_ddim_custom import DDIMCustomPipeline
from .config import TrainingConfig


def save_model(pipeline: DDIMCustomPipeline, folder: Path):
    """Save a pipeline; OSError, in one line, where it could not be written (safetensors has an error of its own)."""
    try:
        pipeline.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        reason = why_not_written(error)
        raise OSError(f"the model was not written to {folder}: {reason}; checkpoints are intact") from error


def record_of(pretrained: str | None) -> dict[str, Any] | None:
    """What is on record of the training of a model in a folder; None where nothing is."""
    try:
        record = json.loads(Path(pretrained or "", "config.json").read_text())
        known = {key: record[key] for key in ("final_step", "batch_size", "dataset_name")}
        known |= {key: record[key] for key in ("snr_gamma", "loss_weighting") if record.get(key) is not None}
        return known | {"started_from": record.get("started_from")}
    except (OSError, ValueError, KeyError, TypeError):  # a network saved by itself has another config.json
        return None


def publish(config: TrainingConfig, folder: Path, step: int):
    """Write the model card, and push the result if the run is to; what fails there costs nothing on disk."""
    latest = sorted((folder / "samples").glob(f"step-{step:07d}-*.png"))
    if latest:
        with whole_file(folder / "samples.png") as beside:
            shutil.copyfile(latest[0], beside)
    write_model_card(folder, repo_id=config.hub_model_id, license=config.hub_license)
    if not config.push_to_hub:
        return
    try:
        private, license = config.hub_private or None, config.hub_license
        print(f"pushed: {push_to_hub(folder, config.hub_model_id, private=private, license=license)}")
    except (OSError, ValueError) as error:
        again = ["python", "examples/push_to_hub.py", str(folder), config.hub_model_id]
        again += ["--private"] * config.hub_private + (["--license", license] if license else [])
        print(f"not pushed: {error}\nto retry: {shlex.join(again)}")
