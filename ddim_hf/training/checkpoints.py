"""Checkpoints: what a run changes as it goes, in folders that are whole or not there and verified when they are read.

A checkpoint is a folder that loads like a model, its averaged weights, with what training needs to go on beside it:

    model_index.json, scheduler/, unet/   the run's first average as a pipeline (the weights themselves without one)
    unet.safetensors                      the weights that are trained (where there is an average)
    ema-<decay>.safetensors               each further average
    optimizer.safetensors                 AdamW's moments
    state.json                            step, loss, samplers, what a resumed run must share; the files' digests
"""

import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..files import sha256, whole_folder, why_not_written, write_text
from ..pipeline_ddim_custom import DDIMCustomPipeline
from ..processes import on_main
from .computation import Choice
from .ema import Averages
from .log import Window
from .samplers import Samplers
from .sharding import FromMain, network_of, put, whole, with_network

logger = logging.getLogger(__name__)
PREFIX, STATE_FILE = "checkpoint-", "state.json"
MODEL_WEIGHTS = "unet/diffusion_pytorch_model"  # of a checkpoint's pipeline
Tensors = dict[str, torch.Tensor]


# What a checkpoint holds


@dataclass
class TrainingState:
    """What a run changes as it goes.

    Args:
        pipeline: the network that is trained, and its noise schedule.
        averages: of the network's weights.
        optimizer: AdamW over the network's parameters.
        scaler: of fp16's gradients; None in another precision.
        samplers: the best distances so far, and those that a stop interrupted.
        window: what the next log line tells.
        step: number of finished optimizer steps.
        loss: of the last log line.
        choice: what a trial of compiled passes chose.
        validation_due: whether this step is to be validated, which a stop may interrupt.
    """

    pipeline: DDIMCustomPipeline
    averages: Averages
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    samplers: Samplers
    window: Window
    step: int = 0
    loss: float | None = None
    choice: Choice | None = None
    validation_due: bool = False

    def save(self, run: Path, window_loss: float, identity: dict[str, Any], limit: int) -> Path:
        """Write a checkpoint into the run's folder. Needs all processes; the main one writes.

        Args:
            run: the run's folder.
            window_loss: the window's sum of losses, over all processes.
            identity: what a resumed run must share.
            limit: checkpoints to keep.

        Raises:
            OSError: see `save_checkpoint`.
        """
        unet = self.pipeline.unet
        tensors = {"unet": unet.state_dict(), "optimizer": optimizer_tensors(self.optimizer, unet)}
        tensors |= self.averages.tensors()
        tensors = {name: whole(values) for name, values in tensors.items()}
        result = tensors.pop(self._result())  # which the pipeline holds: it is not written twice

        def save_pipeline(folder: Path):
            with_network(self.pipeline, network_of(unet, result)).save_pretrained(folder)

        state = {
            "identity": identity,
            "selection": self.samplers.state(),
            "loss": self.loss,
            "window": self.window.state(window_loss),
            "computation": self.choice and asdict(self.choice),
            "validation_due": self.validation_due,
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }
        return on_main(lambda: save_checkpoint(run, self.step, tensors, state, limit, save_pipeline))

    def load(self, path: Path, identity: dict[str, Any]):
        """Take a checkpoint's place in its run. The main process reads it; no other one needs to be able to.

        Raises:
            ValueError: it is of a run of another identity.
        """
        tensors: dict[str, Tensors] = {}

        def read() -> tuple:
            loaded, state = load_checkpoint(path)
            # Before anything is changed: a refusal leaves the run as it was.
            _compare(path, state["identity"], identity)
            if MODEL_WEIGHTS in loaded:
                loaded[self._result()] = loaded.pop(MODEL_WEIGHTS)
            tensors.update(loaded)
            self.samplers.load_state(state["selection"], path.parent)
            return state, self.samplers.place(), sorted(loaded)

        state, place, names = on_main(read)
        unet, device = self.pipeline.unet, self.window.loss.device
        sent = {name: FromMain(tensors.get(name, {}), device) for name in names}
        for name, tensor in unet.state_dict().items():
            put(tensor, sent["unet"][name])
        restore_optimizer(self.optimizer, unet, sent["optimizer"])
        self.averages.load(sent, state["step"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.samplers.take(place)
        self.window = Window(device, **state.get("window", {}))
        self.step, self.loss = state["step"], state["loss"]
        self.choice = Choice(**state["computation"]) if state.get("computation") else None
        self.validation_due = state.get("validation_due", False)

    def _result(self) -> str:
        """The name of the weights that are the run's result."""
        return next(iter(self.averages.names), "unet")


def _compare(path: Path, theirs: dict[str, Any], ours: dict[str, Any]):
    """Refuse to resume a run that computes something else."""
    theirs = {**theirs, "ema_decay": str(theirs.get("ema_decay"))}  # a number in some checkpoints of earlier versions
    changed = [
        f"{name} was {theirs.get(name)!r} and is {value!r}"
        for name, value in json.loads(json.dumps(ours)).items()
        if theirs.get(name) != value
    ]
    if changed:
        raise ValueError(f"resuming {path} would change the run: {'; '.join(changed)}")


def optimizer_tensors(optimizer: torch.optim.Optimizer, network: torch.nn.Module) -> Tensors:
    """Return AdamW's state as one flat dict, "<parameter>/<moment>" -> tensor."""
    return {
        f"{name}/{key}": value
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, network: torch.nn.Module, tensors: Tensors):
    """Undo `optimizer_tensors`; the moments take their parameter's memory layout, as the fused step demands."""
    for name, parameter in network.named_parameters():
        if f"{name}/step" not in tensors:  # saved before the parameter's first step
            continue
        state = optimizer.state[parameter]
        state["step"] = tensors[f"{name}/step"].to(parameter.device)
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = torch.empty_like(parameter, requires_grad=False)
            put(state[key], tensors[f"{name}/{key}"])


def lay_out_moments(optimizer: torch.optim.Optimizer):
    """Give AdamW's moments their parameter's memory layout anew, after that has changed."""
    for parameter, state in optimizer.state.items():
        for key in {"exp_avg", "exp_avg_sq"} & state.keys():
            state[key] = torch.empty_like(parameter, requires_grad=False).copy_(state[key])


# The folders


def save_checkpoint(
    run: Path,
    step: int,
    tensors: dict[str, Tensors],
    state: dict[str, Any],
    limit: int,
    save_pipeline: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Write `run/checkpoint-<step>` and then delete the oldest ones beyond `limit`.

    Where it is there already, its tensors are this step's, and the state alone is replaced.

    Args:
        run: the run's folder.
        step: number of finished steps.
        tensors: name -> tensors, each saved as name.safetensors.
        state: anything that JSON holds.
        limit: checkpoints to keep, at least 1.
        save_pipeline: called with the folder, to write a pipeline into it.

    Raises:
        OSError: it could not be written (disk full, no permission); earlier checkpoints are untouched.
    """
    final = run / f"{PREFIX}{step}"
    try:
        if final.exists():  # no step since, but perhaps a sampler
            _write_state(final, state, step, json.loads((final / STATE_FILE).read_text())["files"])
            return final
        # The digests come last, of files that are written, and then the folder takes its name: what bears it is whole.
        with whole_folder(final) as folder:
            for name, values in tensors.items():
                contiguous = {key: value.contiguous() for key, value in values.items()}
                save_file(contiguous, folder / f"{name}.safetensors")
            save_pipeline(folder)
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            names = [file.relative_to(folder).as_posix() for file in files]
            with ThreadPoolExecutor() as pool:  # all at once, as a run that is told to stop has little time
                _write_state(folder, state, step, dict(zip(names, pool.map(sha256, files), strict=True)))
    except Exception as error:  # safetensors reports a full disk with an error of its own
        kept = ", ".join(path.name for path in list_checkpoints(run)) or "none yet"
        raise OSError(
            f"checkpoint of step {step} was not written: {why_not_written(error)}; intact: {kept}"
        ) from error
    # Only now that the new one stands: at every moment at least one whole checkpoint is there.
    for old in list_checkpoints(run)[:-limit]:
        discard = old.with_name(f".{old.name}.old")
        old.rename(discard)  # at once: a kill leaves no half of one under its name
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
            if sha256(path / name) != digest:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{STATE_FILE} or a file it names cannot be read: {why_not_written(error)}"
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """Return what `save_checkpoint` was given: the tensors by name, those of a pipeline as MODEL_WEIGHTS, and the
    state (with "step")."""
    state = json.loads((path / STATE_FILE).read_text())
    tensors: dict[str, Tensors] = {}
    for file in state.pop("files"):
        if file.endswith(".safetensors"):
            # A pipeline's weights may lie in several files, <name>-00001-of-00002.
            name = MODEL_WEIGHTS if file.startswith(MODEL_WEIGHTS) else file.removesuffix(".safetensors")
            tensors.setdefault(name, {}).update(load_file(path / file))
    return tensors, state


def _write_state(folder: Path, state: dict[str, Any], step: int, digests: dict[str, str]):
    write_text(folder / STATE_FILE, json.dumps({**state, "step": step, "files": digests}, indent=2))
