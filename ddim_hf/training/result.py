"""The result of a run: its model on the disk, the card beside it, and both on the Hub where asked for."""

import itertools
import shlex
import shutil
from contextlib import suppress
from copy import copy
from pathlib import Path

from safetensors import SafetensorError

from ..calibration.kept import keep_schedules
from ..files import read_json, sha256, whole_file, why_not_written
from ..guidance import Condition
from ..hub import push_to_hub, write_model_card
from ..pipeline_ddim_custom import DDIMCustomPipeline
from ..scheduling_ddim_custom import DDIMSchedulerCustom
from ..unet import weights_hash
from .config import TrainingConfig

FIGURES = ("results.json", "results.md", "fid_vs_steps.png", "guidance.png")  # what an evaluation leaves


def save_model(pipeline: DDIMCustomPipeline, folder: Path):
    """Save a pipeline; OSError, in one line, where it could not be written (safetensors has an error of its own)."""
    try:
        pipeline.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        reason = why_not_written(error)
        raise OSError(f"the model was not written to {folder}: {reason}; checkpoints are intact") from error


def save_result(pipeline: DDIMCustomPipeline, folder: Path) -> bool:
    """Save what a run has trained, and set figures of other weights aside; return whether the folder's weights are
    others now."""
    before = _weights_in(folder)
    save_model(with_schedules_of(folder, pipeline), folder)
    changed, rows = _weights_in(folder) != before, []
    with suppress(OSError, ValueError, KeyError, TypeError):
        rows = read_json(folder / "results.json")["results"]
    ours = weights_hash(pipeline.unet)
    # Figures of earlier versions do not say of which weights they are: of those that lay there.
    if not any(row.get("weights_hash", None if changed else ours) == ours for row in rows):
        set_aside([folder / name for name in FIGURES], "figures of other weights")
    return changed


def _weights_in(folder: Path) -> dict[str, str]:
    return {file.name: sha256(file) for file in (folder / "unet").glob("*.safetensors")}


def with_schedules_of(folder: Path, pipeline: DDIMCustomPipeline) -> DDIMCustomPipeline:
    """A pipeline with those few-step schedules of a folder that were fitted to its weights; says so if others go."""
    file, pipeline = folder / "scheduler" / "scheduler_config.json", copy(pipeline)
    there = read_json(file).get("calibrated_schedules") if file.is_file() else None
    pipeline.scheduler = DDIMSchedulerCustom.from_config(pipeline.scheduler.config)
    pipeline.scheduler.change_config(calibrated_schedules=there)
    keep_schedules(pipeline.scheduler, {}, Condition(), weights_hash=weights_hash(pipeline.unet))
    if there and not pipeline.scheduler.config.calibrated_schedules:
        print(
            f"the few-step schedules in {folder} were fitted to other weights, and go; for new ones: python "
            f"examples/calibrate.py {folder}"
        )
    return pipeline


def set_aside(files: list[Path], what: str):
    """Rename the files and folders that are there, and say so: they would else pass for what they are not of."""
    files = [file for file in files if file.exists()]
    for file in files:
        names = (file.with_name(f"{file.name}.aside{number or ''}") for number in itertools.count())
        file.rename(next(name for name in names if not name.exists()))
    if files:
        print(f"set aside, as {what}: {', '.join(map(str, files))} (now *.aside)")


def publish(config: TrainingConfig, folder: Path, step: int, changed: bool):
    """Write the model card, and push the result if the run is to; what fails there costs nothing on disk.

    Args:
        changed: whether other weights lay in the folder before.
    """
    names = sorted(f"step-{step:07d}-{sampler.name}.png" for sampler in config.sampler_settings())
    grids = [folder / "samples" / name for name in names if (folder / "samples" / name).is_file()]
    if grids:
        with whole_file(folder / "samples.png") as beside:
            shutil.copyfile(grids[0], beside)
    elif changed:
        set_aside([folder / "samples.png"], "a picture of other weights")
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
