"""train(): resuming, what it refuses, accumulation, averages, records, samplers, the Hub. All in this process."""

import json
import os
import runpy
import shlex
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline, UNet2DModel
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from training_runs import ROOT, config, difference, log_lines, save_tiny_model, tensors, weights

from ddim_hf import DDIMCustomPipeline
from ddim_hf.files import sha256
from ddim_hf.hub import model_card
from ddim_hf.training import TrainingRun, TrainingStopped, train
from ddim_hf.training.setup import build_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {dropout: save_tiny_model(folder / f"{dropout}", dropout) for dropout in (0.0, 0.2)}


@pytest.fixture(scope="module")
def finished(models, tmp_path_factory):
    """A run of 12 steps with checkpoints at 6 and 12; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return train(config(models[0.0], folder, validation_split="test", validation_steps=6))


def continued(finished: Path, folder: Path) -> Path:
    """A copy of a run as it was when checkpoint-6 had just been saved."""
    shutil.copytree(finished / "checkpoint-6", folder / "checkpoint-6")
    shutil.copy(finished / "log.jsonl", folder)
    return folder


VARIANTS = {
    "dropout, two averages": dict(model=0.2, ema_decay="0.9,0.99"),
    "v, min-SNR, accumulation, no average": dict(
        model=0.2,
        prediction_type="v_prediction",
        snr_gamma=5.0,
        gradient_accumulation_steps=2,
        ema_decay="none",
        channels_last=False,
    ),
    "bf16, flips": dict(model=0.0, mixed_precision="bf16", random_flip=True),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resuming_is_exact(models, tmp_path, variant):
    """A run resumed half-way, between two log lines, ends with the weights, moments, averages and logged losses of one
    never stopped, bit for bit."""
    settings = {**VARIANTS[variant]}
    model = models[settings.pop("model")]
    whole = train(config(model, tmp_path / "whole", **settings))
    half = continued(whole, tmp_path / "half")
    train(config(model, half, resume_from_checkpoint="latest", **settings))
    assert difference(weights(half), weights(whole)) == 0
    assert difference(tensors(half / "checkpoint-12"), tensors(whole / "checkpoint-12")) == 0
    assert difference(tensors(whole / "checkpoint-6"), tensors(whole / "checkpoint-12")) > 1e-3  # it did train
    lines, wanted = ([(line["step"], line["loss"]) for line in log_lines(folder)] for folder in (half, whole))
    assert [step for step, _ in lines] == [4, 8, 12] and lines == wanted
    assert {value.dtype for value in weights(half).values()} == {torch.float32}


def test_seeds_differ(models, finished, tmp_path):
    """Another seed is another run, and the same seed the same run, bit for bit."""
    again = train(config(models[0.0], tmp_path / "again", max_train_steps=12))
    other = train(config(models[0.0], tmp_path / "other", max_train_steps=12, seed=1))
    assert difference(weights(again), weights(finished)) == 0
    assert difference(weights(other), weights(finished)) > 1e-4


def test_a_torn_newest_checkpoint_is_passed_over(models, finished, tmp_path, caplog):
    """A torn newest checkpoint is named in a warning, the one before it used, and its place taken by a whole one."""
    folder = shutil.copytree(finished, tmp_path / "run")
    torn = folder / "checkpoint-12" / "unet.safetensors"
    torn.write_bytes(torn.read_bytes()[:-100])
    (folder / ".checkpoint-7.partial").mkdir()
    settings = dict(resume_from_checkpoint="latest", checkpoints_total_limit=1, checkpointing_steps=2)
    train(config(models[0.0], folder, **settings))
    assert "checkpoint-12 cannot be used (unet.safetensors" in caplog.text
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-12.aside"]
    assert not list(folder.glob(".checkpoint-*"))
    assert difference(tensors(folder / "checkpoint-12"), tensors(finished / "checkpoint-12")) == 0


def test_no_usable_checkpoint_stops(models, finished, tmp_path):
    """Where every checkpoint is torn the run says so and does not start over."""
    folder = continued(finished, tmp_path)
    (folder / "checkpoint-6" / "state.json").write_text("{")
    with pytest.raises(ValueError, match="no checkpoint in .* can be used"):
        train(config(models[0.0], folder, resume_from_checkpoint="latest"))
    assert not list(folder.glob("unet"))


def test_what_would_change_the_run_is_refused(models, finished, tmp_path):
    """Resuming with another network, data, batch size, seed or schedule is refused with the setting's name."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for shade in range(16):
        Image.new("L", (8, 8), shade).save(pictures / f"{shade}.png")
    cache = dict(cache_dir=str(tmp_path / "cache"))
    changes = {
        "unet.dropout was 0.0 and is 0.2": dict(model=0.2),
        "dataset_fingerprint was": dict(dataset_name=str(pictures), **cache),
        "batch_size was 16 and is 32": dict(batch_size=32),
        "seed was 0 and is 1": dict(seed=1),
        "learning_rate was": dict(learning_rate=0.5),
        "max_train_steps was 12 and is 14": dict(max_train_steps=14),
        "scheduler.prediction_type was 'epsilon'": dict(prediction_type="sample"),
    }
    for message, change in changes.items():
        model = models[change.pop("model", 0.0)]
        with pytest.raises(ValueError, match=f"would change the run: {message}"):
            train(config(model, continued(finished, tmp_path / message), resume_from_checkpoint="latest", **change))
    with pytest.raises(ValueError, match="already holds checkpoint-12; allowed: --resume_from_checkpoint"):
        train(config(models[0.0], finished))


def test_a_decay_is_the_same_as_text_and_as_a_number(models, tmp_path):
    """A run whose ema_decay was given as a number, also in a checkpoint of an earlier version, goes on with the text,
    and the other way round."""
    settings = dict(lr_scheduler="constant", resume_from_checkpoint="latest")
    folder = train(config(models[0.0], tmp_path / "run", max_train_steps=2, ema_decay=0.99, **settings))
    train(config(models[0.0], folder, max_train_steps=3, ema_decay="0.99", **settings))
    file = folder / "checkpoint-3" / "state.json"
    state = json.loads(file.read_text())
    assert state["identity"]["ema_decay"] == "0.99"
    state["identity"]["ema_decay"] = 0.99
    file.write_text(json.dumps(state))
    for steps, decay in ((4, "0.99"), (5, 0.99)):
        train(config(models[0.0], folder, max_train_steps=steps, ema_decay=decay, **settings))
    with pytest.raises(ValueError, match="ema_decay was '0.99' and is '0.9'"):
        train(config(models[0.0], folder, max_train_steps=6, ema_decay=0.9, **settings))


def test_what_does_not_change_the_run_is_allowed(models, finished, tmp_path):
    """How often a run logs, checkpoints and validates may change when it is resumed, and the run stays the same."""
    folder = continued(finished, tmp_path / "run")
    free = dict(logging_steps=1, checkpointing_steps=3, validation_split="test", skip_broken=True)
    train(config(models[0.0], folder, resume_from_checkpoint=str(folder / "checkpoint-6"), **free))
    assert difference(weights(folder), weights(finished)) == 0


def test_gradient_accumulation_is_the_same_run(models, finished, tmp_path):
    """Working a step off in 4 passes changes the weights by rounding alone (within 1e-4, as AdamW enlarges it)."""
    folder = train(config(models[0.0], tmp_path / "run", gradient_accumulation_steps=4))
    assert difference(weights(folder), weights(finished)) < 1e-4
    losses = [[line["loss"] for line in log_lines(run) if "loss" in line] for run in (folder, finished)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_accelerates_own_accumulation_setting_changes_nothing(models, finished, tmp_path, monkeypatch):
    """accelerate launch --gradient_accumulation_steps is not applied on top of ours."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    folder = train(config(models[0.0], tmp_path / "run"))
    assert difference(weights(folder), weights(finished)) == 0


@pytest.mark.parametrize("learning_rate, what", [(1e36, "the loss"), (1e39, "a weight")])
def test_a_loss_that_is_not_finite_stops_the_run(models, tmp_path, learning_rate, what):
    """A run that diverges stops with the reason; what was not finite is never saved, and no checkpoint is touched."""
    settings = dict(learning_rate=learning_rate, lr_warmup_steps=0, checkpointing_steps=1, checkpoints_total_limit=1)
    with pytest.raises(ValueError, match=f"{what} became not finite .* nothing was saved.* lower learning_rate"):
        train(config(models[0.0], tmp_path / "run", **settings))
    saved = list((tmp_path / "run").glob("checkpoint-*"))
    assert [path.name for path in saved] == (["checkpoint-1"] if what == "the loss" else [])
    assert all(value.isfinite().all() for path in saved for value in tensors(path).values())
    assert not (tmp_path / "run" / "unet").exists()


def test_averages_are_what_they_say(models, tmp_path):
    """Each EMA is the recursion on the weights after each step, saved as a pipeline of its own; the first is the
    result."""
    limits = dict(checkpointing_steps=1, checkpoints_total_limit=9, max_train_steps=8, ema_decay="0.6,0.15")
    folder = train(config(models[0.0], tmp_path / "run", **limits))
    unet = build_model(config(models[0.0], folder))[0]
    averages = {decay: {name: value.double() for name, value in unet.state_dict().items()} for decay in (0.6, 0.15)}
    for step in range(1, 9):
        now = load_file(folder / f"checkpoint-{step}" / "unet.safetensors")
        for decay, average in averages.items():
            used = min(decay, step / (9 + step)) if step > 1 else 0.0  # diffusers' warm-up of the decay
            for name in average:
                average[name] = used * average[name] + (1 - used) * now[name].double()
    for place, decay in ((folder, 0.6), (folder / "ema-0.15", 0.15)):
        assert isinstance(DiffusionPipeline.from_pretrained(place).unet, UNet2DModel)
        assert difference(averages[decay], weights(place)) < 1e-6
    assert difference(weights(folder), weights(folder / "ema-0.15")) > 1e-5


def test_a_runs_folder_says_how_to_rerun_it(finished):
    """config.json holds every setting, versions, commit and data; its settings alone make the same run."""
    record = json.loads((finished / "config.json").read_text())
    assert {"torch", "diffusers", "accelerate", "python"} <= record["versions"].keys()
    assert len(record["git_commit"].rstrip("+")) == 40 and record["command"]
    assert record["dataset_on_hub"] is False  # the digits come with scikit-learn
    assert (record["num_images"], record["final_step"], record["num_processes"]) == (1617, 12, 1)
    assert record["final_loss"] == log_lines(finished)[-2]["loss"]
    steps = [(line["step"], sorted(set(line) - {"step"})) for line in log_lines(finished)]
    figures = ["data_share", "images_per_second", "learning_rate", "loss"]
    held_out = ["validation_loss"]
    assert steps == [(4, figures), (6, held_out), (8, figures), (12, figures), (12, held_out)]
    assert all(0 <= line.get("data_share", 0) <= 1 for line in log_lines(finished))


def test_validation_leaves_the_run_alone(finished, models, tmp_path):
    """The validation loss is that of the averaged weights on fixed draws, and validating does not change the run."""
    folder = train(config(models[0.0], tmp_path / "run"))
    assert difference(weights(folder), weights(finished)) == 0
    losses = [line["validation_loss"] for line in log_lines(finished) if "validation_loss" in line]
    again = train(config(models[0.0], tmp_path / "again", validation_split="test", validation_steps=6))
    assert losses == [line["validation_loss"] for line in log_lines(again) if "validation_loss" in line]
    assert 0.2 < losses[1] < losses[0] < 1.5


def test_the_validation_loss_is_the_same_in_batches_of_any_size(models, tmp_path):
    """eval_batch_size does not change which timesteps and noise the held-out images have: the loss is the same up to
    rounding (1e-6)."""
    settings = dict(validation_split="test", validation_images=150, max_train_steps=1)
    runs = [
        train(config(models[0.0], tmp_path / f"{size}", eval_batch_size=size, **settings)) for size in (64, 27, 99)
    ]
    losses = [log_lines(folder)[-1]["validation_loss"] for folder in runs]
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-6)


@pytest.mark.parametrize("stopped_at", [6, 12])
def test_a_stop_costs_no_validation(finished, models, tmp_path, monkeypatch, stopped_at):
    """A run that is stopped amid a validation, the last one too, validates when it goes on, once, and logs what one
    that was never stopped does."""
    settings = dict(validation_split="test", validation_steps=6, resume_from_checkpoint="latest")
    folder, validate = tmp_path / "run", TrainingRun.validate

    def stop_amid(run):
        if run.state.step == stopped_at:
            os.kill(os.getpid(), signal.SIGTERM)
        validate(run)

    with monkeypatch.context() as patch, pytest.raises(TrainingStopped, match=f"stopped after step {stopped_at}, "):
        patch.setattr(TrainingRun, "validate", stop_amid)
        train(config(models[0.0], folder, **settings))
    assert stopped_at not in [line["step"] for line in log_lines(folder) if "validation_loss" in line]
    for _ in range(2):
        train(config(models[0.0], folder, **settings))
        held_out = [
            [(line["step"], line["validation_loss"]) for line in log_lines(run) if "validation_loss" in line]
            for run in (folder, finished)
        ]
        assert held_out[0] == held_out[1] and len(held_out[0]) == 2


def test_the_bar_tells_time_left_speed_and_the_share_of_data(models, tmp_path, capsys):
    """The progress bar shows the time left, images a second and the share of time that waiting for data took."""
    train(config(models[0.0], tmp_path / "run"))
    bar = capsys.readouterr().err
    assert "images/s, data " in bar and "% of the time" in bar
    assert "<00:" in bar  # elapsed<left


def test_the_speed_is_that_of_training_alone(models, finished, tmp_path, monkeypatch):
    """What is done before the first step, such as waiting for another run or a trial of the compiler, counts as no
    time of training; the seconds of a window that a stop cut do."""
    folder = continued(finished, tmp_path / "run")
    state = json.loads((folder / "checkpoint-6" / "state.json").read_text())
    state["window"]["seconds"] = 100.0
    (folder / "checkpoint-6" / "state.json").write_text(json.dumps(state))
    run = TrainingRun(config(models[0.0], folder, resume_from_checkpoint="latest"))
    try:
        run.resume()
        clock = time.perf_counter
        monkeypatch.setattr(time, "perf_counter", lambda: clock() + 1000)
        run.loop()
    finally:
        run.close()
    (line,) = [line for line in log_lines(folder) if line["step"] == 8]
    assert 100 < 4 * 16 / line["images_per_second"] < 1000


def test_fine_tuning_from_the_hub(models, tmp_path, hub):
    """--pretrained takes a Hub id, and with it the model's noise schedule and what it predicts."""
    schedule = dict(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2")
    published = Path(save_tiny_model(tmp_path / "v", **schedule))
    files = [file for file in published.rglob("*") if file.is_file()]
    hub.add_repo("org/tiny", {file.relative_to(published).as_posix(): file.read_bytes() for file in files})
    folder = train(config("org/tiny", tmp_path / "run", learning_rate=1e-9, max_train_steps=2))
    assert difference(weights(folder), weights(published)) < 1e-6
    saved = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert (saved["prediction_type"], saved["beta_schedule"]) == ("v_prediction", "squaredcos_cap_v2")
    with pytest.raises(OSError, match="org/nothing"):
        train(config("org/nothing", tmp_path / "none"))


def test_a_dry_run_prints_the_plan_and_leaves_no_trace(models, tmp_path, capsys):
    """--dry_run prints settings, parameters, memory and steps, trains nothing and writes nothing, not even a cache."""
    (tmp_path / "images").mkdir()
    for shade in range(20):
        Image.new("L", (30, 9), shade).save(tmp_path / "images" / f"{shade}.png")
    places = dict(dataset_name=str(tmp_path / "images"), cache_dir=str(tmp_path / "cache"))
    train(config(models[0.0], tmp_path / "run", dry_run=True, mixed_precision="bf16", **places))
    plan = capsys.readouterr().out
    count = sum(value.numel() for value in weights(models[0.0]).values())
    assert f"parameters: {count:,}" in plan
    assert f"weights, moments and averages {4 * 4 * count / 2**20:,.1f} MiB" in plan
    assert '"batch_size": 16' in plan and "12 steps of 16 images (9.6 epochs)" in plan
    assert "images: 20 images in the folder" in plan and "30 x 9 pixels; each to 8 x 8" in plan
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


def test_a_dry_run_needs_the_configs_of_a_published_model_alone(models, tmp_path, hub, capsys):
    """Of --pretrained's model on the Hub a dry run asks for the configs, and keeps nothing of them."""
    published = Path(models[0.0])
    files = {file: (published / file).read_bytes() for file in ("unet/config.json", "scheduler/scheduler_config.json")}
    hub.add_repo("org/configs", files)
    train(config("org/configs", tmp_path / "run", dry_run=True))
    assert "parameters: " in capsys.readouterr().out
    assert not list(Path(os.environ["HF_HOME"]).rglob("*org--configs*"))


def test_the_launchers_precision_counts(models, tmp_path, monkeypatch):
    """Where none is given, the precision is the one that accelerate launch sets, and the record says which; runs of
    different precision in one process are as each alone."""
    short = dict(max_train_steps=2)
    plain = train(config(models[0.0], tmp_path / "plain", **short))
    given = train(config(models[0.0], tmp_path / "given", mixed_precision="bf16", **short))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    launched = train(config(models[0.0], tmp_path / "launched", **short))
    overridden = train(config(models[0.0], tmp_path / "overridden", mixed_precision="no", **short))
    used = [json.loads((run / "config.json").read_text())["mixed_precision"] for run in (plain, launched, overridden)]
    assert used == ["no", "bf16", "no"]
    assert difference(weights(launched), weights(given)) == 0 == difference(weights(plain), weights(overridden))
    assert difference(weights(launched), weights(plain)) > 0
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "int3")
    with pytest.raises(ValueError, match="int3"):
        train(config(models[0.0], tmp_path / "none", **short))
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    train(config(models[0.0], tmp_path / "after", **short))


@pytest.mark.skipif(torch.accelerator.is_available(), reason="on a CPU")
@pytest.mark.parametrize("dry_run", [False, True])
def test_half_precision_on_a_cpu_is_refused(models, tmp_path, monkeypatch, dry_run):
    """fp16, which accelerate trains in float32 on a CPU, is refused there, given or launched, and by a dry run too."""
    with pytest.raises(ValueError, match="^mixed_precision is fp16 on a CPU; allowed: no, bf16$"):
        train(config(models[0.0], tmp_path / "run", mixed_precision="fp16", dry_run=dry_run))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match="^mixed_precision is fp16 on a CPU; allowed: no, bf16$"):
        train(config(models[0.0], tmp_path / "run", dry_run=dry_run))
    assert not (tmp_path / "run").exists()


def test_an_accelerator_that_was_there_stays(models, tmp_path):
    """A run leaves the accelerator of the program around it as it was."""
    around = Accelerator()
    try:
        train(config(models[0.0], tmp_path / "run", max_train_steps=1))
        assert around.mixed_precision == "no" and around.num_processes == 1
    finally:
        AcceleratorState._reset_state()


def test_a_sampler_longer_than_the_schedule_is_refused_at_once(tmp_path):
    """A sampler of more steps than the model's T is named before the first step."""
    model = save_tiny_model(tmp_path / "short", num_train_timesteps=100)
    for dry in (False, True):
        with pytest.raises(ValueError, match="samplers has 200-0 .*100"):
            train(config(model, tmp_path / "run", samplers="200:0:9:4", feature_extractor="none", dry_run=dry))
    assert not (tmp_path / "run").exists()


def test_fewer_steps_than_a_checkpoint_has_are_refused(models, tmp_path):
    """Resuming with max_train_steps below the checkpoint's step is an error, not a run of another length."""
    settings = dict(lr_scheduler="constant", resume_from_checkpoint="latest")
    folder = train(config(models[0.0], tmp_path / "run", max_train_steps=2, **settings))
    with pytest.raises(ValueError, match="checkpoint-2 is beyond max_train_steps, 1; allowed: from 2"):
        train(config(models[0.0], folder, max_train_steps=1, **settings))


def test_a_checkpoint_loads_like_a_model(models, finished, tmp_path):
    """A checkpoint is a pipeline of the averaged weights of its step, for diffusers too, and can be fine-tuned."""
    last = finished / "checkpoint-12"
    assert difference(weights(last), weights(finished)) == 0
    pipe = DDIMCustomPipeline.from_pretrained(last)
    stock = DiffusionPipeline.from_pretrained(last)
    assert difference(pipe.unet.state_dict(), weights(last)) == 0 == difference(stock.unet.state_dict(), weights(last))
    assert difference(load_file(last / "unet.safetensors"), weights(last)) > 1e-5  # the weights that are trained
    tuned = train(config(str(last), tmp_path / "tuned", learning_rate=1e-9, max_train_steps=1))
    assert difference(weights(tuned), weights(last)) < 1e-6


@pytest.mark.parametrize(
    "script, words, left",
    [
        ("sample.py", "--num_images 2 --num_inference_steps 2 --output_dir OUT", "images/000001.png"),
        (
            "evaluate.py",
            "--reference digits --no_distance --denoising_loss --data_images 4 --output OUT/results.json",
            "results.json",
        ),
    ],
)
def test_the_scripts_take_a_checkpoint(finished, tmp_path, monkeypatch, script, words, left):
    """sample.py and evaluate.py run on a checkpoint of a run, as on the run's own folder."""
    words = words.replace("OUT", str(tmp_path)).split()
    monkeypatch.setattr("sys.argv", [script, str(finished / "checkpoint-6"), *words])
    runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
    assert (tmp_path / left).is_file()


def test_an_old_checkpoint_resumes(models, finished, tmp_path):
    """A checkpoint whose averages lie in a file of their own, as earlier versions wrote it, ends in the same run."""
    folder = continued(finished, tmp_path / "run")
    old = folder / "checkpoint-6"
    (old / "unet" / "diffusion_pytorch_model.safetensors").rename(old / "ema-0.995.safetensors")
    for name in ("unet", "scheduler"):
        shutil.rmtree(old / name)
    (old / "model_index.json").unlink()
    state = json.loads((old / "state.json").read_text())
    state["files"] = {file.name: sha256(file) for file in old.glob("*.safetensors")}
    (old / "state.json").write_text(json.dumps(state))
    train(config(models[0.0], folder, resume_from_checkpoint="latest"))
    assert difference(weights(folder), weights(finished)) == 0


def test_the_card_says_what_a_run_started_from(models, finished, tmp_path):
    """A run from another one's result has what that one saw on record, and those before it, on its card too."""
    folder = finished
    for name in ("second", "third"):
        folder = train(config(str(folder), tmp_path / name, max_train_steps=2, loss_weighting="v"))
    first = {"final_step": 12, "batch_size": 16, "dataset_name": "digits", "started_from": None}
    second = first | {"final_step": 2, "loss_weighting": "v", "started_from": first}
    assert json.loads((folder / "config.json").read_text())["started_from"] == second
    said = (folder / "README.md").read_text()
    assert "Before this run it was trained for 2 steps of 16 images of digits, by `loss_weighting` v." in said
    assert said.index("for 2 steps of 16") < said.index("for 12 steps of 16 images of digits.")
    assert "Before this run" not in (finished / "README.md").read_text() and "started_from" not in said


def test_a_model_keeps_its_record_until_another_takes_its_place(models, tmp_path, monkeypatch):
    """Where a finished run goes on and is killed, record and card in its folder are still those of the model there,
    and a run that starts from it has them on record; when the run has come to its end, those of the new one."""
    settings = dict(lr_scheduler="constant", ema_decay="0.9")
    folder = train(config(models[0.0], tmp_path / "run", max_train_steps=4, **settings))
    before, card, step = (folder / "config.json").read_text(), model_card(folder), TrainingRun.train_step

    def killed(run):
        if run.state.step == 6:
            raise SystemExit
        step(run)

    further = dict(max_train_steps=8, resume_from_checkpoint="latest", **settings)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(TrainingRun, "train_step", killed)
        train(config(models[0.0], folder, **further))
    assert (folder / "config.json").read_text() == before and model_card(folder) == card
    tuned = train(config(str(folder), tmp_path / "tuned", max_train_steps=1))
    assert json.loads((tuned / "config.json").read_text())["started_from"]["final_step"] == 4
    train(config(models[0.0], folder, **further))
    record = json.loads((folder / "config.json").read_text())
    assert (record["max_train_steps"], record["final_step"]) == (8, 8)


def test_what_a_run_began_from_stays_on_record(models, finished, tmp_path, capsys):
    """A resumed run has its checkpoint's weights: another --pretrained changes nothing, is told so, and does not come
    to be on record."""
    folder = continued(finished, tmp_path / "run")
    shutil.copy(finished / "config.json", folder)
    other = shutil.copytree(models[0.0], tmp_path / "other")
    train(config(str(other), folder, resume_from_checkpoint="latest", max_train_steps=12))
    assert f"began from {models[0.0]}, which stays on record; --pretrained {other} changes" in capsys.readouterr().out
    record, wanted = (json.loads((run / "config.json").read_text()) for run in (folder, finished))
    assert record["pretrained"] == wanted["pretrained"] == models[0.0]
    assert difference(weights(folder), weights(finished)) == 0


def test_tensorboard_shows_a_resumed_step_once(models, finished, tmp_path):
    """What a run logged beyond the checkpoint that it goes back to is hidden by what it logs anew."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = dict(logger="tensorboard", logging_steps=1)
    folder = train(config(models[0.0], tmp_path / "run", **settings))
    shutil.rmtree(folder / "checkpoint-12")
    train(config(models[0.0], folder, resume_from_checkpoint="latest", **settings))
    events = EventAccumulator(str(folder / "logs")).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 13))


def test_tensorboard_gets_figures_and_grids(models, tmp_path):
    """TensorBoard's events hold loss, learning rate, images a second and the samplers' grids."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    samplers = dict(samplers="2:0.0:6:16", feature_extractor="none")
    folder = train(config(models[0.0], tmp_path / "run", logger="tensorboard", **samplers))
    events = EventAccumulator(str(next((folder / "logs").rglob("events*")).parent))
    events.Reload()
    assert {"loss", "learning_rate", "images_per_second", "data_share"} <= set(events.Tags()["scalars"])
    lines = [line for line in log_lines(folder) if "loss" in line]
    for name in ("loss", "learning_rate", "images_per_second"):
        assert [event.step for event in events.Scalars(name)] == [line["step"] for line in lines] == [4, 8, 12]
        assert [event.value for event in events.Scalars(name)] == pytest.approx([line[name] for line in lines])
    assert [event.step for event in events.Images("sampler-2-0/grid")] == [6, 12]
    assert Image.open(folder / "samples" / "step-0000012-2-0.png").size == (4 * 52, 4 * 52)


def test_a_logger_that_is_not_there_is_named(models, tmp_path, monkeypatch):
    """A logger that is not installed is an error, not a run without logs."""
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)  # as if none were, where one is
    with pytest.raises(ImportError, match="logger wandb is not installed"):
        train(config(models[0.0], tmp_path / "run", logger="wandb"))


def test_the_result_is_pushed(models, tmp_path, hub, monkeypatch, capsys):
    """push_to_hub publishes the result; a push that fails keeps it, says so, and prints the command to try again."""
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    settings = dict(
        max_train_steps=2, push_to_hub=True, hub_model_id="org/digits", hub_private=True, hub_license="mit"
    )
    folder = train(config(models[0.0], tmp_path / "run", **settings))
    pushed = hub.repos["org/digits"]
    assert pushed.private and "pushed: " in capsys.readouterr().out
    file = "unet/diffusion_pytorch_model.safetensors"
    assert pushed.files()[file] == (folder / file).read_bytes()
    assert ModelCard(pushed.files()["README.md"].decode()).data.license == "mit"

    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    folder = train(config(models[0.0], tmp_path / "kept here", **settings | dict(hub_model_id="org/other")))
    said = capsys.readouterr().out
    assert "not pushed: " in said
    again = f"python examples/push_to_hub.py '{folder}' org/other --private --license mit"
    assert f"to retry: {again}\n" in said
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    monkeypatch.setattr("sys.argv", shlex.split(again)[1:])
    runpy.run_path(str(ROOT / "examples/push_to_hub.py"), run_name="__main__")
    assert hub.repos["org/other"].private and hub.repos["org/other"].files()[file] == (folder / file).read_bytes()
    assert difference(weights(folder), weights(tmp_path / "run")) == 0
