"""Requests of the page: what they show against the pipeline's own results, how they end, and what they refuse."""

import copy
import io
import re
import threading
import time

import numpy as np
import pytest
from conftest import tiny_unet
from diffusers import UNet2DModel
from hub_models import one_line
from page_pictures import files, pixels
from PIL import Image

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom, states_to_images
from ddim_hf.app import requests, watching
from ddim_hf.app.limits import Limits
from ddim_hf.app.models import Models
from ddim_hf.app.settings import Settings
from ddim_hf.app.uploads import drawing, read_upload
from ddim_hf.generation import load_pipeline

LIMITS = Limits()


def last(views) -> requests.View:
    *_, view = views
    return view


@pytest.fixture(scope="module")
def colour():
    """A pipeline of 8x8 colour images."""
    config = dict(tiny_unet().config) | {"in_channels": 3, "out_channels": 3}
    return DDIMCustomPipeline(UNet2DModel.from_config(config), DDIMSchedulerCustom(beta_end=0.03))


@pytest.fixture(scope="module")
def gentle():
    """A network whose predictions change little with its input, as a trained one's do: exact encoding converges."""
    unet = tiny_unet()
    unet.conv_out.weight.data *= 0.05
    pipe = DDIMCustomPipeline(unet, DDIMSchedulerCustom(skip_type="quad", beta_end=0.03))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def slow(pipe):
    """The tiny network at 0.12 s a pass, and how often it has been passed."""
    slowed, passes = copy.copy(pipe), []

    def network(*inputs):
        passes.append(time.monotonic())
        time.sleep(0.12)
        return pipe._network(*inputs)

    slowed._network = network
    return slowed, passes


# What is shown


def test_images_appear_while_they_form(slow, monkeypatch):
    """After each step the prediction of x_0 is shown, then the images; chunks that wait have an empty place."""
    monkeypatch.setattr(watching, "INTERVAL", 0.0)  # else a watcher that is held up leaves a step out
    pipe, _ = slow
    settings = Settings(images=3, steps=3, tau="quadratic", seed=5)
    views = list(requests.sample(pipe, settings, Limits(at_once=2)))
    expected = pipe(3, num_inference_steps=3, seeds=[5, 6, 7], return_trajectory=True)
    forming = [pixels(states_to_images(x0, "pil")) for x0 in expected.pred_original_samples]
    shown = [pixels(files(view.pictures)) if "<img" in view.pictures else np.empty(0) for view in views]
    for step, x0 in enumerate(forming[:2]):  # of the first chunk
        assert any(np.array_equal(each, x0[:2]) for each in shown), f"step {step + 1} was not shown"
        assert any(len(each) == 3 and np.array_equal(each[2:], x0[2:]) for each in shown)
    assert np.array_equal(shown[-1], pixels(expected.images))
    assert any('aria-label="seed 7: not there yet"' in view.pictures for view in views)
    done = [float(found[1]) for view in views if (found := re.search(r'value="([\d.]+)"', view.status))]
    assert done == sorted(done) and done[-1] > 0.8
    assert re.search(r"3 images in 3 steps: \d+\.\d s", views[-1].status)


def test_downloads_hold_the_images_and_how_they_formed(pipe):
    """The PNG has the images' pixels within a border of 2; the GIF a frame for each step, the last one the images."""
    view = last(requests.sample(pipe, Settings(images=4, steps=5, tau="quadratic"), LIMITS))
    images = pixels(files(view.pictures))
    (grid,), (animation,) = files(view.files), files(view.files, "gif")
    cells = np.asarray(grid)[:, :, 0].reshape(2, 12, 2, 12).swapaxes(1, 2).reshape(4, 12, 12)
    assert np.array_equal(cells[:, 2:-2, 2:-2], images)
    assert animation.n_frames == 5
    assert view.files.count("download=") == 2


def test_long_animations_keep_a_bounded_number_of_frames(pipe):
    """Of 90 steps a GIF has 40 frames, and so has the trajectory, with the first and the last step."""
    settings = Settings(images=1, steps=90, tau="quadratic")
    (animation,) = files(last(requests.sample(pipe, settings, LIMITS)).files, "gif")
    assert animation.n_frames <= requests.FRAMES
    pictures = last(requests.look_into(pipe, settings, LIMITS)).pictures
    assert "at step 1," in pictures and "at step 90," in pictures and len(files(pictures)) == 2 + 2 * requests.FRAMES


def test_comparison_shows_each_schedule_in_each_number_of_steps(pipe):
    """Each cell has the images of its seeds, steps and schedule, and their distance from those of 50 steps."""
    pictures = last(requests.compare(pipe, Settings(images=2, seed=4), LIMITS)).pictures
    shown, expected = pixels(files(pictures)).reshape(2, 4, 2, 8, 8), []
    for tau in ("uniform", "quad"):
        changed = copy.copy(pipe)
        changed.scheduler = DDIMSchedulerCustom.from_config(pipe.scheduler.config, skip_type=tau)
        expected += [changed(2, num_inference_steps=steps, seeds=[4, 5]).images for steps in (5, 10, 20, 50)]
    expected = np.stack([pixels(images) for images in expected]).reshape(2, 4, 2, 8, 8)
    assert np.array_equal(shown, expected)
    distances = np.sqrt(np.square((shown - expected[:, 3:].astype(float)) / 255).mean((2, 3, 4)))
    written = [float(number) for number in re.findall(r"differs by ([\d.]+)", pictures)]
    assert written == pytest.approx(distances[:, :3].flatten().tolist(), abs=6e-4)


def test_encoding_shows_both_reconstructions_with_their_errors(gentle):
    """Latents, reconstruction and mean squared error are those of `reconstruct`, plain and exact."""
    image = gentle(1, num_inference_steps=10, seeds=[1]).images[0]
    pictures = last(requests.encode(gentle, image, 4, LIMITS)).pictures
    shown = pixels(files(pictures)).reshape(2, 4, 8, 8)
    errors = re.findall(r"error ([\d.e-]+)", pictures)
    for row, exact in enumerate((False, True)):
        expected = gentle.reconstruct(image, num_inference_steps=4, exact=exact, tolerance=requests.TOLERANCE)
        assert np.array_equal(shown[row, 0], image) and np.array_equal(shown[row, 2], expected.images[0])
        assert np.array_equal(shown[row, 1], states_to_images(expected.latents, "pil")[0])
        assert errors[row] == f"{expected.mse.item():.2g}"
    assert float(errors[1]) < 1e-6 < float(errors[0]) and "not solved" not in pictures


def test_a_class_and_its_guidance_are_sampled(tmp_path):
    """A model with classes takes the class that is chosen, guided as asked; the lines of Python say both."""
    unet = tiny_unet(num_class_embeds=3)
    DDIMCustomPipeline(unet, DDIMSchedulerCustom(), id2label={0: "cat", 1: "dog"}).save_pretrained(tmp_path / "model")
    pipe = load_pipeline(tmp_path / "model")
    settings = Settings(images=2, steps=3, label="dog", guidance=2.5)
    view = last(requests.sample(pipe, settings, LIMITS))
    expected = pipe(2, num_inference_steps=3, seeds=[0, 1], class_labels="dog", guidance_scale=2.5).images
    assert np.array_equal(pixels(files(view.pictures)), pixels(expected))
    made = {}
    exec(settings.python(pipe, LIMITS, str(tmp_path / "model")), made)
    assert np.array_equal(pixels(made["images"]), pixels(expected))
    other = last(requests.sample(pipe, Settings(images=2, steps=3), LIMITS))
    assert not np.array_equal(pixels(files(other.pictures)), pixels(expected))
    with pytest.raises(ValueError, match="cow"):
        next(requests.sample(pipe, Settings(label="cow"), LIMITS))
    with pytest.raises(ValueError, match="guidance is 2.5 without a class"):
        next(requests.sample(pipe, Settings(guidance=2.5), LIMITS))
    with pytest.raises(ValueError, match="15 images are too many for this; allowed: up to 9"):  # 170 steps of 2 passes
        next(requests.compare(pipe, Settings(images=15, label="dog", guidance=2.5), LIMITS))


def test_encoding_that_does_not_converge_is_said(pipe):
    """An untrained network's steps have no fixed point that iteration finds, and the page says how far off it is."""
    pictures = last(requests.encode(pipe, Image.new("L", (8, 8), 90), 2, Limits(iterations=5))).pictures
    assert re.search(r"not solved: off by [\d.]+", pictures)
    ends = [Image.new("L", (8, 8), grey) for grey in (90, 200)]
    assert re.search(
        r"not solved: off by [\d.]+", last(requests.interpolate(pipe, ends, 3, 2, Limits(iterations=5))).status
    )


@pytest.mark.parametrize("kind", ["seeds", "images"])
def test_interpolation_shows_the_strip(gentle, kind):
    """The strip is that of `pipe.interpolate`, its middle in large at first, with a slider over all of it."""
    ends = [3, 8] if kind == "seeds" else gentle(2, num_inference_steps=5, seeds=[1, 2]).images
    pictures = last(requests.interpolate(gentle, ends, 5, 4, LIMITS)).pictures
    large, *strip = files(pictures)
    expected = gentle.interpolate(*ends, num_images=5, num_inference_steps=4).images
    assert np.abs(pixels(strip).astype(int) - pixels(expected)).max() <= 1  # encoded there to another tolerance
    assert np.array_equal(large, strip[2]) and 'max="4" value="2"' in pictures


def test_looking_into_an_image_shows_its_trajectory(pipe):
    """x_t and the predicted x_0 of each step, in order, with their timesteps."""
    pictures = last(requests.look_into(pipe, Settings(steps=4, eta=0.5, tau="quadratic", seed=9), LIMITS)).pictures
    expected = pipe(1, num_inference_steps=4, eta=0.5, seeds=[9], return_trajectory=True)
    rows = [states_to_images(x, "pil")[0] for x in [*expected.trajectory[:4], *expected.pred_original_samples]]
    assert np.array_equal(pixels(files(pictures)[2:]), pixels(rows))
    assert all(f"t = {timestep}" in pictures for timestep in expected.timesteps)


# How a request ends


def test_a_request_that_is_closed_stops_before_the_next_pass(slow):
    """Whatever a request does, plain or exact, no pass begins once its visitor has cancelled."""
    pipe, passes = slow
    image = pipe(1, num_inference_steps=1, seeds=[1]).images[0]
    for request in (
        requests.sample(pipe, Settings(steps=50, tau="quadratic"), LIMITS),
        requests.encode(pipe, image, 20, LIMITS),
        requests.interpolate(pipe, [0, 1], 9, 50, LIMITS),
    ):
        next(request), next(request)
        request.close()
        begun = len(passes)
        time.sleep(0.3)  # in which two passes more would have begun
        assert len(passes) <= begun + 1, "one more may be under way"
        assert last(requests.sample(pipe, Settings(images=1, steps=1), LIMITS)).files  # the next request has its turn


def test_requests_end_with_the_server(slow, monkeypatch):
    """Once the server ends no pass begins, also of those that other programs wait for, and whoever waits is told."""
    pipe, passes = slow
    settings = Settings(steps=50, tau="quadratic")
    request = requests.sample(pipe, settings, LIMITS)
    next(request), next(request)
    monkeypatch.setattr(watching, "closing", threading.Event())
    watching.closing.set()
    begun = len(passes)
    for ended in (lambda: last(request), lambda: requests.images_of(pipe, settings, LIMITS)):
        with pytest.raises(OSError, match="the server ends"):
            ended()
    assert len(passes) <= begun + 1, "one more may be under way"


def test_requests_at_once_do_not_see_each_other(slow):
    """Two that go on by turns end with the images of their own seeds."""
    pipe, _ = slow
    first, second = (requests.sample(pipe, Settings(2, 2, 0.0, "quadratic", seed), LIMITS) for seed in (0, 40))
    ends = [last(each) for _ in range(1) for each in (first, second) if next(each)]
    for seed, view in zip((0, 40), ends, strict=True):
        expected = pipe(2, num_inference_steps=2, seeds=[seed, seed + 1]).images
        assert np.array_equal(pixels(files(view.pictures)), pixels(expected))


def test_a_request_that_fails_at_once_has_shown_that_it_began(pipe):
    """However soon the network fails there was a view: by it the page takes away what an earlier request has left."""

    def network(*inputs):
        raise OSError("the network failed")

    broken, image = copy.copy(pipe), Image.new("L", (8, 8))
    broken._network = network
    for request in (
        requests.sample(broken, Settings(images=2, steps=2), LIMITS),
        requests.compare(broken, Settings(images=2), LIMITS),
        requests.look_into(broken, Settings(steps=2), LIMITS),
        requests.encode(broken, image, 2, LIMITS),
        requests.interpolate(broken, [0, 1], 3, 2, LIMITS),
    ):
        assert "progress" in next(request).status
        with pytest.raises(OSError, match="the network failed"):
            next(request)


def test_a_request_beyond_the_limits_is_refused_before_any_pass(slow):
    """Too many steps, images or iterations raise at once; passes of one request are summed."""
    pipe, passes = slow
    uploads = [Image.new("L", (8, 8))] * 2
    for request in (
        requests.sample(pipe, Settings(images=64, steps=51), LIMITS),
        requests.compare(pipe, Settings(images=40), LIMITS),
        requests.encode(pipe, uploads[0], 61, LIMITS),
        requests.interpolate(pipe, [0, 1], 65, 2, LIMITS),
        requests.interpolate(pipe, uploads, 32, 25, LIMITS),
        requests.look_into(pipe, Settings(steps=1001), LIMITS),
    ):
        with pytest.raises(ValueError) as caught:
            next(request)
        one_line(caught, "allowed")
    assert not passes


def test_images_that_are_not_finite_are_said():
    """A network of NaN shows one line in each tab, and no black image."""
    unet = tiny_unet()
    unet.conv_out.bias.data[:] = float("nan")
    pipe = DDIMCustomPipeline(unet, DDIMSchedulerCustom())
    pipe.set_progress_bar_config(disable=True)
    settings, image = Settings(images=2, steps=2), Image.new("L", (8, 8))
    for request in (
        requests.sample(pipe, settings, LIMITS),
        requests.compare(pipe, settings, LIMITS),
        requests.look_into(pipe, settings, LIMITS),
        requests.encode(pipe, image, 2, Limits(iterations=2)),
        requests.interpolate(pipe, [0, 1], 3, 2, LIMITS),
    ):
        with pytest.raises(ValueError, match="not finite"):
            last(request)


# Uploads


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
@pytest.mark.parametrize("size", [(8, 8), (33, 21), (5, 9)], ids=str)
def test_images_of_any_mode_and_size_are_taken(pipe, colour, tmp_path, mode, size):
    """What Pillow writes in a mode comes in as the network's size and channels."""
    kind = "tiff" if mode in ("CMYK", "I;16", "F") else "png"
    Image.new(mode, size).save(tmp_path / f"image.{kind}")
    for pipeline, expected in ((pipe, "L"), (colour, "RGB")):
        image = read_upload(tmp_path / f"image.{kind}", pipeline, LIMITS)
        assert (image.mode, image.size) == (expected, (8, 8))


def png(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 50).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", ["cannot be read as an image"]),
        (b"no image at all", ["cannot be read as an image"]),
        (png((64, 64))[:600], ["cannot be read as an image"]),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", ["cannot be read as an image"]),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), ["cannot be read as an image"]),
        (png((2000, 600)), ["1 megapixels", "up to 1"]),
        (None, ["no image yet"]),
    ],
    ids=["empty", "text", "cut", "svg", "header", "large", "none"],
)
def test_a_bad_file_gets_one_sentence(pipe, tmp_path, content, words):
    """A file that is no image, is cut short or too large, and none at all."""
    path = None if content is None else tmp_path / "file.png"
    if path:
        path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_upload(path, pipe, Limits(upload_megapixels=1))
    one_line(caught, *words)
    assert str(tmp_path) not in str(caught.value)


def test_an_upload_that_is_gone_is_asked_for_again(pipe, tmp_path):
    """The page deletes uploads after a while; one that is gone gets a sentence that names no path of the server's."""
    for path in (tmp_path / "gone.png", tmp_path):
        with pytest.raises(ValueError) as caught:
            read_upload(path, pipe, LIMITS)
        one_line(caught, "no longer kept", "upload it again")
        assert str(tmp_path) not in str(caught.value)


def test_the_drawing_is_an_example_for_every_model(pipe, colour, tmp_path):
    """It is read like any upload."""
    drawing().save(tmp_path / "drawing.png")
    assert len(np.unique(read_upload(tmp_path / "drawing.png", colour, LIMITS))) > 20
    assert read_upload(tmp_path / "drawing.png", pipe, LIMITS).mode == "L"


# Models


def test_a_wrong_model_changes_nothing(pipe, tmp_path):
    """What cannot be loaded is said in one line; the models that are loaded stay, and no more than are allowed."""
    for name in ("own", "other", "third"):
        pipe.save_pretrained(tmp_path / name)
    models = Models(str(tmp_path / "own"), allow_others=True, kept=2)
    own, other = models.get(), models.get(str(tmp_path / "other"))
    for wrong in (str(tmp_path), "not a repo id!", str(tmp_path / "nowhere")):
        with pytest.raises((ValueError, OSError)) as caught:
            models.get(wrong)
        one_line(caught)
    assert models.get() is own and models.get(str(tmp_path / "other")) is other
    models.get(str(tmp_path / "third"))
    assert models.get() is own and models.get(str(tmp_path / "other")) is not other  # it had to go


@pytest.mark.parametrize("name", ["own", "other"])
def test_a_model_is_read_anew_where_that_is_asked(pipe, tmp_path, name):
    """Weights that were saved over those loaded are taken, by all visitors; until then the loaded ones stay."""
    for folder in ("own", "other"):
        pipe.save_pretrained(tmp_path / folder)
    models, path = Models(str(tmp_path / "own"), allow_others=True, kept=2), str(tmp_path / name)
    before = models.get(path)
    DDIMCustomPipeline(tiny_unet(sample_size=16), DDIMSchedulerCustom()).save_pretrained(path)
    assert models.get(path) is before
    assert models.get(path, anew=True) is models.get(path) and models.get(path).state_shape == (1, 16, 16)
    (tmp_path / name / "unet/config.json").unlink()
    with pytest.raises((ValueError, OSError)):
        models.get(path, anew=True)
    assert models.get(path).state_shape == (1, 16, 16)


def test_other_models_are_refused_unless_allowed(pipe, tmp_path):
    """A page of one model reads no folder that a visitor names, whether it is there or not."""
    pipe.save_pretrained(tmp_path / "own")
    models = Models(str(tmp_path / "own"), allow_others=False, kept=2)
    for name in (str(tmp_path / "own") + "/.", "/etc", "org/model"):
        with pytest.raises(PermissionError) as caught:
            models.get(name)
        one_line(caught, "--allow_models")
