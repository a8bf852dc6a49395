"""train(config): DDPM's objective (Ho et al. 2020; the DDIM paper's L_1, eq. 5) under accelerate.

Order, flips, timesteps and noise of a step are functions of (seed, step, position in the global batch), so a run is
the same on one process or many, and a resumed run continues exactly. Dropout masks are functions of (seed, step,
process).
"""

import json
import math
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from ..data import ImageSet, load_images
from ..files import write_text
from ..hub import push_to_hub, write_model_card
from ..loss import Objective
from ..pipeline_ddim_custom import DDIMCustomPipeline
from ..provenance import command, describe_run
from .batches import DROPOUT, BatchOrder, BatchReader, draw_step, seed_for, to_states
from .checkpoints import (
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    save_model,
    set_aside_newer,
)
from .config import RECIPES, TrainingConfig
from .ema import Averaged
from .log import log_line, trim_log
from .samplers import ModelSelection
from .setup import build_accelerator, build_model, describe_plan, hold_folder
from .stopping import StopRequest
from .validation import validation_loss

__all__ = ["RECIPES", "TrainingConfig", "TrainingStopped", "train"]


class TrainingStopped(Exception):
    """The run was asked to stop; it has printed what is saved and how to go on."""


def train(config: TrainingConfig) -> Path:
    """Run a training to its end and return its folder, which holds the EMA model as a loadable pipeline.

    Raises:
        ValueError: settings or data that do not fit, a loss that is not finite, or a resume that would change the run.
        OSError: data, a checkpoint or the result could not be read or written.
        TrainingStopped: SIGTERM or SIGINT arrived; a checkpoint was saved, unless the signal also went to a compiler
            at work, as to a whole process group: then the one before it counts.
    """
    run = TrainingRun(config)
    try:
        if config.dry_run:
            run.accelerator.print(describe_plan(config, run.unet, run.images, run.accelerator))
        else:
            run.resume()
            run.loop()
            run.finish()
    except RuntimeError as error:
        if not run.stop.received:
            raise
        raise run.stopped(error) from error
    finally:
        run.close()
    return run.folder


class TrainingRun:
    """One run: the network, its averages, its data, and the loop over them."""

    def __init__(self, config: TrainingConfig):
        self.config, self.folder = config, Path(config.output_dir)
        self.accelerator = build_accelerator(config)
        self.device = self.accelerator.device
        self.stop = StopRequest(self.accelerator)
        self.unet, self.scheduler = build_model(config)
        self.images = self._load(config.split)
        self.validation = None if config.validation_split in (None, "none") else self._load(config.validation_split)
        self.step, self.loss, self.reader, self.lock = 0, None, None, None
        self.window = {}  # what a resumed run had counted since its last log line
        if not config.dry_run:
            self._prepare()
            self.selection = ModelSelection(config, self.accelerator, self.images, self.stop)

    def _load(self, split: str) -> ImageSet:
        config = self.config
        with self.accelerator.main_process_first():
            return load_images(
                config.dataset_name,
                split=split,
                resolution=config.resolution,
                channels=self.unet.config.in_channels,
                image_column=config.image_column,
                cache_dir=config.cache_dir,
                skip_broken=config.skip_broken,
            )

    def _prepare(self):
        config = self.config
        self.unet.to(self.device).train()
        channels_last = self.device.type == "cuda" if config.channels_last is None else config.channels_last
        if channels_last:
            self.unet.to(memory_format=torch.channels_last)
        self.parameters = list(self.unet.parameters())
        fused = self.device.type in ("cuda", "cpu")
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused
        )
        self.emas = {
            f"ema-{decay:g}": EMAModel(self.parameters, decay=decay, foreach=True) for decay in config.ema_decays()
        }
        self.model, self.optimizer = self.accelerator.prepare(self.unet, self.optimizer)
        if config.compile:
            # CUDA graphs spare the host a thousand launches a step; with other processes or passes, gradients would be
            # needed beyond the replay that overwrites them.
            alone = self.accelerator.num_processes == config.gradient_accumulation_steps == 1
            mode = "reduce-overhead" if alone and self.device.type == "cuda" else None
            self.unet.compile(mode=mode, dynamic=False)  # else the samplers' batch size would make the graphs dynamic
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.objective = Objective(self.scheduler, config.snr_gamma)

    # Before the first step

    def resume(self):
        """Continue from a checkpoint where one is asked for; refuse to run over another run's folder."""
        config, wanted = self.config, self.config.resume_from_checkpoint
        named = wanted not in (None, "latest")
        if not named:  # what there is may change while another run saves
            self._on_main(self._hold_folder)
        if wanted is None:
            existing = list_checkpoints(self.folder)
            if existing:
                raise ValueError(
                    f"{self.folder} already holds {existing[-1].name}; allowed: --resume_from_checkpoint latest to go "
                    "on with it, or another --output_dir"
                )
        else:
            path = self._on_main(lambda: find_checkpoint(self.folder, wanted))
            if path is None:
                self.accelerator.print(f"no checkpoint in {self.folder} yet: starting at step 0")
            else:
                self._restore(path)
        if named:
            self._on_main(self._hold_folder)
        if self.accelerator.is_main_process:
            for path in set_aside_newer(self.folder, self.step):
                print(f"set aside: {path}")
            write_text(self.folder / "config.json", json.dumps(self.record(), indent=2) + "\n")
            trim_log(self.folder, self.step)
        self.accelerator.wait_for_everyone()
        if config.logger != "none":
            flat = {name: value for name, value in asdict(config).items() if isinstance(value, int | float | str)}
            # For TensorBoard a folder in the run's, for Weights & Biases a project.
            self.accelerator.init_trackers("logs" if config.logger == "tensorboard" else "ddim_hf", config=flat)

    def _hold_folder(self):
        self.lock = hold_folder(self.folder)

    def _on_main(self, action: Callable) -> Any:
        """What `action` returns on the main process, on all of them, or what it raises there."""
        result, failure = None, None
        if self.accelerator.is_main_process:
            try:
                result = action()
            except (ValueError, OSError) as error:
                failure = error
        result, failure = broadcast_object_list([result, failure])
        if failure:
            raise failure
        return result

    def record(self) -> dict[str, Any]:
        """All that is needed to rerun this run."""
        return {
            **asdict(self.config),
            **describe_run(),
            "dataset_fingerprint": self.images.fingerprint,
            "num_images": len(self.images),
            "num_processes": self.accelerator.num_processes,
            "num_parameters": sum(parameter.numel() for parameter in self.unet.parameters()),
        }

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share with the one it continues."""
        parts = {"unet": self.unet.config, "scheduler": self.scheduler.config}
        configs = {
            f"{part}.{name}": value
            for part, config in parts.items()
            for name, value in config.items()
            if not name.startswith("_")
        }
        return {**self.config.what_it_computes(), "dataset_fingerprint": self.images.fingerprint, **configs}

    def _restore(self, path: Path):
        files, state = load_checkpoint(path)
        mine = json.loads(json.dumps(self.identity()))
        changed = [
            f"{name} was {state['identity'].get(name)!r} and is {value!r}"
            for name, value in mine.items()
            if state["identity"].get(name) != value
        ]
        if changed:
            raise ValueError(f"resuming {path} would change the run: {'; '.join(changed)}")
        self.unet.load_state_dict(files["unet"])
        names = [name for name, _ in self.unet.named_parameters()]
        restore_optimizer(self.optimizer, self.parameters, names, files["optimizer"])
        for name, ema in self.emas.items():
            for shadow, key in zip(ema.shadow_params, names, strict=True):
                shadow.copy_(files[name][key])
            ema.optimization_step = state["step"]
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.selection.load_state(state["selection"])
        self.step, self.loss, self.window = state["step"], state["loss"], state.get("window", {})
        self.accelerator.print(f"resuming {path} at step {self.step}")

    # The loop

    def start(self):
        """Open the data at the step that is next."""
        config = self.config
        order = BatchOrder(len(self.images), config.batch_size, config.seed)
        size = config.batch_size // self.accelerator.num_processes
        first = size * self.accelerator.process_index
        self.share = slice(first, first + size)
        self.reader = BatchReader(self.images, order, self.share, self.device, self.step, config.max_train_steps)
        self._start_window(**self.window)

    def loop(self):
        """Train to max_train_steps, with logs, samples, validation and checkpoints on the way."""
        config = self.config
        self.start()
        self.stop.listen()
        self._run_samplers()  # those that a stop interrupted
        self._leave_if_asked()
        with tqdm(
            initial=self.step,
            total=config.max_train_steps,
            desc="training",
            unit="step",
            disable=not self.accelerator.is_main_process,
        ) as bar:
            while self.step < config.max_train_steps:
                self.train_step()
                bar.update()
                last = self.step == config.max_train_steps
                if last or self.step % config.logging_steps == 0:
                    bar.set_postfix_str(self._log())
                if last or self.step % config.validation_steps == 0:
                    self._validate()
                self.selection.schedule(self.step, last)
                self._run_samplers()
                if last or self.step % config.checkpointing_steps == 0:
                    self._checkpoint()
                self._leave_if_asked()

    def _leave_if_asked(self):
        if not self.stop.requested() or (self.step == self.config.max_train_steps and not self.selection.pending):
            return
        self._checkpoint()
        raise self.stopped()

    def stopped(self, error: Exception | None = None) -> TrainingStopped:
        """Print what is saved, and how to go on; return what is raised then."""
        saved, again = ", which is saved", command("--resume_from_checkpoint", "latest")
        if error is not None:
            kept = [path.name for path in list_checkpoints(self.folder)] or ["none"]
            saved = f"; what followed failed ({type(error).__name__}), the last checkpoint is {kept[-1]}"
        self.accelerator.print(f"stopped after step {self.step}{saved}; to go on: {again}", flush=True)
        return TrainingStopped()

    def train_step(self):
        """One optimizer step, and one of each average."""
        config, passes = self.config, self.config.gradient_accumulation_steps
        waited = time.perf_counter()
        batch = self.reader.take()
        self.window_data += time.perf_counter() - waited

        shape = (config.batch_size, *batch.shape[1:])
        flips, timesteps, noise = (
            values[self.share] for values in draw_step(config.seed, self.step, shape, len(self.scheduler), self.device)
        )
        torch.manual_seed(seed_for(config.seed, DROPOUT, self.step, self.accelerator.process_index))
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(self.step)

        x0 = to_states(batch, flips if config.random_flip else None)
        parts = [values.chunk(passes) for values in (x0, timesteps, noise)]
        for number, (images, t, eps) in enumerate(zip(*parts, strict=True), start=1):
            with nullcontext() if number == passes else self.accelerator.no_sync(self.model):
                loss = self.objective(self.predict, images, t, eps) / passes
                self.accelerator.backward(loss)
            self.window_loss += loss.detach()
        self.accelerator.clip_grad_norm_(self.parameters, config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for ema in self.emas.values():
            ema.step(self.parameters)
        self.step += 1
        self.window_steps += 1

    def predict(self, x_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the network, as it is trained, predicts."""
        return self.model(x_t.to(memory_format=self.memory_format), timesteps, return_dict=False)[0]

    # Between steps

    def _start_window(self, loss: float = 0.0, steps: int = 0, data: float = 0.0, seconds: float = 0.0):
        """Begin to count what the next log line reports: anew, or from what a checkpoint held."""
        self.window_loss = torch.tensor(loss, device=self.device)
        self.window_steps, self.window_data, self.window_start = steps, data, time.perf_counter() - seconds

    def _summed_loss(self) -> float:
        """The losses since the last log line, the mean over all processes; ValueError where a loss or a weight is not
        finite."""
        loss = self.accelerator.reduce(self.window_loss, "mean").item()
        finite = torch.stack([parameter.isfinite().all() for parameter in self.parameters]).all().item()
        if not (math.isfinite(loss) and finite):
            checkpoints = list_checkpoints(self.folder)
            kept = f"the last checkpoint is {checkpoints[-1]}" if checkpoints else "there is no checkpoint yet"
            mean = loss / max(1, self.window_steps)
            raise ValueError(
                f"{'a weight' if math.isfinite(loss) else 'the loss'} became not finite in {self.window_steps} steps "
                f"to step {self.step} (loss {mean}); nothing was saved, {kept}; try a lower learning_rate "
                f"(now {self.config.learning_rate:g})"
            )
        return loss

    def _log(self) -> str:
        self.loss = self._summed_loss() / max(1, self.window_steps)
        seconds = time.perf_counter() - self.window_start
        values = {
            "loss": self.loss,
            "learning_rate": self.config.learning_rate_at(self.step - 1),
            "images_per_second": self.window_steps * self.config.batch_size / seconds,
            "data_share": self.window_data / seconds,
        }
        self._write(values)
        self._start_window()
        return (
            f"loss {values['loss']:.4f}, {values['images_per_second']:.0f} images/s, "
            f"data {values['data_share']:.0%} of the time"
        )

    def _write(self, values: dict[str, float]):
        self.accelerator.log(values, step=self.step)
        if self.accelerator.is_main_process:
            log_line(self.folder, self.step, values)

    def pipeline(self) -> DDIMCustomPipeline:
        """The network as it stands, as a pipeline."""
        pipeline = DDIMCustomPipeline(self.unet, self.scheduler)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def averaged(self, name: str | None = None) -> Averaged:
        """A context in which the network has averaged weights: those called `name`, or the first."""
        ema = self.emas.get(name) if name else next(iter(self.emas.values()), None)
        return Averaged(self.unet, self.parameters, ema)

    def _validate(self):
        if self.validation is None:
            return
        began = time.perf_counter()
        with self.averaged():
            loss = validation_loss(
                self.unet, self.objective, self.validation, self.config, self.accelerator, self.stop
            )
        if loss is not None:
            self._write({"validation_loss": loss})
        self.window_start += time.perf_counter() - began

    def _run_samplers(self):
        if not self.selection.pending:
            return
        began = time.perf_counter()
        with self.averaged():
            for values in self.selection.run(self.pipeline(), self.step):
                self._write(values)
        self.window_start += time.perf_counter() - began

    def _checkpoint(self):
        loss, began = self._summed_loss(), time.perf_counter()
        self._on_main(lambda: self._save(loss, began - self.window_start))
        self.window_start += time.perf_counter() - began

    def _save(self, loss: float, seconds: float):
        """Write the checkpoint; `loss` and `seconds` are those since the last log line."""
        names = [name for name, _ in self.unet.named_parameters()]
        files = {
            "unet": self.unet.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.parameters, names),
            **{name: dict(zip(names, ema.shadow_params, strict=True)) for name, ema in self.emas.items()},
        }
        scaler = self.accelerator.scaler
        state = {
            "identity": self.identity(),
            "selection": self.selection.state(),
            "loss": self.loss,
            "window": {"loss": loss, "steps": self.window_steps, "data": self.window_data, "seconds": seconds},
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        save_checkpoint(self.folder, self.step, files, state, self.config.checkpoints_total_limit)

    # After the last step

    def finish(self):
        """Save the result: the first average in the run's folder, each further one in a folder of its own."""
        if self.accelerator.is_main_process:
            for number, name in enumerate(self.emas or [None]):
                with self.averaged(name):
                    save_model(self.pipeline(), self.folder if number == 0 else self.folder / name)
            record = {**self.record(), "final_step": self.step, "final_loss": self.loss}
            write_text(self.folder / "config.json", json.dumps(record, indent=2) + "\n")
            self.stop.ignore()  # all is saved: from here on a signal ends the process at once
            self._publish()
            print(f"the model lies in {self.folder}; sample it: python examples/sample.py {self.folder}")
        self.accelerator.wait_for_everyone()

    def _publish(self):
        """Write the model card, and push the result if the run is to; what fails there costs nothing on disk."""
        config = self.config
        latest = sorted((self.folder / "samples").glob(f"step-{self.step:07d}-*.png"))
        if latest:
            shutil.copyfile(latest[0], self.folder / "samples.png")
        write_model_card(self.folder, repo_id=config.hub_model_id)
        if not config.push_to_hub:
            return
        try:
            print(f"pushed: {push_to_hub(self.folder, config.hub_model_id, private=config.hub_private or None)}")
        except (OSError, ValueError) as error:
            again = f"python examples/push_to_hub.py {self.folder} {config.hub_model_id}"
            print(f"not pushed: {error}\nto retry: {again}{' --private' if config.hub_private else ''}")

    def close(self):
        """Let go of signals, threads and trackers."""
        if self.reader is not None:
            self.reader.close()
        # What holds the process group goes before it: freed later, it may wait for the group's threads for ever.
        self.model = self.optimizer = self.lock = None  # which frees the folder
        self.stop.close()
        self.accelerator.free_memory()
        self.accelerator.end_training()
