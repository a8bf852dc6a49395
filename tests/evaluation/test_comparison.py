"""Several models measured alike, side by side."""

import json
import runpy
import sys

import pytest
from conftest import tiny_unet
from training_runs import ROOT

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom
from ddim_hf.calibration import describe_sampler
from ddim_hf.evaluation import Comparison, Question, compare
from ddim_hf.generation import load_pipeline


def test_models_are_compared_cell_by_cell(files, folders, tmp_path, monkeypatch, capsys):
    """evaluate.py --beside prints both models' distances, those of results.json, and their difference; the claim that
    one is nearer holds in every cell or not at all."""
    unet = tiny_unet()
    for parameter in unet.parameters():
        parameter.data *= 1.2
    DDIMCustomPipeline(unet, DDIMSchedulerCustom()).save_pretrained(tmp_path / "other")
    settings = dict(num_inference_steps=[2, 3], num_images=8, feature_extractor=str(files / "features.pt"))
    settings |= dict(cache_dir=tmp_path / "cache", max_batch_size=8)
    question = Question("", "digits", tmp_path / "results.json", **settings)
    models = [str(files / "tiny"), str(tmp_path / "other")]
    comparison = compare(question, models)
    rows = json.loads((tmp_path / "results.json").read_text())["results"]
    values = {(row["model"], row["num_inference_steps"]): row["value"] for row in rows}
    assert comparison.values == [[values[name, steps] for steps in (2, 3)] for name in ("tiny", "other")]
    nearer = all(values["other", steps] < values["tiny", steps] for steps in (2, 3))
    assert comparison.better(1) == nearer and not comparison.better(0)

    words = [models[0], "--beside", models[1], "--reference", "digits", "--output", tmp_path / "results.json"]
    words += [
        "--feature_extractor",
        files / "features.pt",
        "--num_images",
        8,
        "--num_inference_steps",
        "2,3",
        "--max_batch_size",
        8,
    ]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, words), "--cache_dir", str(tmp_path / "cache")])
    capsys.readouterr()
    runpy.run_path(str(ROOT / "examples/evaluate.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert str(comparison) in said and said.count("frechet_distance ") == 0
    assert f"{values['other', 3] - values['tiny', 3]:+.3g} |" in said
    assert f"{models[1]} is nearer than {models[0]} in {'every' if nearer else 'not every'} cell" in said


def test_better_is_in_every_cell():
    """A model that is nearer in some cells alone is not better."""
    comparison = Comparison(["old", "new", "mixed"], ["a", "b"], [[2.0, 3.0], [1.0, 2.5], [1.0, 3.0]])
    assert comparison.better(1) and not comparison.better(2)
    assert "new is nearer than old in every cell\nmixed is nearer than old in not every cell" in str(comparison)


def test_cells_that_one_model_alone_has_are_told(files, tmp_path):
    """A schedule that one of the models has alone is no cell of the comparison, which says so."""
    for name, fitted in (("more", (2, 3)), ("less", (2,))):
        pipe = load_pipeline(files / "tiny")
        schedules = {str(s): {"timesteps": [900, 400, 50][-s:], "weights": [[1, 0, 0]] * s} for s in fitted}
        record = {"weights_hash": pipe._weights_hash(), "sampler": describe_sampler(pipe.scheduler.config)}
        pipe.scheduler.change_config(calibrated_schedules=record | {"schedules": schedules})
        pipe.save_pretrained(tmp_path / name)
    question = Question("", "digits", tmp_path / "r.json", num_images=4, num_inference_steps=[2, 3], calibrated=True)
    question.feature_extractor, question.cache_dir = str(files / "features.pt"), tmp_path
    comparison = compare(question, [str(tmp_path / name) for name in ("more", "less")])
    assert len(comparison.cells) == 3 and len(comparison.apart) == 1
    (said,) = [line for line in str(comparison).splitlines() if line.startswith("not compared, as not all have it: ")]
    assert "by ddim_hf calibrated" in said and "S 3" in said


def test_models_without_a_common_cell_are_refused(files, folders, tmp_path):
    """A model and a folder of images have no cell in common, and it is said."""
    question = Question("", str(folders / "a"), tmp_path / "r.json", num_images=4, num_inference_steps=[2])
    question.feature_extractor, question.cache_dir = str(files / "features.pt"), tmp_path
    with pytest.raises(ValueError, match="have no distance in common"):
        compare(question, [str(files / "tiny"), str(folders / "b")])
