"""What a run says before its first step."""

import random

import pytest
import torch
from diffusers import UNet2DModel
from image_files import noise
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensor
from training_runs import config, save_tiny_model

from ddim_hf.data import describe_images
from ddim_hf.reports.words import counted, in_words
from ddim_hf.training import RECIPES, TrainingConfig, train
from ddim_hf.training.outlook import Pace, summarize
from ddim_hf.training.setup import build_model
from ddim_hf.unet import build_unet


def folder_of(place, sizes, mode="RGB"):
    for number, (width, height) in enumerate(sizes):
        file = place / f"class-{number % 3}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(height, width)).convert(mode).save(file)
    return str(place)


def said(place, **settings):
    run = TrainingConfig(dataset_name=place, output_dir=f"{place}/run", **settings)
    unet, *_ = build_model(run)
    return summarize(run, unet, describe_images(place, "train"))


def test_the_first_line_says_what_was_understood(tmp_path):
    """Number, colours, size and crop, class folders, network, steps and epochs stand in one line."""
    sizes = [(40 + random.Random(number).randrange(100), 40 + 10 * (number % 7)) for number in range(38)]
    place = folder_of(tmp_path / "images", [*sizes, (40, 60), (512, 300)])
    count = build_unet("images-32").num_parameters()
    assert said(place) == [
        "40 images, RGB, 32 x 32, centre-cropped from 40..512 pixels; 3 class folders seen, trained as one set "
        f"(--class_conditional tells them apart); network images-32 of {count:,} parameters; "
        "500 steps of 16 images (200.0 epochs)"
    ]


def test_class_folders_are_those_that_give_the_classes(tmp_path):
    """Folders are counted where --class_conditional would find a class for each image; squares are not said to be
    cropped, nor some of the images to be all."""
    rooted = folder_of(tmp_path / "rooted", [(64, 64)] * 6)
    Image.fromarray(noise(64, 64)).save(tmp_path / "rooted/0.png")
    folder_of(tmp_path / "nested" / "all", [(64, 64)] * 6)
    many = folder_of(tmp_path / "many", [(40 + number % 9,) * 2 for number in range(80)])
    for place in (rooted, str(tmp_path / "nested")):
        assert "class folders" not in said(place)[0]
    assert "80 images, RGB, 32 x 32, scaled from 40..48 pixels (64 looked at); 3 class folders" in said(many)[0]


def test_distances_are_taken_of_ones_own_images_where_they_are_asked_for(tmp_path):
    """Recipes whose samplers take distances leave them out for other images than the recipe's, which is said."""
    place = folder_of(tmp_path / "images", [(32, 32)] * 128)
    asked = {"recipe": "cifar10-64", "max_train_steps": 10, "lr_warmup_steps": 0}
    assert said(place, **asked)[1:] == [
        "note: samplers save grids and take no distance (--feature_extractor inception, or a file)"
    ]
    assert len(said(place, **asked, samplers="none")) == 1
    assert TrainingConfig(**asked, dataset_name=place).feature_extractor == "none"
    for given in ({"feature_extractor": "inception"}, {"inception_weights": "weights.pt"}):
        assert TrainingConfig(**asked, dataset_name=place, **given).feature_extractor == "inception"
    assert TrainingConfig(recipe="cifar10-64").feature_extractor == "inception"


def test_what_changes_or_does_not_fit_is_said(tmp_path):
    """Grey, transparent and small images, fewer than a batch, and more than 2,000 epochs have a line each."""
    grey = said(folder_of(tmp_path / "grey", [(20, 24)] * 5, "LA"), max_train_steps=800)
    assert [line.split(":")[0] for line in grey[1:]] == ["note", "note", "note", "warning", "warning"]
    for words, line in zip(
        ("grey", "transparent", "from 20 pixels", "5 images", "2,560 epochs"), grey[1:], strict=True
    ):
        assert words in line
    assert len(said(folder_of(tmp_path / "fit", [(64, 64)] * 32))) == 1
    short = said(folder_of(tmp_path / "short", [(64, 64)] * 16), max_train_steps=90)
    assert "90 steps, and 100 of warm-up" in short[1] and "--lr_warmup_steps 9)" in short[1] and len(short) == 2
    just = said(str(tmp_path / "short"), max_train_steps=90, lr_warmup_steps=90)  # its last step is at the peak
    assert len(just) == 1
    colour = said(folder_of(tmp_path / "colour", [(8, 8)] * 64), recipe="digits", max_train_steps=90)
    assert "8 x 8;" in colour[0] and colour[1:] == ["note: the images are in colour, and are made grey"]


def test_a_transparent_colour_of_a_palette_is_transparency(tmp_path):
    """A PNG that names one colour of its palette as transparent, as icons do, is laid on white, and that is said."""
    place = folder_of(tmp_path / "images", [(64, 64)] * 32)
    for file in (tmp_path / "images").rglob("*.png"):
        Image.open(file).convert("P").save(file, transparency=0)
    assert said(place)[1:] == ["note: transparent images are laid on white"]


def test_a_null_class_that_is_not_trained_is_said(tmp_path):
    """With label_dropout 0 a line says what that makes of guidance, unless there is none to be."""
    place = folder_of(tmp_path / "images", [(64, 64)] * 32)
    assert len(said(place, class_conditional=True)) == 1
    (line,) = said(place, class_conditional=True, label_dropout=0.0)[1:]
    assert "the null class is not trained, and guidance and samples without a class mean nothing" in line


def test_a_run_says_it_first_and_its_time_after_ten_steps(tmp_path, capsys):
    """A run's first line is that line; after ten steps it says how long the others take."""
    model = save_tiny_model(tmp_path / "model")
    place = folder_of(tmp_path / "images", [(8, 8)] * 20, "L")
    train(config(model, tmp_path / "run", dataset_name=place, cache_dir=str(tmp_path), num_train_epochs=10))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("20 images, grey, 8 x 8; 3 class folders")
    assert sum(" for the 2 steps to come" in line for line in lines) == 1


def test_a_dry_run_estimates_the_time(tmp_path, capsys):
    """A dry run says the same first line, and a time from a trial step."""
    place = folder_of(tmp_path / "images", [(40, 40)] * 32)
    train(TrainingConfig(dataset_name=place, resolution=8, output_dir=str(tmp_path / "run"), dry_run=True))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("32 images, RGB, 8 x 8, scaled from 40 x 40 pixels")
    assert '  "max_train_steps": 400,' in lines
    assert sum(line.startswith("time: about ") and "from a trial of" in line for line in lines) == 1


@pytest.mark.parametrize("most, said", [(0, "1 image"), (1, "8 images")])
def test_a_dry_run_of_what_does_not_fit_says_so(tmp_path, monkeypatch, capsys, most, said):
    """Where a pass does not fit the device, its plan says which one, and the memory of a step as always."""
    forward = UNet2DModel.forward

    def full(unet, x_t, *words):
        if len(x_t) > most and not (x_t.is_meta or isinstance(x_t, FakeTensor)):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(unet, x_t, *words)

    monkeypatch.setattr(UNet2DModel, "forward", full)
    place = folder_of(tmp_path / "images", [(8, 8)] * 32)
    train(TrainingConfig(dataset_name=place, resolution=8, output_dir=str(tmp_path / "run"), dry_run=True))
    lines = capsys.readouterr().out.splitlines()
    assert f"time: unknown, as a pass of {said} does not fit the device" in lines
    assert sum(line.startswith("memory of a step: about ") for line in lines) == 1


def test_the_pace_is_that_of_the_later_steps(monkeypatch):
    """Slow first steps do not count, nor what is between steps: eight steps of a second each, and 100 to come, are 100
    seconds. Where none are to come nothing is said."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def texts(steps: int) -> list[str | None]:
        pace, said = Pace(), []
        for step in range(1, steps + 1):
            with pace.step(int):
                now[0] += 30 if step < 3 else 1
            now[0] += 50  # samples
            said.append(pace.in_words(steps - step))
        return said

    assert texts(10) == [None] * 10
    assert texts(110).pop(9).startswith("about 100 seconds for the 100 steps") and texts(110).count(None) == 109


@pytest.mark.parametrize(
    "seconds, text", [(7, "7 seconds"), (600, "10 minutes"), (9_000, "2 hours"), (86_400 * 85, "85 days")]
)
def test_durations_in_words(seconds, text):
    """A duration stands in the unit that suits it."""
    assert in_words(seconds) == text


@pytest.mark.parametrize(
    "count, what, text",
    [(1, "image", "1 image"), (1234, "image", "1,234 images"), (2, "link to a folder", "2 links to a folder")],
)
def test_one_is_singular(count, what, text):
    """What is counted is in the singular where it is one."""
    assert counted(count, what) == text


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("images-")])
def test_the_small_networks_attend_at_8_pixels(name):
    """Each network for one's own images takes colour at its recipe's size and attends at 8 x 8 pixels, under 6 million
    parameters."""
    unet = build_unet(name)
    assert unet.config.sample_size == RECIPES[name]["resolution"] and unet.config.in_channels == 3
    (level,) = [level for level, kind in enumerate(unet.config.down_block_types) if kind == "AttnDownBlock2D"]
    assert unet.config.sample_size // 2**level == 8 and unet.num_parameters() < 6e6
