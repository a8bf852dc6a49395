"""choose_ema.py: combinations of a run's saved averages, and the choice by their samples."""

import json
import runpy
import sys

import pytest
from training_runs import ROOT, config, difference, save_features, save_tiny_model, weights

from ddim_hf.training import train
from ddim_hf.training.choice_of_average import load_averages
from ddim_hf.training.profiles import Profile

KEPT = "0.9,power:0.05,power:0.1"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 24 steps that kept four averages at eight checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    model = save_tiny_model(folder / "model")
    settings = dict(max_train_steps=24, checkpointing_steps=3, checkpoints_total_limit=9)
    return train(config(model, folder / "run", ema_decay=f"{KEPT},power:0.07", **settings))


def test_a_combination_is_the_average_that_was_kept(finished):
    """Without an average that a run has kept, the others' combination is nearer to it than a tenth of the distance to
    the nearest of them."""
    saved, wanted = load_averages(finished), Profile("power", 0.07)
    known = saved.weights[wanted, 24]
    saved.weights = {key: value for key, value in saved.weights.items() if key[0] != wanted}
    combined, error = saved.combined(wanted)
    nearest = min(difference(known, other) for (_, step), other in saved.weights.items() if step == 24)
    assert 0 < error < 0.1 and difference(combined, known) < 0.1 * nearest
    assert difference(saved.combined(Profile("power", 0.1))[0], weights(finished / "power-0.1")) == 0


def test_the_best_average_is_written(finished, tmp_path, monkeypatch, capsys):
    """choose_ema.py measures each average, kept or not, prints them side by side, and leaves the one of least mean
    distance as a model."""
    features = save_features(tmp_path / "features.pt", 64)
    words = [str(finished), "--reference", "digits", "--feature_extractor", features, "--num_images", "8"]
    words += ["--num_inference_steps", "2,3", "--lengths", "power:0.2,0.5", "--output_dir", str(tmp_path / "best")]
    monkeypatch.setattr(sys, "argv", ["choose_ema.py", *words, "--max_batch_size", "8"])
    runpy.run_path(str(ROOT / "examples/choose_ema.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert said.count("frechet_distance ") == 2 * 6  # once for each average and S
    record = json.loads((tmp_path / "best/choice.json").read_text())
    assert list(record["distances"]) == ["ema-0.9", "power-0.05", "power-0.1", "power-0.07", "power-0.2", "ema-0.5"]
    means = {name: sum(values) / 2 for name, values in record["distances"].items()}
    assert record["chosen"] == min(means, key=means.get) and f"the best, {record['chosen']}, lies in" in said
    profile = Profile(*(kind(part) for kind, part in zip((str, float), record["chosen"].split("-"), strict=True)))
    assert difference(weights(tmp_path / "best"), load_averages(finished).combined(profile)[0]) == 0
    assert record["profile_errors"]["ema-0.9"] == 0 < record["profile_errors"]["power-0.2"]


def test_a_run_without_averages_is_refused(tmp_path):
    """Where nothing is saved to choose from, it is said in one line."""
    with pytest.raises(ValueError, match="holds no whole checkpoint with averages"):
        load_averages(tmp_path)
