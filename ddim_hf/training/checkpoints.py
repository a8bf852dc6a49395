"""Checkpoints that are whole or not there: written beside, synced, renamed, and verified when they are read."""

import errno
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

logger = logging.getLogger(__name__)
PREFIX, STATE_FILE = "checkpoint-", "state.json"
Tensors = dict[str, torch.Tensor]


def save_checkpoint(run: Path, step: int, files: dict[str, Tensors], state: dict[str, Any], limit: int) -> Path:
    """Write `run/checkpoint-<step>` and then delete the oldest ones beyond `limit`.

    Where it is there already, its tensors are this step's, and the state alone is replaced.

    Args:
        run: the run's folder.
        step: number of finished steps.
        files: name -> tensors, each saved as name.safetensors.
        state: anything that JSON holds.
        limit: checkpoints to keep, at least 1.

    Raises:
        OSError: it could not be written (disk full, no permission); earlier checkpoints are untouched.
    """
    final, partial = run / f"{PREFIX}{step}", run / f".{PREFIX}{step}.partial"
    try:
        if final.exists():  # no step since, but perhaps a sampler
            digests = json.loads((final / STATE_FILE).read_text())["files"]
            _write_state(final, {**state, "step": step, "files": digests})
            return final
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, tensors in files.items():
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, partial / f"{name}.safetensors")
        digests = {file.name: _digest_and_sync(file) for file in sorted(partial.iterdir())}
        _write_state(partial, {**state, "step": step, "files": digests})
        _sync_folder(partial)
        partial.rename(final)
        _sync_folder(run)
    except Exception as error:  # safetensors reports a full disk with an error of its own
        shutil.rmtree(partial, ignore_errors=True)
        kept = ", ".join(path.name for path in list_checkpoints(run)) or "none yet"
        raise OSError(f"checkpoint of step {step} was not written: {_reason(error)}; intact: {kept}") from error
    for old in list_checkpoints(run)[:-limit]:
        discard = old.with_name(f".{old.name}.old")
        old.rename(discard)
        shutil.rmtree(discard, ignore_errors=True)
    return final


def list_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    found = [path for path in run.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)))


def find_checkpoint(run: Path, wanted: str) -> Path | None:
    """Return the checkpoint to resume from: the newest whole one for "latest" (None if the run has none), or a path.

    Raises:
        ValueError: the one that was named is torn, or all there are.
    """
    if wanted != "latest":
        reason = why_torn(Path(wanted))
        if reason:
            raise ValueError(f"resume_from_checkpoint {wanted}: {reason}")
        return Path(wanted)
    candidates = list_checkpoints(run)
    for path in reversed(candidates):
        reason = why_torn(path)
        if not reason:
            return path
        logger.warning(f"{path} cannot be used ({reason}); trying the one before it")
    if candidates:
        raise ValueError(
            f"no checkpoint in {run} can be used; remove them, or choose another output_dir to start over"
        )
    return None


def set_aside_newer(run: Path, step: int) -> list[Path]:
    """Rename the checkpoints beyond `step`, which are torn or of a run that is gone back on, and clear leftovers.

    They would pass for the newest else. Returns their new places, checkpoint-<n>.aside.
    """
    for leftover in (*run.glob(f".{PREFIX}*.partial"), *run.glob(f".{PREFIX}*.old")):
        shutil.rmtree(leftover, ignore_errors=True)
    moved = []
    for path in list_checkpoints(run):
        if int(path.name.removeprefix(PREFIX)) > step:
            moved.append(path.with_name(f"{path.name}.aside"))
            shutil.rmtree(moved[-1], ignore_errors=True)
            path.rename(moved[-1])
    return moved


def why_torn(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None for a whole one."""
    try:
        files = json.loads((path / STATE_FILE).read_text())["files"]
        for name, digest in files.items():
            if _digest(path / name) != digest:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{STATE_FILE} or a file it names cannot be read: {_reason(error)}"
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """Return what `save_checkpoint` was given: the tensors by file, and the state (with "step")."""
    state = json.loads((path / STATE_FILE).read_text())
    return {name.removesuffix(".safetensors"): load_file(path / name) for name in state.pop("files")}, state


def optimizer_tensors(optimizer, parameters: list, names: list[str]) -> dict[str, torch.Tensor]:
    """Return AdamW's state as one flat dict, "<parameter>/<moment>" -> tensor."""
    state = optimizer.state
    return {
        f"{name}/{key}": value
        for name, parameter in zip(names, parameters, strict=True)
        for key, value in state[parameter].items()
    }


def restore_optimizer(optimizer, parameters: list, names: list[str], tensors: dict[str, torch.Tensor]):
    """Undo `optimizer_tensors`; the moments take their parameter's memory layout, as the fused step demands."""
    for name, parameter in zip(names, parameters, strict=True):
        if f"{name}/step" not in tensors:  # saved before the parameter's first step
            continue
        state = optimizer.state[parameter]
        state["step"] = tensors[f"{name}/step"].to(parameter.device)
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = torch.empty_like(parameter, requires_grad=False).copy_(tensors[f"{name}/{key}"])


def save_model(pipeline, folder: Path):
    """Save a pipeline; OSError, in one line, where it could not be written (safetensors has an error of its own)."""
    try:
        pipeline.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise OSError(f"the model was not written to {folder}: {_reason(error)}; checkpoints are intact") from error


def _write_state(folder: Path, content: dict[str, Any]):
    partial = folder / f".{STATE_FILE}.partial"
    with open(partial, "w") as stream:
        json.dump(content, stream, indent=2)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(folder / STATE_FILE)


def _reason(error: Exception) -> str:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    return "no space left on the disk" if full else " ".join(str(error).split()) or type(error).__name__


def _digest(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest_and_sync(path: Path) -> str:
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())
    return _digest(path)


def _sync_folder(path: Path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
