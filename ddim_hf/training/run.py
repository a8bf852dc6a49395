"""train(config): DDPM's objective (Ho et al. 2020; the DDIM paper's L_1, eq. 5) under accelerate.

Order, flips, timesteps, noise and hidden labels of a step are functions of (seed, step, position in the global batch),
so a run is the same on one process or many, and a resumed run continues exactly. Dropout masks are functions of (seed,
step, process).
"""

import json
import math
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from tqdm.auto import tqdm

from ..data.sources import is_on_hub
from ..files import read_json, write_text
from ..hub import is_model
from ..loss import Objective
from ..pipeline_ddim_custom import DDIMCustomPipeline
from ..processes import gathered, on_main
from ..reports.provenance import command, describe_run
from .batches import DROPOUT, BatchOrder, BatchReader, draw_hidden, draw_step, seed_for, to_states
from .checkpoints import TrainingState, find_checkpoint, lay_out_moments, list_checkpoints, set_aside_newer
from .classes import FROM_ZERO, check_labels, classes_without_images, null_labels, with_classes
from .computation import Computation, place
from .config import TrainingConfig
from .ema import Averages
from .log import Window, log_line, trim_log
from .outlook import Pace, summarize
from .plan import describe_plan
from .result import publish, save_result, set_aside
from .samplers import Samplers
from .setup import (
    build_accelerator,
    build_model,
    build_optimizer,
    check_samplers,
    forgotten_afterwards,
    hold_folder,
    load_split,
    record_of,
    with_precision,
)
from .sharding import part, with_network
from .stopping import StopRequest, TrainingStopped
from .validation import validation_loss


def train(config: TrainingConfig) -> Path:
    """Run a training to its end and return its folder, which holds the EMA model as a loadable pipeline.

    Raises:
        ValueError: settings or data that do not fit, a loss that is not finite, or a resume that would change the run.
        OSError: data, a checkpoint or the result could not be read or written.
        TrainingStopped: SIGTERM or SIGINT arrived; a checkpoint was saved, unless the signal also went to a compiler
            at work, as to a whole process group: then the one before it counts.
    """
    with forgotten_afterwards():
        if config.dry_run:
            accelerator = build_accelerator(config)
            accelerator.print(describe_plan(with_precision(config, accelerator), accelerator))
        else:
            _train(config)
    return Path(config.output_dir)


def _train(config: TrainingConfig):
    run = TrainingRun(config)
    try:
        run.resume()
        run.choose_computation()
        run.loop()
        run.finish()
    except TrainingStopped as stopped:
        run.accelerator.print(stopped, flush=True)
        raise
    except RuntimeError as error:
        if not run.stop.received:
            raise
        # The signal has ended a compiler too, and the step failed on that.
        stopped = run.stopped_by(error)
        run.accelerator.print(stopped, flush=True)
        raise stopped from error
    finally:
        run.close()


class TrainingRun:
    """One run: the parts that it is made of, and the loop over them.

    `state` is what changes from step to step and lies in a checkpoint; all else follows from `config`.
    """

    def __init__(self, config: TrainingConfig):
        # How it was launched
        self.accelerator = build_accelerator(config)
        config = with_precision(config, self.accelerator)
        self.folder = Path(config.output_dir)
        self.device = self.accelerator.device
        self.stop = StopRequest()
        self.lock = None  # on the folder, from `resume` on
        self.origin: dict[str, Any] = {}  # what is on record of how a run that is gone on with began

        # The network and what it is trained on
        self.unet, self.scheduler, before = build_model(config)
        self.started_from = record_of(config.pretrained)  # now: a run that goes on may replace it later
        check_samplers(config, self.scheduler)
        channels = self.unet.config.in_channels
        self.images, described = load_split(config, config.split, channels)
        names, changes = self.images.label_names, []
        if config.class_conditional:
            check_labels(self.images)
            from_zero = config.pretrained is not None and self.unet.config.num_class_embeds is None
            rate = config.class_learning_rate or config.learning_rate * (FROM_ZERO if from_zero else 1)
            config = replace(config, class_learning_rate=rate)
            new = config.seed if config.pretrained is None else None
            self.unet, changes = with_classes(self.unet, names, before, new)
            changes += classes_without_images(self.images)
        self.accelerator.print(*summarize(config, self.unet, described), *changes, sep="\n", flush=True)
        self.config = config = replace(config, max_train_steps=config.steps_for(len(self.images)))
        self.held_out = self.held_out_labels = None
        if config.validation_split != "none":
            self.held_out, _ = load_split(config, config.validation_split, channels)
            if config.class_conditional:
                self.held_out_labels = self.held_out.labels_as(names, f"the labels of split {config.split}")
        share = config.batch_size // self.accelerator.num_processes
        first = share * self.accelerator.process_index
        self.share = slice(first, first + share)  # of each step's batch, this process's part
        self.reader = BatchReader(
            self.images,
            BatchOrder(len(self.images), config.batch_size, config.seed),
            self.share,
            self.device,
            config.max_train_steps,
            config.data_on_device,
        )

        # What trains it
        self.unet.to(self.device).train()
        if config.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        # CUDA graphs spare the host a thousand launches a step; with other processes or passes, gradients would be
        # needed beyond the replay that overwrites them.
        alone = self.accelerator.num_processes == config.gradient_accumulation_steps == 1
        sharded = self.accelerator.distributed_type is DistributedType.FSDP  # of tensors in the usual layout alone
        channels_last = False if sharded else config.channels_last
        self.computation = Computation(self.unet, self.device, channels_last, cuda_graphs=alone)
        self.model, optimizer = self.accelerator.prepare(self.unet, build_optimizer(config, self.unet))
        if config.compile is True:
            self.computation.compile()
        self.objective = Objective(self.scheduler, config.snr_gamma, config.loss_weighting)

        # What a checkpoint holds
        self.pipeline = DDIMCustomPipeline(self.unet, self.scheduler, dict(enumerate(names)) or None)
        self.pipeline.set_progress_bar_config(disable=True)
        self.state = TrainingState(
            self.pipeline,
            Averages(self.unet, config.averages()),
            optimizer,
            self.accelerator.scaler,
            Samplers(config, self.accelerator, self.images, self.stop),
            Window(self.device),
        )

    # Before the first step

    def resume(self):
        """Continue from a checkpoint where one is asked for; refuse to run over another run's folder."""
        config, wanted = self.config, self.config.resume_from_checkpoint
        named = wanted not in (None, "latest")
        if not named:  # what there is may change while another run saves
            on_main(self._hold_folder)
        path = on_main(self._find_checkpoint)
        if path is not None:
            self.state.load(path, self.identity())
            if self.state.step > config.max_train_steps:
                raise ValueError(
                    f"{path} is beyond max_train_steps, {config.max_train_steps}; allowed: from {self.state.step}"
                )
            self.state.validation_due &= self.held_out is not None
            self.accelerator.print(f"resuming {path} at step {self.state.step}")
            self.origin = on_main(lambda: _origin(path.parent))
            if (began := self.origin.get("pretrained", config.pretrained)) != config.pretrained:
                self.accelerator.print(
                    f"note: the run began from {began or 'a new network'}, which stays on record; --pretrained "
                    f"{config.pretrained} changes nothing"
                )
        elif wanted is not None:
            self.accelerator.print(f"no checkpoint in {self.folder} yet: starting at step 0")
        if named:  # only now, so that a wrong name makes no folder
            on_main(self._hold_folder)
        begins = path is None or path.parent.resolve() != self.folder.resolve()
        on_main(lambda: self._begin_records(begins))
        if config.logger != "none":
            flat = {name: value for name, value in asdict(config).items() if isinstance(value, int | float | str)}
            # For TensorBoard a folder in the run's, where what it holds of the steps to come is hidden; for Weights &
            # Biases a project.
            self.accelerator.init_trackers(
                "logs" if config.logger == "tensorboard" else "ddim_hf",
                config=flat,
                init_kwargs={"tensorboard": {"purge_step": self.state.step + 1}},
            )

    def _find_checkpoint(self) -> Path | None:
        """The one that is asked for; None if there is none, or none is."""
        wanted, existing = self.config.resume_from_checkpoint, list_checkpoints(self.folder)
        if not existing and is_model(self.folder):
            raise ValueError(f"{self.folder} holds a model, and no checkpoint of a run; allowed: another --output_dir")
        beside = wanted is not None and Path(wanted).resolve().parent == self.folder.resolve()
        if existing and wanted != "latest" and not beside:
            raise ValueError(
                f"{self.folder} already holds {existing[-1].name}; allowed: --resume_from_checkpoint latest to go "
                "on with it, or another --output_dir"
            )
        return None if wanted is None else find_checkpoint(self.folder, wanted)

    def _hold_folder(self):
        self.lock = hold_folder(self.folder)

    def _begin_records(self, begins: bool):
        """Make the folder's files those of a run at this step; of one that begins in it, none are there yet."""
        for path in set_aside_newer(self.folder, self.state.step):
            print(f"set aside: {path}")
        if begins:
            best = [path for path in sorted(self.folder.glob("best-*")) if ".aside" not in path.name]
            set_aside([self.folder / "samples", *best], "of a run that was here before")
        if not is_model(self.folder):  # else of an earlier end: its record stays until another model takes its place
            self._write_record()
        trim_log(self.folder, 0 if begins else self.state.step)

    def _write_record(self, **end: Any):
        write_text(self.folder / "config.json", json.dumps({**self.record(), **end}, indent=2) + "\n")

    def record(self) -> dict[str, Any]:
        """All that is needed to rerun this run."""
        return {
            **asdict(self.config),
            **describe_run(),
            "started_from": self.started_from,
            "dataset_on_hub": is_on_hub(self.config.dataset_name),
            "dataset_fingerprint": self.images.fingerprint,
            "images_fingerprint": self.images.unlabelled().fingerprint,
            "num_images": len(self.images),
            "label_names": list(self.images.label_names) or None,
            "num_processes": self.accelerator.num_processes,
            "sharded": self.accelerator.distributed_type is DistributedType.FSDP,
            "num_parameters": sum(parameter.numel() for parameter in self.unet.parameters()),
            **self.origin,
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

    def choose_computation(self):
        """Where `--compile auto` asks for it, compile if that is faster; nothing else of the run changes."""
        if self.config.compile != "auto":
            return
        images = (self.share.stop - self.share.start) // self.config.gradient_accumulation_steps
        shape, generator = (images, *self.images.shape[1:]), torch.Generator(self.device).manual_seed(0)
        noise = torch.randn(shape, generator=generator, device=self.device)
        timesteps = torch.zeros(images, dtype=torch.int64, device=self.device)

        def one_pass():
            with self.accelerator.no_sync(self.model):
                loss = self.objective(self.predict, noise, timesteps, noise)
                self.accelerator.backward(loss)
            self.unet.zero_grad(set_to_none=True)
            loss.item()
            if self.device.type != "cpu":
                torch.accelerator.synchronize()

        def slowest(seconds: float) -> float:
            return max(gathered(seconds))

        self.accelerator.print("compile auto: a trial, some minutes where passes take long", flush=True)
        with torch.random.fork_rng([] if self.device.type == "cpu" else [self.device]):  # dropout draws
            here = on_main(lambda: place(images))  # the main process's, so that all keep a choice or none
            said = self.computation.choose(one_pass, here, slowest, self.state.choice)
        self.state.choice = self.computation.choice
        lay_out_moments(self.state.optimizer)
        self.accelerator.print(said, flush=True)

    # The loop

    def loop(self):
        """Train to max_train_steps, with logs, samples, validation and checkpoints on the way."""
        config, state, pace = self.config, self.state, Pace()
        state.window.restart()
        self.stop.listen()

        # The validation and the samplers that a stop interrupted
        if state.validation_due or state.samplers.pending:
            self.validate()
            self.sample()
            self.checkpoint()
        self.leave_if_asked()

        with tqdm(
            initial=state.step,
            total=config.max_train_steps,
            desc="training",
            unit="step",
            disable=not self.accelerator.is_main_process,
        ) as bar:
            while state.step < config.max_train_steps:
                # One optimizer step, and one of each average
                with pace.step(state.window.loss.item):
                    self.train_step()
                bar.update()
                said = pace.in_words(config.max_train_steps - state.step)
                if said and self.accelerator.is_main_process:
                    bar.write(said)
                last = state.step == config.max_train_steps

                # The figures since the last log line
                if last or state.step % config.logging_steps == 0:
                    bar.set_postfix_str(self.log())

                # The loss of the averaged weights on held-out images
                if self.held_out:
                    state.validation_due = last or state.step % config.validation_steps == 0
                self.validate()

                # Samples of the averaged weights, and the best model of each sampler
                state.samplers.schedule(state.step, last)
                self.sample()

                # A checkpoint, after all that belongs to this step
                if last or state.step % config.checkpointing_steps == 0:
                    self.checkpoint()

                # A stop, of all processes after the same step
                self.leave_if_asked()

    def train_step(self):
        """One optimizer step, and one of each average."""
        config, state, passes = self.config, self.state, self.config.gradient_accumulation_steps

        # Images, and the random numbers of the global batch, of which this process uses its share
        with state.window.waiting_for_data():
            batch, labels = self.reader.take(state.step)
        shape = (config.batch_size, *batch.shape[1:])
        draws = draw_step(config.seed, state.step, shape, len(self.scheduler), self.device)
        flips, timesteps, noise = (values[self.share] for values in draws)
        if labels is not None:
            hidden = draw_hidden(config.seed, state.step, config.batch_size, config.label_dropout, self.device)
            labels = torch.where(hidden[self.share], null_labels(self.unet, len(labels)), labels)
        torch.manual_seed(seed_for(config.seed, DROPOUT, state.step, self.accelerator.process_index))
        x0 = to_states(batch, flips if config.random_flip else None)

        # Forward and backward in passes; gradients are averaged over the processes in the last one
        parts = [values.chunk(passes) for values in (x0, timesteps, noise)]
        parts.append([None] * passes if labels is None else labels.chunk(passes))
        for number, (images, t, eps, classes) in enumerate(zip(*parts, strict=True), start=1):
            with nullcontext() if number == passes else self.accelerator.no_sync(self.model):
                loss = self.objective(partial(self.predict, labels=classes), images, t, eps) / passes
                self.accelerator.backward(loss)
            state.window.loss += loss.detach()

        # The update
        for group in state.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(state.step) * group["share"]
        self.accelerator.clip_grad_norm_(self.unet.parameters(), config.max_grad_norm)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.averages.update()
        state.step += 1
        state.window.steps += 1

    def predict(self, x_t: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """What the network, as it is trained, predicts; without labels, for the null class where it has classes."""
        labels = null_labels(self.unet, len(x_t)) if labels is None else labels
        x_t = x_t.to(memory_format=self.computation.memory_format)
        return self.model(x_t, timesteps, labels, return_dict=False)[0]

    def log(self) -> str:
        """Log what the window holds and begin another; return it in words."""
        config, state, window = self.config, self.state, self.state.window
        state.loss = self.summed_loss() / max(1, window.steps)
        values = {
            "loss": state.loss,
            "learning_rate": config.learning_rate_at(state.step - 1),
            "images_per_second": window.steps * config.batch_size / window.seconds,
            "data_share": window.data / window.seconds,
        }
        self.write(values)
        state.window = Window(self.device)
        return (
            f"loss {values['loss']:.4f}, {values['images_per_second']:.0f} images/s, "
            f"data {values['data_share']:.0%} of the time"
        )

    def write(self, values: dict[str, float]):
        """Log figures of this step."""
        self.accelerator.log(values, step=self.state.step)
        if self.accelerator.is_main_process:
            log_line(self.folder, self.state.step, values)

    def summed_loss(self) -> float:
        """The window's losses, the mean over all processes; ValueError where a loss or a weight is not finite."""
        config, state = self.config, self.state
        here = torch.stack([part(parameter).isfinite().all() for parameter in self.unet.parameters()]).all()
        loss, finite = self.accelerator.reduce(torch.stack([state.window.loss, here.float()]), "mean").tolist()
        finite = finite == 1  # on all processes, of which each may hold a part of the weights
        if math.isfinite(loss) and finite:
            return loss
        checkpoints = on_main(lambda: list_checkpoints(self.folder))  # all processes come here, or none
        kept = f"the last checkpoint is {checkpoints[-1]}" if checkpoints else "there is no checkpoint yet"
        raise ValueError(
            f"{'a weight' if math.isfinite(loss) else 'the loss'} became not finite in {state.window.steps} steps "
            f"to step {state.step} (loss {loss / max(1, state.window.steps)}); nothing was saved, {kept}; try a lower "
            f"learning_rate (now {config.learning_rate:g})"
        )

    def validate(self):
        """Where it is due, log the loss on held-out images; with classes also for the null class, if it is trained."""
        if not self.state.validation_due:
            return
        labels = {"validation_loss": self.held_out_labels}
        if self.held_out_labels is not None and self.config.label_dropout > 0:
            labels["validation_loss_null"] = None
        with self.state.window.paused(), self.state.averages.applied() as unet:
            settings = (self.config, self.accelerator, self.stop)
            losses = {
                name: validation_loss(unet, self.objective, self.held_out, classes, *settings)
                for name, classes in labels.items()
            }
        if None not in losses.values():
            self.write(losses)
            self.state.validation_due = False

    def sample(self):
        """Run the samplers that are due."""
        if not self.state.samplers.pending:
            return
        with self.state.window.paused(), self.state.averages.applied() as unet:
            for values in self.state.samplers.run(with_network(self.pipeline, unet), self.state.step):
                self.write(values)

    def checkpoint(self):
        """Save all that the run needs to go on from here."""
        with self.state.window.paused():
            loss, limit = self.summed_loss(), self.config.checkpoints_total_limit
            self.state.save(self.folder, loss, self.identity(), limit)

    def leave_if_asked(self):
        """Save and raise TrainingStopped where a signal asks for it, unless all is done."""
        to_come = self.state.step < self.config.max_train_steps or self.state.validation_due
        if self.stop.requested() and (to_come or self.state.samplers.pending):
            self.checkpoint()
            raise TrainingStopped(f"stopped after step {self.state.step}, which is saved; {self._how_to_go_on()}")

    def stopped_by(self, error: Exception) -> TrainingStopped:
        """What to raise where a stop led to an error, so that its step is lost."""
        last = (["none"] + [path.name for path in list_checkpoints(self.folder)])[-1]
        return TrainingStopped(
            f"stopped after step {self.state.step}; what followed failed ({type(error).__name__}), the last "
            f"checkpoint is {last}; {self._how_to_go_on()}"
        )

    @staticmethod
    def _how_to_go_on() -> str:
        return f"to go on: {command('--resume_from_checkpoint', 'latest')}"

    # After the last step

    def finish(self):
        """Save the result: the first average in the run's folder, each further one in a folder of its own."""
        averages, changed = self.state.averages, []
        for number, name in enumerate(averages.names or [None]):
            folder = self.folder if number == 0 else self.folder / name
            with averages.applied(name) as unet:
                changed.append(on_main(partial(save_result, with_network(self.pipeline, unet), folder)))
            on_main(self._write_record)  # in the place of that of an earlier end, whose weights are gone
        on_main(lambda: self._write_record(final_step=self.state.step, final_loss=self.state.loss))
        self.stop.ignore()  # all is saved: from here on a signal ends the process at once
        if self.accelerator.is_main_process:  # for as long as it takes: no other one waits for it
            publish(self.config, self.folder, self.state.step, changed[0])
            print(f"the model lies in {self.folder}; sample it: python examples/sample.py {self.folder}")

    def close(self):
        """Let go of signals, threads, trackers and the folder."""
        self.reader.close()
        # What holds the process group goes before it: freed later, it may wait for the group's threads for ever.
        self.model = self.state = self.lock = None  # which frees the folder
        self.stop.close()
        self.accelerator.free_memory()
        self.accelerator.end_training()


def _origin(run: Path) -> dict[str, Any]:
    """What a run's record says of the network that it began from; nothing where there is no record."""
    record = read_json(run / "config.json") if (run / "config.json").is_file() else {}
    return {name: record[name] for name in ("pretrained", "network", "started_from") if name in record}
