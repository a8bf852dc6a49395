"""choose_ema.py: combinations of a run's saved averages, and the choice by their samples."""

import json
import runpy
import shutil
import sys

import pytest
from training_runs import ROOT, config, difference, save_features, save_tiny_model, weights

from ddim_hf import DDIMCustomPipeline
from ddim_hf.evaluation import Question
from ddim_hf.hub import model_card
from ddim_hf.training import train
from ddim_hf.training.choice_of_average import choose_average, load_averages
from ddim_hf.training.profiles import Profile

KEPT = "0.9,power:0.05,power:0.1"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 24 steps that kept four averages at eight checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    model = save_tiny_model(folder / "model")
    settings = dict(max_train_steps=24, checkpointing_steps=3, checkpoints_total_limit=9)
    return train(config(model, folder / "run", ema_decay=f"{KEPT},power:0.07", **settings))


@pytest.fixture
def short(tmp_path):
    """A run of 2 steps with a checkpoint at each."""
    settings = dict(max_train_steps=2, checkpointing_steps=1, ema_decay="0.9")
    return train(config(save_tiny_model(tmp_path / "model"), tmp_path / "run", **settings))


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
    distance as a model, in the place of an earlier choice."""
    features = save_features(tmp_path / "features.pt", 64)
    words = [str(finished), "--reference", "digits", "--feature_extractor", features, "--num_images", "8"]
    for name in ("unet/old.safetensors", "choice.json"):  # an earlier choice
        (tmp_path / "best" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "best" / name).touch()
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
    off = record["profile_errors"]
    assert off["ema-0.9"] == 0 < off["power-0.2"]
    assert (
        f"power-0.2 was not kept: the profile of the combination that stands for it is off by {off['power-0.2']:.2%}"
        in said
    )
    assert said.count("was not kept") == 2
    assert not (tmp_path / "best/unet/old.safetensors").exists()


def test_what_no_choice_has_written_is_not_replaced(finished, tmp_path):
    """A folder with figures beside an earlier choice, or another model, is refused before anything is measured."""
    (tmp_path / "choice.json").write_text("{}")
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="holds results.json, which is not of an earlier choice alone; allowed"):
        choose_average(finished, None, folder=tmp_path)
    with pytest.raises(ValueError, match="model holds model_index.json, scheduler, unet, which is not of an earlier"):
        choose_average(finished, None, folder=finished.parent / "model")


def test_the_card_says_which_average_it_is(finished, tmp_path):
    """A card names the average that was chosen and how far off a combined one is; a run's own that it is the first."""
    assert "The weights are the first of the averages that `ema_decay` names." in model_card(finished)
    folder = shutil.copytree(finished, tmp_path / "chosen")
    choice = {"step": 1200, "chosen": "power-0.2", "distances": {"ema-0.9": [2.0], "power-0.2": [1.0]}}
    (folder / "choice.json").write_text(json.dumps(choice | {"profile_errors": {"ema-0.9": 0.0, "power-0.2": 0.0312}}))
    card = model_card(folder)
    assert (
        "The weights are the average `power-0.2` after step 1,200, which `examples/choose_ema.py` chose among 2"
        in card
    )
    assert "It was not kept, but combined from others: its profile is off by 3.12%." in card and "first of" not in card
    (folder / "choice.json").write_text(json.dumps(choice | {"profile_errors": {"power-0.2": 0.0}}))
    assert "It was not kept" not in model_card(folder)


def test_a_run_without_averages_is_refused(tmp_path):
    """Where nothing is saved to choose from, it is said in one line."""
    with pytest.raises(ValueError, match="holds no whole checkpoint with averages"):
        load_averages(tmp_path)


def test_a_decay_in_any_form_is_read(short):
    """Averages are found where ema_decay was a number, from Python, and no average is none in any spelling."""
    shutil.rmtree(short / "checkpoint-1")
    file = short / "checkpoint-2" / "state.json"
    state = json.loads(file.read_text())
    for decay in (0.9, None, "None"):
        state["identity"]["ema_decay"] = decay
        file.write_text(json.dumps(state))
        if decay == 0.9:
            assert set(load_averages(short).weights) == {(Profile("ema", 0.9), 2)}
        else:
            with pytest.raises(ValueError, match="holds no whole checkpoint with averages"):
                load_averages(short)


def test_a_choice_says_what_it_leaves_out_and_loses_no_schedules(short, tmp_path, caplog):
    """A torn checkpoint is left out with a warning, a length that is given twice is measured once, schedules that were
    fitted to what is chosen stay when it is chosen again, and the record says after which step it is."""
    with open(short / "checkpoint-2" / "unet.safetensors", "ab") as file:
        file.write(b" ")
    features = save_features(tmp_path / "features.pt", 64)
    question = Question(str(short), "digits", tmp_path / "averages.json", (2,), num_images=8)
    question.feature_extractor = features

    def choose():
        comparison, _, _ = choose_average(short, question, [Profile("ema", 0.5)] * 2)
        assert comparison.models == ["ema-0.9", "ema-0.5"]
        pipe = DDIMCustomPipeline.from_pretrained(short / "chosen")
        pipe.set_progress_bar_config(disable=True)
        return pipe

    pipe = choose()
    assert f"{short / 'checkpoint-2'} cannot be used (unet.safetensors is not what was written)" in caplog.text
    pipe.calibrate((2,), num_images=2, teacher_steps=4)
    pipe.save_scheduler(short / "chosen")
    again = choose()
    assert again.scheduler.config.calibrated_schedules == pipe.scheduler.config.calibrated_schedules is not None
    assert json.loads((short / "config.json").read_text())["final_step"] == 2
    record = json.loads((short / "chosen" / "config.json").read_text())
    assert (record["final_step"], record["final_loss"]) == (1, None)
