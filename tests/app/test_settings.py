"""Settings of the page: links, limits, schedules, and the lines of Python that make the same images."""

import itertools
from urllib.parse import parse_qsl

import numpy as np
import pytest
from hub_models import one_line
from page_pictures import files, pixels

from ddim_hf import DDIMCustomPipeline
from ddim_hf.app.limits import Limits
from ddim_hf.app.requests import sample
from ddim_hf.app.settings import Settings, calibrated_steps, default_settings, taus_of
from ddim_hf.calibration import describe_sampler


@pytest.fixture(scope="module")
def fitted(pipe, tmp_path_factory):
    """A folder with a model whose own steps are quadratic, and which has a fitted schedule of 3 steps."""
    schedule = {"timesteps": [900, 400, 50], "weights": [[1, 0, 0], [1.2, -0.2, 0], [1, 0, 0]]}
    record = {"weights_hash": pipe._weights_hash(), "sampler": describe_sampler(pipe.scheduler.config)}
    folder = tmp_path_factory.mktemp("fitted")
    saved = DDIMCustomPipeline(pipe.unet, pipe.scheduler.from_config(pipe.scheduler.config))
    saved.scheduler.change_config(calibrated_schedules=record | {"schedules": {"3": schedule}})
    saved.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def fitted_pipe(fitted):
    loaded = DDIMCustomPipeline.from_pretrained(fitted)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(images=3, steps=7, eta=0.35, tau="quadratic", seed=123),
        Settings(label="a & b = c?", guidance=2.5, model="org/model"),
    ],
)
def test_a_link_brings_all_settings_back(settings):
    """Settings that become an address and are read from it are the same."""
    assert Settings.from_query(dict(parse_qsl(settings.query()))) == settings


def test_an_address_without_settings_asks_for_nothing():
    """What Gradio and a Space add to addresses is no setting."""
    assert Settings.from_query({"__theme": "dark", "view": "api"}) is None


@pytest.mark.parametrize(
    "query, words",
    [
        ({"steps": "ten"}, ["steps", "'ten'"]),
        ({"steps": "2.5"}, ["steps", "whole"]),
        ({"steps": "0"}, ["steps", "0"]),
        ({"images": "nan"}, ["images"]),
        ({"eta": "much"}, ["eta", "'much'"]),
        ({"eta": "inf", "steps": "3"}, ["eta", "inf"]),
        ({"eta": "nan"}, ["eta", "nan"]),
        ({"seed": "-1"}, ["seed", "-1"]),
        ({"seed": str(2**60)}, ["seed"]),
        ({"tau": "cubic"}, ["'cubic'", "quadratic"]),
        ({"tau": "calibrated", "steps": "4"}, ["no calibrated", "4"]),
        ({"tau": "calibrated", "steps": "3", "eta": "0.5"}, ["no calibrated", "0.5"]),
        ({"steps": "1001"}, ["1001"]),
        ({"images": "65"}, ["65", "64"]),
        ({"images": "64", "steps": "51"}, ["51", "50"]),
        ({"label": "cat"}, ["class_labels", "no classes"]),
        ({"guidance": "nan"}, ["guidance", "nan"]),
        ({"guidance": "1e9"}, ["guidance"]),
    ],
)
def test_a_wrong_setting_gets_one_line(fitted_pipe, query, words):
    """A value of another kind, out of range, or beyond what the model or the page does, is said in one line."""
    with pytest.raises(ValueError) as caught:
        Settings.from_query(query).check(fitted_pipe, Limits())
    one_line(caught, *words)


def test_calibrated_is_offered_for_its_steps_alone(fitted_pipe, pipe):
    """A fitted schedule is offered, and taken by default, for its own steps at eta 0; the model's own kind is next."""
    assert taus_of(fitted_pipe, 3) == ["calibrated", "quadratic", "uniform"]
    assert taus_of(fitted_pipe, 4) == taus_of(fitted_pipe, 3, eta=0.1) == ["quadratic", "uniform"]
    assert calibrated_steps(fitted_pipe) == [3] and calibrated_steps(pipe) == []
    assert default_settings(pipe) == Settings(steps=10, tau="quadratic")


def test_a_schedule_of_other_steps_gives_way_to_the_pipelines_own(fitted_pipe):
    """Steps that are changed and sent at once, with the calibrated schedule of before, are sampled by the model's own
    tau; what there is, and what a link asks for, stays."""
    own = taus_of(fitted_pipe, 5)[0]
    assert own != "uniform"
    for asked, taken in (((3, "calibrated"), "calibrated"), ((5, "calibrated"), own), ((5, "uniform"), "uniform")):
        assert Settings(steps=asked[0], tau=asked[1]).offered(fitted_pipe).tau == taken


def test_schedules_with_guidance_are_not_offered_without(pipe):
    """A model with schedules for guidance beside plain ones opens; the page names those without guidance alone."""
    there = DDIMCustomPipeline(pipe.unet, pipe.scheduler.from_config(pipe.scheduler.config))
    plain = {"timesteps": [900, 400, 50], "weights": [[1, 0, 0]] * 3}
    record = {"weights_hash": pipe._weights_hash(), "sampler": describe_sampler(pipe.scheduler.config)}
    record["schedules"] = {
        "3": plain,
        "5 at guidance_scale 2.0": plain,
        "5 at guidance_scale 2.0 in 1.0 to 9.0": plain,
    }
    there.scheduler.change_config(calibrated_schedules=record)
    assert calibrated_steps(there) == [3]


@pytest.mark.parametrize(
    "tau, more",
    [
        *itertools.product(["uniform", "quadratic", "calibrated"], [{}, {"images": 5}]),
        *itertools.product(["uniform", "quadratic"], [{"eta": 0.7, "seed": 11}]),  # calibrated has no noise
    ],
    ids=str,
)
def test_three_lines_make_the_same_images(fitted, fitted_pipe, tau, more):
    """The lines that the page shows, run, make the images that it shows, to the pixel, with `max_batch_size` too."""
    limits, settings = Limits(at_once=2), Settings(**{"images": 2, "steps": 3, "tau": tau, **more})
    *_, last = sample(fitted_pipe, settings, limits)
    lines = settings.python(fitted_pipe, limits, str(fitted))
    assert lines.count("\n") == 3
    made = {}
    exec(lines, made)
    assert np.array_equal(pixels(made["images"]), pixels(files(last.pictures)))


def test_each_schedule_makes_other_images(fitted_pipe):
    """uniform, quadratic and calibrated are three schedules."""
    each = [Settings(images=1, steps=3, tau=tau) for tau in ("uniform", "quadratic", "calibrated")]
    shown = [pixels(files(list(sample(fitted_pipe, one, Limits()))[-1].pictures)) for one in each]
    assert not any(np.array_equal(shown[i], shown[j]) for i, j in [(0, 1), (0, 2), (1, 2)])


def test_limits_are_shown():
    """The line under the page has the numbers that requests are held to."""
    limits = Limits(images=7, passes=21, upload_megabytes=3)
    assert all(number in limits.in_words() for number in ("7", "21", "3"))
    limits.check(images=7, steps=3, passes=7)
    with pytest.raises(ValueError, match="3 steps are too many for this; allowed: up to 1 steps"):
        limits.check(images=7, steps=3, passes=14)
