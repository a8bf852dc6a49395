"""Samplers during training: grids, distances, the best model kept, interrupted and resumed."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import DDIMPipeline
from PIL import Image
from training_runs import Features, config, difference, log_lines, save_features, save_tiny_model, weights

from ddim_hf import DDIMCustomPipeline
from ddim_hf.data import load_images
from ddim_hf.evaluation.features import load_feature_extractor
from ddim_hf.evaluation.frechet import Statistics, frechet_distance
from ddim_hf.images import states_to_pixels
from ddim_hf.training import TrainingStopped, train
from ddim_hf.training.samplers import Samplers
from ddim_hf.training.setup import record_of
from ddim_hf.training.stopping import StopRequest


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    return save_features(tmp_path_factory.mktemp("features") / "tiny.pt", pixels=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def settings(extractor, tmp_path_factory):
    return dict(
        samplers="3:0.0:4:70,2:1.0:6:20",
        feature_extractor=extractor,
        cache_dir=str(tmp_path_factory.mktemp("cache")),
        eval_batch_size=32,
    )


@pytest.fixture(scope="module")
def finished(model, settings, tmp_path_factory):
    return train(config(model, tmp_path_factory.mktemp("runs") / "run", **settings))


def distances(folder, sampler):
    key = f"sampler-{sampler}/frechet_distance"
    return {line["step"]: line[key] for line in log_lines(folder) if key in line}


def test_samplers_run_on_their_steps_and_leave_grids(finished):
    """Each sampler runs every so many steps and after the last, logs its distance and saves its grid of 64."""
    assert list(distances(finished, "3-0")) == [4, 8, 12] and list(distances(finished, "2-1")) == [6, 12]
    grids = {file.name: Image.open(file).size for file in (finished / "samples").iterdir()}
    assert grids == {f"step-{step:07d}-3-0.png": (8 * 52, 8 * 52) for step in (4, 8, 12)} | {
        f"step-{step:07d}-2-1.png": (4 * 52, 5 * 52) for step in (6, 12)
    }


def test_the_distance_is_that_of_the_averaged_model(finished, extractor):
    """The distance logged is the one from images 0..69 of the EMA model, each from its own seed, to the data's."""
    pipeline = DDIMCustomPipeline.from_pretrained(finished)
    x = pipeline(70, num_inference_steps=3, seeds=range(70), output_type="latent").images
    extract = load_feature_extractor(extractor)
    ours = Statistics().update(extract(states_to_pixels(x)))
    data = Statistics().update(extract(load_images("digits", split="train", resolution=8, channels=1)[:]))
    assert distances(finished, "3-0")[12] == pytest.approx(frechet_distance(ours, data), rel=1e-4)


def test_the_best_of_each_sampler_is_kept(finished):
    """best-<steps>-<eta> is a loadable pipeline that gives the sampler's smallest distance; no leftovers."""
    for sampler in ("3-0", "2-1"):
        best = finished / f"best-{sampler}"
        assert DDIMPipeline.from_pretrained(best).unet.config.sample_size == 8
        reached = distances(finished, sampler)
        is_last = min(reached, key=reached.get) == 12
        assert (difference(weights(best), weights(finished)) == 0) == is_last
    assert not list(finished.glob(".best*"))


def test_what_lies_in_a_runs_folder_is_of_that_run(model, settings, tmp_path):
    """A run from a checkpoint, a sampler's best, a further average or a network alone has on record what the run they
    are of saw, up to their step; of another model in that folder nothing is."""
    folder = train(config(model, tmp_path / "run", **settings | dict(ema_decay="0.9,0.99", loss_weighting="v")))
    reached = distances(folder, "3-0")
    best = min(reached, key=reached.get)
    steps = {"": 12, "checkpoint-6": 6, "best-3-0": best, "ema-0.99": 12, "unet": 12, "checkpoint-6/unet": 6}
    saw = {"batch_size": 16, "dataset_name": "digits", "loss_weighting": "v", "started_from": None}
    for place, step in steps.items():
        assert record_of(str(folder / place)) == saw | {"final_step": step}
    shutil.copytree(model, folder / "other")
    assert record_of(str(folder / "other")) is None
    tuned = train(config(str(folder / "checkpoint-6"), tmp_path / "tuned", max_train_steps=1))
    assert "Before this run it was trained for 6 steps of 16 images of digits, by" in (tuned / "README.md").read_text()


def test_a_new_network_has_nothing_before_it(tmp_path, monkeypatch):
    """A record in the working directory is none of a new network's."""
    record = {"final_step": 12, "batch_size": 16, "dataset_name": "digits", "ema_decay": "0.9"}
    (tmp_path / "config.json").write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path)
    assert record_of(None) is None and record_of(".")["final_step"] == 12


def test_a_worse_model_does_not_replace_the_best(model, settings, tmp_path):
    """Where the distance grows, the best model stays that of the smaller one."""
    # The first steps are taken with nearly no learning rate, the last with far too much of it.
    grows = dict(lr_scheduler="constant", lr_warmup_steps=10**6, learning_rate=1e4, max_grad_norm=1e6)
    grows |= dict(ema_decay="none", checkpointing_steps=4)
    folder = train(config(model, tmp_path / "run", **settings | grows))
    reached = distances(folder, "3-0")
    assert reached[4] < reached[12]
    best = min(reached, key=reached.get)
    assert difference(weights(folder / "best-3-0"), weights(folder / f"checkpoint-{best}")) == 0


def test_a_resumed_run_remembers_the_best(model, settings, finished, tmp_path):
    """A resumed run logs the same distances, keeps the same best models and reaches the same weights."""
    folder = tmp_path / "run"
    for name in ("checkpoint-6", "best-3-0", "best-2-1"):
        shutil.copytree(finished / name, folder / name)
    shutil.copy(finished / "log.jsonl", folder)
    train(config(model, folder, resume_from_checkpoint="latest", **settings))
    for sampler in ("3-0", "2-1"):
        assert distances(folder, sampler) == distances(finished, sampler)
        assert difference(weights(folder / f"best-{sampler}"), weights(finished / f"best-{sampler}")) == 0
    assert difference(weights(folder), weights(finished)) == 0


def selection(model, folder, **settings):
    accelerator, images = Accelerator(), load_images("digits", split="train", resolution=8, channels=1)
    return Samplers(config(model, folder, **settings), accelerator, images, StopRequest())


def test_a_best_by_other_terms_is_forgotten(model, settings, tmp_path):
    """The best distance survives a checkpoint, but not a change of the number of images or of the features, nor
    without its model, as in another folder."""
    for name in ("3-0", "2-1"):
        (tmp_path / f"best-{name}").mkdir()
    first = selection(model, tmp_path, **settings)
    first.best = {sampler: 1.5 for sampler in first.settings}
    state = first.state()
    again = selection(model, tmp_path, **settings)
    again.load_state(state, tmp_path)
    assert {sampler.name: distance for sampler, distance in again.best.items()} == {"3-0": 1.5, "2-1": 1.5}
    more = selection(model, tmp_path, **settings | dict(samplers="3:0.0:4:71,2:1.0:9:20"))
    more.load_state(state, tmp_path)
    assert {sampler.name: distance for sampler, distance in more.best.items()} == {"2-1": 1.5}
    other = selection(model, tmp_path, **settings | dict(feature_extractor="none"))
    other.load_state(state, tmp_path)
    assert other.best == {}
    elsewhere = selection(model, tmp_path / "elsewhere", **settings)
    elsewhere.load_state(state, tmp_path)
    assert elsewhere.best == {} and elsewhere.state()["best"] == {}
    (tmp_path / "best-3-0").rmdir()
    lost = selection(model, tmp_path, **settings)
    lost.load_state(state, tmp_path)
    assert {sampler.name: distance for sampler, distance in lost.best.items()} == {"2-1": 1.5}


def test_a_run_from_anothers_checkpoint_keeps_its_own_best(model, settings, finished, tmp_path):
    """A run that starts from another run's checkpoint has a best model of its own, whatever the other one reached."""
    other = shutil.copytree(finished / "checkpoint-6", tmp_path / "other" / "checkpoint-6")
    (tmp_path / "other" / "best-3-0").mkdir()
    state = json.loads((other / "state.json").read_text())
    state["selection"]["best"]["3-0"][0] = 1e-9  # nearer than any model here comes
    (other / "state.json").write_text(json.dumps(state))
    folder = train(config(model, tmp_path / "run", resume_from_checkpoint=str(other), **settings))
    assert list(distances(folder, "3-0")) == [8, 12] and (folder / "best-3-0" / "model_index.json").is_file()


class Spoiled(Features):
    """Features of which some are NaN: those of images whose first pixel is dark, as every sampled digit's can be."""

    def forward(self, images):
        features = images[:, 0].flatten(1) / 255 @ self.matrix
        if images.shape[0] < 64:  # the reference comes in larger batches
            features[0, 0] = float("nan")
        return features


def test_features_that_are_not_finite_never_make_a_best(model, settings, tmp_path, capsys):
    """With NaN among its samples' features a run goes on, names their seeds, and calls no model the best."""
    torch.jit.script(Spoiled(64)).save(str(tmp_path / "spoiled.pt"))
    changes = dict(feature_extractor=str(tmp_path / "spoiled.pt"), max_train_steps=8, eval_batch_size=35)
    folder = train(config(model, tmp_path / "run", **settings | changes))
    said = capsys.readouterr().out
    assert "no frechet_distance of 3-0: features of 2 of 70 images are not finite: seed 0, seed 35" in said
    assert not list(folder.glob("best-*")) and distances(folder, "3-0") == {}
    assert (folder / "model_index.json").is_file()
    state = json.loads((folder / "checkpoint-8" / "state.json").read_text())
    assert state["selection"]["best"] == {}


def test_images_that_are_not_finite_never_make_a_best(model, settings, tmp_path, monkeypatch, capsys):
    """Images of NaN, which as pixels are black and have features, give no distance and no best model either."""
    sample = DDIMCustomPipeline.__call__

    def spoil(pipeline, *words, **named):
        output = sample(pipeline, *words, **named)
        output.images[1, 0, 0, 0] = float("inf")
        return output

    monkeypatch.setattr(DDIMCustomPipeline, "__call__", spoil)
    folder = train(config(model, tmp_path / "run", **settings | dict(samplers="3:0.0:4:70", max_train_steps=4)))
    said = capsys.readouterr().out
    assert "no frechet_distance of 3-0: features of 3 of 70 images are not finite: seed 1, seed 33, seed 65" in said
    assert not list(folder.glob("best-*")) and distances(folder, "3-0") == {}


def test_a_grid_with_images_that_are_not_finite_is_told(model, tmp_path, capsys):
    """Without features too a sampler names the seeds of such images, which are black in its grid."""
    pipeline = DDIMCustomPipeline.from_pretrained(model)
    pipeline.unet.conv_out.bias.data[:] = float("nan")
    chosen = selection(model, tmp_path, samplers="1:0.0:1:3", feature_extractor="none")
    grid, _ = chosen._sample(chosen.settings[0], pipeline)
    assert not np.any(grid) and "not finite, and black in the grid, are the seeds [0, 1, 2]" in capsys.readouterr().out


def test_a_stop_interrupts_a_sampler_and_a_resumed_run_makes_up_for_it(
    model, settings, finished, tmp_path, monkeypatch
):
    """A run stopped amid a sampler leaves within one of its steps; resumed, it samples anew and ends the same."""
    folder, calls = tmp_path / "run", []
    step = DDIMCustomPipeline.__call__

    def stop_amid(pipeline, *words, callback_on_step_end=None, **named):
        def callback(pipe, number, timestep, tensors):
            calls.append(number)
            if len(calls) == 10:  # the fourth batch: step 8's first
                os.kill(os.getpid(), signal.SIGTERM)
            return callback_on_step_end(pipe, number, timestep, tensors)

        return step(pipeline, *words, callback_on_step_end=callback, **named)

    monkeypatch.setattr(DDIMCustomPipeline, "__call__", stop_amid)
    with pytest.raises(TrainingStopped):
        train(config(model, folder, **settings))
    monkeypatch.undo()
    assert len(calls) <= 11
    interrupted = max(int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*"))
    assert interrupted not in distances(folder, "3-0")
    train(config(model, folder, resume_from_checkpoint="latest", **settings))
    for sampler in ("3-0", "2-1"):
        assert distances(folder, sampler) == distances(finished, sampler)
    assert difference(weights(folder), weights(finished)) == 0


def test_grids_of_few_images_are_whole(model, tmp_path):
    """A grid of a number of images that fills no square shows them all, and leaves the last places black."""
    chosen = selection(model, tmp_path, samplers="1:0.0:1:7", feature_extractor="none")
    chosen._save_grid(chosen.settings[0], [torch.full((1, 8, 8), 255, dtype=torch.uint8)] * 7, 3, names=[])
    grid = np.asarray(Image.open(tmp_path / "samples" / "step-0000003-1-0.png"))[26::52, 26::52, 0]
    assert grid.flatten().tolist() == [255] * 7 + [0] * 2


def test_a_sampler_left_out_for_a_while_keeps_its_best(model, tmp_path):
    """What a checkpoint says of a sampler outlives a part of the run that leaves the sampler out."""
    settings = dict(feature_extractor=save_features(tmp_path / "features.pt", 64))
    first = selection(model, tmp_path, samplers="2:0:1:4,3:0:1:4", **settings)
    first.best = {sampler: 1.5 for sampler in first.settings}
    between = selection(model, tmp_path, samplers="none")
    for name in ("2-0", "3-0"):
        (tmp_path / f"best-{name}").mkdir()
    between.load_state(first.state(), tmp_path)
    last = selection(model, tmp_path, samplers="2:0:1:4,3:0:1:4", **settings)
    last.load_state(between.state(), tmp_path)
    assert last.best == first.best


def test_without_features_no_more_is_drawn_than_a_grid_shows(model, settings, tmp_path, monkeypatch):
    """A sampler of 70 images draws the grid's 64 where no distance is taken of the others."""
    drawn, states = [], Samplers._states

    def count(self, pipeline, sampler, seeds):
        drawn.extend(seeds)
        return states(self, pipeline, sampler, seeds)

    monkeypatch.setattr(Samplers, "_states", count)
    plain = settings | {"feature_extractor": "none", "samplers": "1:0.0:100:70"}
    train(config(model, tmp_path / "run", **plain, max_train_steps=1))
    assert drawn == list(range(64))
