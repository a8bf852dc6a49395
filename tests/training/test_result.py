"""What lies in a run's folder is of the weights that lie there: figures, pictures, few-step schedules, checkpoints."""

import json
import shutil

import pytest
from training_runs import config, difference, save_tiny_model, weights

from ddim_hf import DDIMCustomPipeline
from ddim_hf.training import train
from ddim_hf.unet import weights_hash

SETTINGS = dict(checkpointing_steps=2, ema_decay="0.9", lr_scheduler="constant", learning_rate=0.01)
SAMPLED = SETTINGS | dict(max_train_steps=2, samplers="2:0.0:9:4", feature_extractor="none")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def measured(model, tmp_path_factory):
    """A finished run with a grid, with few-step schedules, and with a figure of its weights; not to be changed."""
    folder = train(config(model, tmp_path_factory.mktemp("runs") / "run", **SAMPLED))
    pipe = DDIMCustomPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.calibrate((2,), num_images=2, teacher_steps=4)
    pipe.save_scheduler(folder)
    row = {"metric": "frechet_distance", "value": 1.23, "model": "run", "num_images": 8, "num_inference_steps": 3}
    row |= {"eta": 0.0, "feature_extractor": "features.pt", "weights_hash": weights_hash(pipe.unet)}
    (folder / "results.json").write_text(json.dumps({"results": [row]}))
    (folder / "results.md").write_text("1.23\n")
    return folder


def schedules(folder):
    return json.loads((folder / "scheduler" / "scheduler_config.json").read_text()).get("calibrated_schedules")


def test_the_same_command_again_loses_nothing(model, measured, tmp_path, capsys):
    """Of a finished run that is called again the weights are the same, and schedules, figures and picture stay."""
    folder = shutil.copytree(measured, tmp_path / "run")
    train(config(model, folder, resume_from_checkpoint="latest", **SAMPLED))
    said = capsys.readouterr().out
    assert schedules(folder) == schedules(measured) is not None
    assert {"results.json", "results.md", "samples.png"} <= {path.name for path in folder.iterdir()}
    assert "set aside" not in said and "schedules" not in said
    assert difference(weights(folder), weights(measured)) == 0 and "1.23" in (folder / "README.md").read_text()


def test_what_is_of_other_weights_does_not_stay(model, measured, tmp_path, capsys):
    """A run that goes on sets the figures and the picture of its earlier weights aside and lets go of their schedules,
    each with a line; the card has none of them."""
    folder = shutil.copytree(measured, tmp_path / "run")
    (folder / "results.json.aside").write_text("of before")
    train(config(model, folder, resume_from_checkpoint="latest", **SETTINGS, max_train_steps=4))
    said = capsys.readouterr().out
    for name, place in (("results.json", "results.json.aside1"), ("samples.png", "samples.png.aside")):
        assert (folder / place).read_bytes() == (measured / name).read_bytes() and not (folder / name).exists()
    assert (folder / "results.json.aside").read_text() == "of before"
    assert not (folder / "results.md").exists() and schedules(folder) is None
    assert f"set aside, as figures of other weights: {folder / 'results.json'}, {folder / 'results.md'}" in said
    assert f"set aside, as a picture of other weights: {folder / 'samples.png'}" in said
    assert f"the few-step schedules in {folder} were fitted to other weights, and go" in said
    card = (folder / "README.md").read_text()
    assert "1.23" not in card and "samples.png" not in card and "No metric has been measured" in card


def test_a_models_folder_is_not_trained_over(model, measured, tmp_path):
    """An --output_dir that holds a model and no checkpoint is refused, and stays as it was."""
    folder = shutil.copytree(measured, tmp_path / "published", ignore=shutil.ignore_patterns("checkpoint-*", ".lock"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for wanted in (None, "latest", str(measured / "checkpoint-2")):
        with pytest.raises(ValueError, match="published holds a model, and no checkpoint of a run; allowed: another"):
            train(config(model, folder, resume_from_checkpoint=wanted, **SAMPLED))
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_run_that_begins_takes_nothing_from_one_before_it(model, measured, tmp_path, capsys):
    """Grids, best models and log of a run that was killed before its first checkpoint do not pass for those of one
    that begins in the folder, anew or from a checkpoint of elsewhere: they are set aside, with a line."""

    def killed(folder):
        (folder / "samples").mkdir(parents=True)
        (folder / "samples" / "step-0000002-2-0.png").write_text("of before")
        (folder / "best-2-0").mkdir()
        (folder / "log.jsonl").write_text('{"step": 1, "loss": 9.0}\n')
        return folder

    for number, wanted in enumerate((None, "latest", str(measured / "checkpoint-2"))):
        folder = killed(tmp_path / f"run-{number}")
        train(config(model, folder, resume_from_checkpoint=wanted, **SETTINGS, max_train_steps=2))
        said = capsys.readouterr().out
        assert f"of a run that was here before: {folder / 'samples'}, {folder / 'best-2-0'} (now *.aside)" in said
        assert (folder / "samples.aside" / "step-0000002-2-0.png").read_text() == "of before"
        assert sorted(path.name for path in folder.glob("best-*")) == ["best-2-0.aside"]
        assert "samples.png" not in (folder / "README.md").read_text()
        assert "9.0" not in (folder / "log.jsonl").read_text()


def test_the_cards_picture_is_of_the_runs_own_samplers(model, measured, tmp_path):
    """Of grids of the last step, one of a sampler that the run has not is not taken."""
    folder = shutil.copytree(measured, tmp_path / "run")
    (folder / "samples" / "step-0000002-1-0.png").write_text("of another sampler")
    train(config(model, folder, resume_from_checkpoint="latest", **SAMPLED))
    assert (folder / "samples.png").read_bytes() == (folder / "samples" / "step-0000002-2-0.png").read_bytes()


def test_two_runs_are_not_mixed_in_a_folder(model, measured, tmp_path):
    """A checkpoint of another folder is not gone on with where a run has left checkpoints of its own."""
    other = shutil.copytree(measured, tmp_path / "other")
    with pytest.raises(ValueError, match="other already holds checkpoint-2; allowed: --resume_from_checkpoint latest"):
        train(config(model, other, resume_from_checkpoint=str(measured / "checkpoint-2"), **SETTINGS))
    going_on = SETTINGS | dict(resume_from_checkpoint=str(measured / "checkpoint-2"), max_train_steps=3)
    folder = train(config(model, tmp_path / "new", **going_on))
    assert [path.name for path in sorted(folder.glob("checkpoint-*"))] == ["checkpoint-3"]
