"""One's own folder of images becomes a model, by the command that README shows."""

import random
import runpy
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw
from sklearn.linear_model import LogisticRegression
from training_runs import SCRIPT

from ddim_hf import DDIMCustomPipeline
from ddim_hf.data import load_images

KINDS, COUNT, SIDE = ("bar", "disc", "post"), 200, 8


def draw(kind: str, side: int, rng: random.Random) -> Image.Image:
    """A dark shape, somewhere about the middle of a light square."""
    shade, x, y = rng.randrange(60), *(side * rng.uniform(0.45, 0.55) for _ in "xy")
    width, height = {"bar": (0.45, 0.15), "disc": (0.3, 0.3), "post": (0.15, 0.45)}[kind]
    picture = Image.new("RGB", (side, side), (255, 255, 255))
    box = [x - width * side, y - height * side, x + width * side, y + height * side]
    pencil = ImageDraw.Draw(picture)
    (pencil.ellipse if kind == "disc" else pencil.rectangle)(box, fill=(shade, shade // 2, shade))
    return picture


@pytest.mark.parametrize("resolution", [32, 64, 128])
def test_each_small_network_trains_and_draws_its_grid(monkeypatch, tmp_path, resolution):
    """What README's command trains at each size: a new network that predicts x_0, with a grid of its samples."""
    for number in range(4):
        file = tmp_path / "images" / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        draw(KINDS[number % 3], 140, random.Random(number)).save(file)
    words = f"--dataset_name {tmp_path / 'images'} --output_dir {tmp_path / 'run'} --resolution {resolution}"
    small = f"--max_train_steps 1 --batch_size 2 --samplers 2:0.0:1:4 --cache_dir {tmp_path / 'cache'}"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words.split(), *small.split()])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    pipe = DDIMCustomPipeline.from_pretrained(tmp_path / "run")
    assert pipe.unet.config.sample_size == resolution and pipe.scheduler.config.prediction_type == "sample"
    (grid,) = (tmp_path / "run" / "samples").glob("*.png")
    assert Image.open(grid).width > 2 * resolution
    assert pipe(num_inference_steps=1, output_type="pt").images.shape == (1, 3, resolution, resolution)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A folder of folders, with images of many sizes and modes."""
    place, rng = tmp_path_factory.mktemp("shapes"), random.Random(0)
    for number in range(COUNT):
        kind, mode = KINDS[number % 3], ("RGB", "RGBA", "L", "P")[number % 4]
        file = place / f"{kind}s" / f"{number:03}.png"
        file.parent.mkdir(exist_ok=True)
        draw(kind, rng.choice((24, 40, 64, 100)), rng).convert(mode).save(file)
    return place


def test_shapes_are_learnt_to_samples_that_a_classifier_tells_apart(shapes, tmp_path, monkeypatch, capsys):
    """200 shapes of mixed sizes and modes become a model that makes each kind of them: of its samples a classifier of
    the shapes is sure, and a shape is near to each."""
    words = ["--dataset_name", shapes, "--output_dir", tmp_path / "run", "--cache_dir", tmp_path / "cache"]
    words += ["--resolution", SIDE, "--block_out_channels", "16,32", "--attention_levels", "none"]
    words += ["--max_train_steps", 500, "--learning_rate", "3e-3", "--samplers", "none", "--logger", "none"]
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, words)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert (
        "200 images, RGB, 8 x 8, scaled from 24..100 pixels (64 looked at); 3 class folders" in capsys.readouterr().out
    )

    images = load_images(str(shapes), resolution=SIDE, cache_dir=tmp_path / "cache")
    real = images[:].flatten(1).numpy() / 255
    kinds = np.repeat(range(3), [len(list((shapes / f"{kind}s").iterdir())) for kind in KINDS])  # folders in order
    classifier = LogisticRegression(max_iter=1000).fit(real[::2], kinds[::2])
    assert classifier.score(real[1::2], kinds[1::2]) > 0.98

    pipe = DDIMCustomPipeline.from_pretrained(tmp_path / "run")
    pipe.set_progress_bar_config(disable=True)
    samples = pipe(48, num_inference_steps=20, seeds=range(48), output_type="pt").images.flatten(1).numpy()
    sure = classifier.predict_proba(samples).max(1) > 0.8  # as of no image that is the mean of all, nor of noise
    distances = np.sqrt(np.square(samples[:, None] - real).mean(2)).min(1)  # of noise 0.49
    assert sure.mean() > 0.7 and np.bincount(classifier.predict(samples[sure]), minlength=3).min() >= 4
    assert (distances < 0.2).mean() > 0.75
