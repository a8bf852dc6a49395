"""Settings: recipes, what overrides them, what is refused, and examples/train.py's answers to bad input."""

import importlib.util
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import write_configurations
from PIL import Image
from training_runs import SCRIPT, save_tiny_model

from ddim_hf import DDIMCustomPipeline
from ddim_hf.command_line import run as run_script
from ddim_hf.training.config import RECIPES, TrainingConfig
from ddim_hf.training.peers import FLAGS_OF_DIFFUSERS
from ddim_hf.training.setup import build_model, describe_split, load_split
from ddim_hf.unet import UNET_CONFIGS


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_gives_the_defaults_and_flags_override_it(recipe):
    """Each recipe fills every setting that it names, its network is its own, and what is given stays."""
    images = {} if "dataset_name" in RECIPES[recipe] else {"dataset_name": "my/images"}
    config = TrainingConfig(recipe=recipe, **images)
    assert {name: getattr(config, name) for name in RECIPES[recipe]} == RECIPES[recipe]
    assert config.network == recipe and recipe in UNET_CONFIGS
    assert TrainingConfig(recipe=recipe, batch_size=8, random_flip=False, **images).batch_size == 8
    assert TrainingConfig(recipe=recipe, random_flip=False, **images).random_flip is False


def test_dropout_replaces_that_of_the_network(tmp_path):
    """The dropout of a new network's row, or of a pretrained one, stands unless one is given; weights are the same."""
    assert build_model(TrainingConfig(recipe="cifar10-64"))[0].config.dropout == 0.1
    assert build_model(TrainingConfig(recipe="cifar10-64", dropout=0.0))[0].config.dropout == 0.0
    model = save_tiny_model(tmp_path, dropout=0.2)
    kept, changed = (
        build_model(TrainingConfig(pretrained=model, dropout=dropout, resolution=8))[0] for dropout in (None, 0.1)
    )
    rates = [
        {module.p for module in unet.modules() if isinstance(module, torch.nn.Dropout)} - {0.0}
        for unet in (kept, changed)
    ]
    assert rates == [{0.2}, {0.1}] and changed.config.dropout == 0.1
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), changed.parameters(), strict=True))


def test_ones_own_images_need_no_held_out_split():
    """The recipe's validation split is that of the recipe's images: others are validated only where asked for."""
    assert TrainingConfig().validation_split == "test"
    assert TrainingConfig(dataset_name="my/images").validation_split == "none"
    assert TrainingConfig(dataset_name="my/images", validation_split="dev").validation_split == "dev"


@pytest.mark.parametrize(
    "resolution, recipe", [(None, "32"), (16, "32"), (64, "64"), (96, "64"), (128, "128"), (256, "128")]
)
def test_ones_own_images_choose_their_recipe(resolution, recipe):
    """Without --recipe one's own images take the largest small network for colour that fits the resolution, grids
    alone, and no held-out split; the built-in digits take theirs."""
    config = TrainingConfig(dataset_name="my/images", resolution=resolution)
    assert config.recipe == config.network == f"images-{recipe}"
    assert UNET_CONFIGS[config.network]["in_channels"] == 3
    assert config.resolution == (resolution or 32) and config.feature_extractor == config.validation_split
    assert config.feature_extractor == "none"
    assert TrainingConfig(dataset_name="digits").recipe == TrainingConfig().recipe == "digits"
    with pytest.raises(ValueError, match="recipe is images-64 and has no images; allowed: with --dataset_name"):
        TrainingConfig(recipe="images-64")


def test_ones_own_images_are_trained_by_x0():
    """The small networks for one's own images predict x_0, unless told; a pretrained model keeps what it predicts."""
    own = dict(dataset_name="my/images")
    assert TrainingConfig(**own).prediction_type == "sample"
    assert TrainingConfig(**own, prediction_type="epsilon").prediction_type == "epsilon"
    assert TrainingConfig(**own, pretrained="org/model").prediction_type is None
    assert TrainingConfig().prediction_type is None


def test_steps_follow_from_the_images():
    """Epochs count the images; with max_train_steps what ends first counts, and one given alone replaces the other."""
    own = dict(dataset_name="my/images", batch_size=32)
    assert TrainingConfig(**own).steps_for(1_000) == 200 * 1_000 / 32
    assert TrainingConfig(**own).steps_for(10**6) == 100_000
    assert TrainingConfig(**own, max_train_steps=9_000).steps_for(32) == 9_000
    assert TrainingConfig(**own, num_train_epochs=10_000).steps_for(1_000) == 312_500
    assert TrainingConfig(**own, num_train_epochs=3, max_train_steps=50).steps_for(33) == 4
    assert TrainingConfig(**own, num_train_epochs=3, max_train_steps=2).steps_for(33) == 2
    assert TrainingConfig(num_train_epochs=1).steps_for(1_617) == 26


def test_the_configuration_of_a_dataset_is_a_setting(tmp_path, own_caches):
    """dataset_config_name chooses the images of a run; a revision of a local set is refused, not dropped."""
    several = write_configurations(tmp_path / "several", small=2, large=5)
    settings = {"dataset_name": str(several), "dataset_config_name": "large", "resolution": 8}
    for refresh in (False, True):
        images, _ = load_split(TrainingConfig(**settings, refresh_cache=refresh), "train", 3)
        assert len(images) == 5
    with pytest.raises(ValueError, match="revision is 'v1'"):
        load_split(TrainingConfig(**settings, dataset_revision="v1"), "train", 3)


VOID = {
    "loss_weighting": dict(loss_weighting="p2", snr_gamma=5.0),
    "network": dict(network="cifar10-64", pretrained="org/model"),
    "validation_steps": dict(validation_steps=10, validation_split="none"),
    "validation_images": dict(validation_images=10, dataset_name="my/images"),
    "inception_weights": dict(inception_weights="file.pt", feature_extractor="features.pt"),
    "inception_weights ": dict(recipe="cifar10-64", inception_weights="file.pt", samplers="none"),
    "feature_extractor": dict(feature_extractor="features.pt", samplers="none"),
    "hub_private": dict(hub_private=True),
}


@pytest.mark.parametrize("name", VOID)
def test_settings_without_effect_are_refused(name):
    """A setting that another one makes void is an error of one line that names both."""
    with pytest.raises(ValueError, match=rf"^{name.strip()} is given with [^\n]*; allowed: "):
        TrainingConfig(**VOID[name])


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_configuration_is_one_of_its_own_settings(recipe):
    """What the resolved settings leave void is not among them: they make the same configuration again."""
    for none in ({}, dict(samplers="none"), dict(validation_split="none")):
        made = TrainingConfig(recipe=recipe, dataset_name="org/images", **none)
        assert replace(made) == made


def test_a_distance_needs_two_images():
    """A sampler of one image is refused where a distance is to be taken."""
    with pytest.raises(ValueError, match="allowed with a feature_extractor: 2 images or more"):
        TrainingConfig(samplers="50:0:1:1", feature_extractor="inception")
    assert TrainingConfig(samplers="50:0:1:1", feature_extractor="none").sampler_settings()[0].images == 1


BAD = {
    "recipe": "imagenet",
    "network": "big",
    "batch_size": 0,
    "gradient_accumulation_steps": 0,
    "max_train_steps": 0,
    "learning_rate": -1.0,
    "max_grad_norm": float("nan"),
    "lr_warmup_steps": -1,
    "lr_scheduler": "step",
    "mixed_precision": "fp8",
    "prediction_type": "noise",
    "beta_schedule": "quadratic",
    "logger": "paper",
    "ema_decay": "1.5",
    "samplers": "50:0.0:100",
    "snr_gamma": 0.0,
    "loss_weighting": "most",
    "compile": "often",
    "dropout": 1.0,
    "weight_decay": -0.1,
    "seed": -1,
    "validation_split": "train",
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_settings_are_refused(name):
    """A setting out of range is a ValueError of one line with the name, what was given and what is allowed."""
    with pytest.raises(ValueError, match=rf"^{name} (is|has) .*allowed: [^\n]*$") as raised:
        TrainingConfig(**{name: BAD[name]})
    assert str(BAD[name]) in str(raised.value)


@pytest.mark.parametrize("samplers", ["0:0:1:1", "50:1.1:1:1", "50:0:0:1", "50:0:1:0", "50:0:1:1,50:0.0:2:2", ""])
def test_wrong_samplers_are_refused(samplers):
    """Samplers out of range, or twice the same, are refused."""
    with pytest.raises(ValueError, match="samplers"):
        TrainingConfig(samplers=samplers)


def test_samplers_are_read():
    """steps:eta:every:images by commas; their names are those of their best models."""
    samplers = TrainingConfig(samplers="20:0.0:5000:6000,100:0.2:7:9").sampler_settings()
    assert [(s.steps, s.eta, s.every, s.images) for s in samplers] == [(20, 0.0, 5000, 6000), (100, 0.2, 7, 9)]
    assert [s.name for s in samplers] == ["20-0", "100-0.2"]
    assert TrainingConfig(samplers="none").sampler_settings() == []


def test_the_learning_rate():
    """It rises linearly to its peak in the warm-up's last step, then stays, or falls as a cosine to zero."""
    constant = TrainingConfig(lr_scheduler="constant", learning_rate=1.0, lr_warmup_steps=4, max_train_steps=20)
    assert [constant.learning_rate_at(step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    cosine = TrainingConfig(lr_scheduler="cosine", learning_rate=1.0, lr_warmup_steps=4, max_train_steps=20)
    falling = (1 + np.cos(np.pi * np.arange(16) / 16)) / 2
    assert [cosine.learning_rate_at(step) for step in range(4, 20)] == pytest.approx(falling)
    assert TrainingConfig(lr_warmup_steps=0, lr_scheduler="constant").learning_rate_at(0) == 1e-3


# examples/train.py


@pytest.mark.parametrize("name", ["random_flip", "channels_last", "compile", "grey", "skip_broken", "dry_run"])
def test_a_bare_flag_means_true(name):
    """Every yes-or-no setting is turned on by its flag alone, and takes a word too."""
    spec = importlib.util.spec_from_file_location("train_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for words, wanted in (([], True), (["true"], True), (["False"], False)):
        (config,) = script.Parser(TrainingConfig).parse_args_into_dataclasses([f"--{name}", *words])
        assert getattr(config, name) is wanted


def test_flags_of_diffusers_script_are_answered_with_ours(monkeypatch, capsys):
    """An unknown flag that diffusers' train_unconditional.py knows ends in one line that names ours; each name that
    such a line gives is a flag of this script."""
    ours = {f"--{name}" for name in TrainingConfig.__dataclass_fields__}
    for flag, text in FLAGS_OF_DIFFUSERS.items():
        assert flag not in ours and set(re.findall(r"--\w+", text)) <= ours
    for word in ("--train_data_dir=images", "--train_data_dir", "--train-data-dir"):
        assert train(monkeypatch, word, "images") == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "diffusers'" in said
        assert "--train_data_dir (--dataset_name, which takes a folder too)" in said
    # All of them at once, and before what else is wrong.
    assert train(monkeypatch, "--recipe", "images-64", "--num_epochs", 4, "--use_ema", "--lr_scheduler", "linear") == 2
    said = capsys.readouterr().err
    assert "--num_epochs (--num_train_epochs), --use_ema (--ema_decay" in said and said.count("\n") == 1
    assert train(monkeypatch, "--batch_size", 4, "--colour", "red") == 2
    assert "unknown: --colour" in capsys.readouterr().err


def test_recipes_are_listed(monkeypatch, capsys):
    """--list_recipes prints each value of each recipe, and --help says the defaults by recipe, never None."""
    assert train(monkeypatch, "--list_recipes") == 0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["setting", *(f"`{recipe}`" for recipe in RECIPES)]
    listed = {line[0].strip("`"): line[1:] for line in lines[2:]}
    for column, row in enumerate(RECIPES.values()):
        assert {name: cells[column].replace(",", "") for name, cells in listed.items() if cells[column]} == {
            name: str(value).replace(",", "") for name, value in row.items()
        }
    assert train(monkeypatch, "--help") == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "None" not in words
    assert "(default: 8 in digits; 32 in images-32, cifar10-64, cifar10-128; 64 in images-64;" in words


@pytest.mark.parametrize("options", [("--dry_run",), ()])
def test_colour_images_are_not_made_grey_in_silence(monkeypatch, capsys, tmp_path, options):
    """Colour images and a network of one channel end in one line that asks for a recipe; --grey takes them so."""
    (tmp_path / "images").mkdir()
    for shade in range(4):
        Image.new("RGB" if shade else "L", (8, 8), 60 * shade).save(tmp_path / "images" / f"{shade}.png")
    words = ["--dataset_name", tmp_path / "images", "--output_dir", tmp_path / "run", "--recipe", "digits", *options]
    assert train(monkeypatch, *words) == 2
    said = capsys.readouterr().err
    assert "holds colour images and network digits has one channel; allowed: --recipe" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
    build = TrainingConfig(recipe="digits", dataset_name=str(tmp_path / "images"), grey=True)
    assert describe_split(build, "train", channels=1).channels == 3


def test_a_run_inside_the_folder_of_its_images_is_refused(monkeypatch, capsys, tmp_path):
    """Its grids would be images of the next run: one line, before anything is read."""
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    for folder in (tmp_path, tmp_path / "outputs/mine"):
        for options in ((), ("--dry_run",)):
            assert train(monkeypatch, "--dataset_name", tmp_path, "--output_dir", folder, *options) == 2
            assert "inside the folder of images" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["0.png"]


def test_unknown_words_are_counted_off(monkeypatch, capsys):
    """Of many unknown words, as a pattern gives that the shell filled in, three are named."""
    assert train(monkeypatch, "--dataset_name", *(f"{number}.png" for number in range(9))) == 2
    assert "unknown: 1.png 2.png 3.png ... (" in capsys.readouterr().err


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def train(monkeypatch, *words) -> int:
    """Run the script in this process and return its exit code."""
    spec = importlib.util.spec_from_file_location("train_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        run_script(script.main)
    return ended.value.code


def pictures(folder: Path) -> Path:
    folder.mkdir()
    for shade in range(4):
        Image.new("L", (8, 8), 60 * shade).save(folder / f"{shade}.png")
    return folder


def test_bad_input_is_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path, model, hub):
    """Each kind of wrong input ends with code 2 and a single line that names it, without a traceback."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    torn = pictures(tmp_path / "torn")
    (torn / "2.png").write_bytes((torn / "2.png").read_bytes()[:30])
    table = tmp_path / "images.parquet"
    import datasets

    column = [Image.new("L", (8, 8), shade) for shade in range(4)]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": column}, features=features).to_parquet(table)
    monkeypatch.setenv("DDIM_HF_CACHE", str(tmp_path / "cache"))
    tiny = ["--pretrained", model, "--resolution", 8, "--logger", "none", "--samplers", "none"]
    output = ["--output_dir", tmp_path / "run"]
    cases = {
        "recipe is 'imagenet'; allowed: digits": ["--recipe", "imagenet"],
        "--no_such_flag": ["--no_such_flag", 3],
        "batch_size is 9; allowed: multiples of 2": [*output, "--batch_size", 9, "--gradient_accumulation_steps", 2],
        "invalid int value: 'many'": ["--batch_size", "many"],
        "no images in the folder": [*output, "--dataset_name", tmp_path / "empty", *tiny],
        f"{torn / '2.png'} cannot be read": [*output, "--dataset_name", torn, *tiny],
        "has no column 'picture': its columns are ['image']": [
            *(*output, "--dataset_name", table, "--image_column", "picture", *tiny)
        ],
        "org/nothing": [*output, "--dataset_name", "org/nothing", *tiny],
        "org/no-model": [*output, "--pretrained", "org/no-model", "--resolution", 8],
        f"{tmp_path / 'file'} is a file; allowed: a folder": ["--output_dir", tmp_path / "file"],
        f"output_dir is {tmp_path / 'file' / 'run'}, and": ["--output_dir", tmp_path / "file" / "run"],
        "resolution is 16; allowed with": [*output, "--pretrained", model, "--resolution", 16],
        "has no split 'dev'": [*output, "--validation_split", "dev", *tiny],
        "resolution is 9; allowed with digits: multiples of 2": [*output, "--resolution", 9],
        "seed is 18446744073709551615; allowed": [*output, "--seed", 2**64 - 1],
        "Repo id must": [*output, "--hub_model_id", "a/b/c"],
        "nowhere": [*output, "--resume_from_checkpoint", tmp_path / "nowhere", *tiny],
    }
    for message, words in cases.items():
        capsys.readouterr()
        assert train(monkeypatch, *words) == 2, message
        said = capsys.readouterr().err
        errors = [line for line in said.splitlines() if "rror" in line]
        assert len(errors) == 1 and errors[0].startswith("error: ") and message in errors[0], (message, said)
        assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_traceback_shows_it(monkeypatch, capsys):
    """--traceback shows where the error came from, before the same line and with the same code."""
    assert train(monkeypatch, "--recipe", "imagenet", "--traceback") == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and said.splitlines()[-1].startswith("error: recipe is 'imagenet'")


def test_skip_broken_goes_on(monkeypatch, capsys, tmp_path, model):
    """--skip_broken leaves a torn image out and goes on."""
    torn = pictures(tmp_path / "torn")
    (torn / "2.png").write_bytes(b"")
    words = ["--pretrained", model, "--resolution", 8, "--skip_broken", "--logger", "none", "--samplers", "none"]
    cache = ["--cache_dir", tmp_path / "cache", "--output_dir", tmp_path / "run"]
    short = ["--max_train_steps", 2, "--batch_size", 2]
    with pytest.warns(UserWarning, match="left out 1 of 4 images"):
        with pytest.raises(pytest.fail.Exception):  # it does not exit: it is done
            train(monkeypatch, *words, *cache, *short, "--dataset_name", torn)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["num_images"] == 3
    assert os.path.exists(tmp_path / "run" / "model_index.json")


def test_a_network_saved_by_itself_is_fine_tuned(model, tmp_path):
    """--pretrained takes a UNet2DModel's own folder, with the noise schedule that the flags say."""
    pipe = DDIMCustomPipeline.from_pretrained(model)
    pipe.unet.save_pretrained(tmp_path / "unet")
    settings = dict(pretrained=str(tmp_path / "unet"), resolution=8, beta_schedule="scaled_linear")
    settings |= dict(prediction_type="epsilon")
    unet, scheduler, _ = build_model(TrainingConfig(output_dir=str(tmp_path / "run"), **settings))
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), pipe.unet.parameters(), strict=True))
    assert scheduler.config.beta_schedule == "scaled_linear"
