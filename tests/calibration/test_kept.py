"""Schedules in a pipeline, its config, on disk and on the Hub."""

import copy
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from calibration_data import draw
from conftest import tiny_unet
from diffusers import DDIMPipeline
from hub_models import WRITER
from PIL import Image
from training_runs import ROOT, Run

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom, pipeline_ddim_custom
from ddim_hf.calibration import Schedule, keep_schedules, table
from ddim_hf.generation import generate

SETTINGS = dict(num_images=6, teacher_steps=12)


@pytest.fixture(scope="module")
def fitted():
    """A pipeline with schedules of 4 and 5 steps."""
    pipe = DDIMCustomPipeline(tiny_unet().eval(), DDIMSchedulerCustom(skip_type="quad"))
    pipe.set_progress_bar_config(disable=True)
    pipe.calibrate([4, 5], **SETTINGS)
    return pipe


def images(pipe, steps=4, **arguments):
    return pipe(3, num_inference_steps=steps, seeds=range(3), output_type="latent", **arguments)


def test_a_fitted_schedule_is_used_by_itself_and_nothing_else_is(fitted):
    """Where there is a schedule for S, a call takes it and its output says so; eta, timesteps, clipping of one's own
    or calibrated=False take plain steps, and so does a number of steps without a schedule."""
    plain = DDIMCustomPipeline(fitted.unet, DDIMSchedulerCustom(skip_type="quad"))
    plain.set_progress_bar_config(disable=True)
    got = images(fitted)
    record = fitted.scheduler.config.calibrated_schedules["schedules"]["4"]
    scheduler = copy.deepcopy(plain.scheduler)
    scheduler.set_timesteps(timesteps=record["timesteps"], weights=record["weights"])
    x = draw(range(3), fitted.state_shape)
    with torch.no_grad():
        for t in record["timesteps"]:
            x = scheduler.step(fitted.unet(x, t).sample, t, x).prev_sample
    assert got.calibrated and torch.equal(got.images, x)
    assert torch.allclose(images(fitted, max_batch_size=2).images, x, atol=1e-3)
    assert len(fitted(num_inference_steps=4, return_dict=False)) == 1
    for steps in (4.5, "4", float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"num_inference_steps is {steps!r}; allowed: whole numbers"):
            images(fitted, steps)

    taken = (
        [3],
        [4, dict(calibrated=False)],
        [4, dict(eta=0.5)],
        *([4, dict(clip_sample=clip)] for clip in (False, True)),
    )
    taken += [4, dict(timesteps=[700, 300, 100, 0])], [4, dict(use_clipped_model_output=True)]
    for steps, *arguments in taken:
        arguments = arguments[0] if arguments else {}
        got = images(fitted, steps, **arguments)
        assert not got.calibrated and torch.equal(got.images, images(plain, steps, **arguments).images)
    other = DDIMCustomPipeline(
        fitted.unet, DDIMSchedulerCustom.from_config(fitted.scheduler.config, skip_type="uniform")
    )
    other.set_progress_bar_config(disable=True)
    assert not images(other).calibrated
    for arguments in (dict(steps=3), dict(eta=1.0)):
        with pytest.raises(
            ValueError, match="calibrated is True with num_inference_steps .*; allowed: 4, 5, at eta 0"
        ):
            images(fitted, calibrated=True, **arguments)


def test_generated_images_say_which_schedule_made_them(fitted, tmp_path):
    """`generate` samples by the schedule that there is and names it in its manifest; plain steps need a new folder."""
    settings = dict(num_images=2, num_inference_steps=4, max_batch_size=2)
    folder = generate(fitted, tmp_path, **settings)
    record = fitted.scheduler.config.calibrated_schedules["schedules"]["4"]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["calibrated"] == {key: record[key] for key in ("timesteps", "weights")}
    made = fitted(2, num_inference_steps=4, seeds=range(2)).images[1]
    assert np.abs(np.asarray(Image.open(folder / "000001.png")).astype(int) - np.asarray(made)).max() <= 1
    with pytest.raises(ValueError, match="made with other settings: calibrated"):
        generate(fitted, tmp_path, calibrated=False, **settings)


def test_encoding_keeps_plain_steps(fitted):
    """invert, reconstruct and interpolation between images give what they give without a schedule; interpolation
    between seeds takes it."""
    plain = DDIMCustomPipeline(fitted.unet, DDIMSchedulerCustom(skip_type="quad"))
    plain.set_progress_bar_config(disable=True)
    x = draw(range(2), fitted.state_shape).clamp(-1, 1) / 2 + 0.5
    first, second = (x[i].permute(1, 2, 0).numpy() for i in range(2))
    for ask in (
        lambda pipe: pipe.invert(x, 4).latents,
        lambda pipe: pipe.reconstruct(x, 4, output_type="latent").images,
        lambda pipe: (
            pipe.interpolate(first, second, num_images=3, num_inference_steps=4, exact=False, output_type="pt").images
        ),
    ):
        assert torch.equal(ask(fitted), ask(plain))
    assert fitted.interpolate(1, 2, num_images=3, num_inference_steps=4).calibrated


def test_schedules_go_to_disk_and_back_and_stock_samples_plainly(fitted, tmp_path):
    """save_pretrained and save_scheduler keep the schedules, from_pretrained uses them; stock loads the folder and
    gives the images of plain steps."""
    fitted.save_pretrained(tmp_path)
    text = (tmp_path / "scheduler" / "scheduler_config.json").read_text()
    fitted.save_scheduler(tmp_path)
    assert (tmp_path / "scheduler" / "scheduler_config.json").read_text() == text
    loaded = DDIMCustomPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.scheduler.config.calibrated_schedules == fitted.scheduler.config.calibrated_schedules
    got = images(loaded)
    assert got.calibrated and torch.equal(got.images, images(fitted).images)

    stock = DDIMPipeline.from_pretrained(tmp_path)
    stock.set_progress_bar_config(disable=True)
    theirs = stock(2, num_inference_steps=4, generator=torch.manual_seed(0), output_type="np").images
    plain = dict(calibrated=False, generator=torch.manual_seed(0), output_type="np")
    uniform = DDIMCustomPipeline(stock.unet, DDIMSchedulerCustom())
    assert np.abs(theirs - uniform(2, num_inference_steps=4, **plain).images).max() < 1e-4
    again = DDIMCustomPipeline(stock.unet, stock.scheduler).scheduler.config
    assert again.calibrated_schedules == fitted.scheduler.config.calibrated_schedules


def test_schedules_that_others_have_saved_meanwhile_stay(fitted, tmp_path):
    """Of calibrations of one folder that were loaded before any was saved, each keeps what the others found there, one
    that has found nothing too; schedules of other weights, as those of another dtype are, go with a warning."""
    file = tmp_path / "scheduler" / "scheduler_config.json"
    DDIMCustomPipeline(fitted.unet, DDIMSchedulerCustom(skip_type="quad")).save_pretrained(tmp_path)

    def on_disk() -> dict:
        return json.loads(file.read_text())["calibrated_schedules"]

    first, second, third = (DDIMCustomPipeline.from_pretrained(tmp_path) for _ in range(3))
    for pipe, steps in ((first, 3), (second, [3, 4])):
        pipe.set_progress_bar_config(disable=True)
        pipe.calibrate(steps, num_images=4, teacher_steps=4 + np.size(steps))
    fitted.save_scheduler(tmp_path)
    first.save_scheduler(tmp_path)
    assert on_disk()["schedules"].keys() == {"3", "4", "5"}
    second.save_scheduler(tmp_path)
    third.save_scheduler(tmp_path)
    found = second.scheduler.config.calibrated_schedules["schedules"]
    kept = fitted.scheduler.config.calibrated_schedules
    assert on_disk() == kept | {"schedules": kept["schedules"] | found} and found.keys() == {"3", "4"}
    half = DDIMCustomPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    half.calibrate(4, **SETTINGS)
    with pytest.warns(UserWarning, match=r"schedules in .* for 3, 5 were fitted to other weights .*, and go"):
        half.save_scheduler(tmp_path)
    assert on_disk() == half.scheduler.config.calibrated_schedules


def test_schedules_go_to_the_hub_and_back(fitted, hub):
    """push_to_hub sends the schedules with the model, and the model that comes back from there uses them."""
    fitted.push_to_hub("org/fitted", token=WRITER)
    loaded = DDIMCustomPipeline.from_pretrained("org/fitted")
    loaded.set_progress_bar_config(disable=True)
    assert loaded.scheduler.config.calibrated_schedules == fitted.scheduler.config.calibrated_schedules
    got = images(loaded)
    assert got.calibrated and torch.equal(got.images, images(fitted).images)


def test_schedules_of_other_weights_warn_and_are_not_used(fitted, monkeypatch):
    """Once the weights have changed, in place or as the EMA changes them, a call warns and takes plain steps; as long
    as they have not, their hash is computed once."""
    computed = []
    hashing = pipeline_ddim_custom.weights_hash
    monkeypatch.setattr(pipeline_ddim_custom, "weights_hash", lambda unet: computed.append(unet) or hashing(unet))
    pipe = DDIMCustomPipeline(copy.deepcopy(fitted.unet), fitted.scheduler)
    pipe.set_progress_bar_config(disable=True)
    assert images(pipe).calibrated and images(pipe).calibrated and images(pipe, 5).calibrated and len(computed) == 1
    assert not images(pipe, 3).calibrated and not images(pipe, calibrated=False).calibrated and len(computed) == 1
    weights = list(pipe.unet.parameters())
    for change in (lambda: weights[3].data.mul_(1.01), lambda: weights[3].data.copy_(2 * weights[3])):
        with torch.no_grad():
            change()
        with pytest.warns(UserWarning, match="fitted to other weights .* call calibrate"):
            got = images(pipe)
        assert not got.calibrated
        assert torch.equal(got.images, images(pipe, calibrated=False).images)
    with pytest.raises(ValueError, match="no schedule of these weights"), pytest.warns(UserWarning):
        images(pipe, calibrated=True)


def test_calibrating_again_adds_to_what_holds_and_replaces_what_does_not(fitted):
    """A second call keeps the schedules of other S; after a change of the sampler or the weights it does not."""
    pipe = DDIMCustomPipeline(copy.deepcopy(fitted.unet), copy.deepcopy(fitted.scheduler))
    pipe.set_progress_bar_config(disable=True)
    before = pipe.scheduler.config.calibrated_schedules
    pipe.calibrate(6, **SETTINGS)
    after = pipe.scheduler.config.calibrated_schedules
    assert after["schedules"].keys() == {"4", "5", "6"} and after["schedules"]["4"] == before["schedules"]["4"]
    assert pipe.calibrate([4, 5], **SETTINGS).keys() == {4, 5}
    assert pipe.scheduler.config.calibrated_schedules == after
    pipe.scheduler = DDIMSchedulerCustom.from_config(pipe.scheduler.config, clip_sample=False)
    assert not images(pipe).calibrated
    pipe.calibrate(4, **SETTINGS)
    assert pipe.scheduler.config.calibrated_schedules["schedules"].keys() == {"4"} and images(pipe).calibrated


def test_a_schedule_that_plain_steps_are_as_good_as_is_not_kept(fitted):
    """Where plain steps lose nothing, as with a network that sees no noise, nothing is kept and the table says so."""
    scheduler = DDIMSchedulerCustom(clip_sample=False, timestep_spacing="linspace")
    pipe = DDIMCustomPipeline(copy.deepcopy(fitted.unet), scheduler)
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        for parameter in pipe.unet.conv_out.parameters():
            parameter.zero_()
    certificates = pipe.calibrate([3, 4], **SETTINGS)
    assert pipe.scheduler.config.calibrated_schedules is None and not images(pipe).calibrated
    assert table(certificates).endswith("not kept, as plain steps are as good: S = 3, 4")


BAD_CALIBRATIONS = [
    (dict(num_inference_steps=0), "num_inference_steps is 0; allowed"),
    (dict(num_inference_steps=[5, 12]), r"num_inference_steps is 12; allowed: below teacher_steps \(12\)"),
    (dict(num_inference_steps=()), "num_inference_steps has no entries; allowed: one or more"),
    (dict(num_images=1), "num_images is 1; allowed"),
    (dict(teacher_steps=1001), "teacher_steps is 1001; allowed: 2 to 1000"),
    (dict(max_batch_size=0), "max_batch_size is 0; allowed"),
]


@pytest.mark.parametrize("arguments, message", BAD_CALIBRATIONS, ids=str)
def test_calibrate_refuses_what_it_cannot_do(fitted, arguments, message):
    """calibrate raises ValueError with what was given and what is allowed, before any work."""
    with pytest.raises(ValueError, match=message):
        fitted.calibrate(**{"num_inference_steps": 5, **SETTINGS, **arguments})


def test_a_network_that_makes_nan_is_not_fitted_to(fitted):
    """Images of many steps that are NaN end the calibration with a line that says so."""
    pipe = DDIMCustomPipeline(copy.deepcopy(fitted.unet), DDIMSchedulerCustom())
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(
        ValueError, match=r"^the network's images in 12 steps, .* are not finite .*\[0, 1, 2\], counted"
    ):
        pipe.calibrate(4, **SETTINGS)


def with_classes() -> DDIMCustomPipeline:
    unet = tiny_unet(num_class_embeds=5).eval()
    torch.nn.init.normal_(unet.class_embedding.weight, std=5.0)
    pipe = DDIMCustomPipeline(unet, DDIMSchedulerCustom(), dict(enumerate(["cat", "dog", "bird", "fish"])))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_new_schedule_replaces_that_of_its_own_classes_alone(tmp_path):
    """Schedules of the same steps for other classes stay, also the one whose new fit is no better than plain steps;
    a call takes the one for the fewest classes. They come back from disk."""
    pipe = with_classes()
    for labels in ("all", None, [0, 1, 3], "bird", "bird"):
        pipe.calibrate(np.int64(3), class_labels=labels, num_images=8, teacher_steps=12)
    schedules = pipe.scheduler.config.calibrated_schedules["schedules"]
    assert list(schedules) == [f"3 of classes {name}" for name in ("0-3", "4", "0-1+3", "2")]
    pipe.save_pretrained(tmp_path)
    pipe = DDIMCustomPipeline.from_pretrained(tmp_path)

    def taken(labels, steps=3):
        found = pipe.calibrated_schedule(steps, class_labels=labels)
        return next(name for name, schedule in schedules.items() if found["weights"] == schedule["weights"])

    assert [taken(labels)[13:] for labels in (None, "dog", "bird", ["dog", "bird"])] == ["4", "0-1+3", "2", "0-3"]
    assert taken("dog", 3.0) == taken("dog", np.int64(3)) == taken("dog")

    worse = copy.deepcopy(pipe.scheduler)
    certificate = {name: dict(rms=rms, bands=[1, 1, 1]) for name, rms in [("calibrated 3", 2), ("plain 3", 1)]}
    certificate["teacher 12"] = dict(rms=0, bands=[1, 1, 1])
    fits = {3: (Schedule([2, 1, 0], [[1, 0, 0]] * 3), certificate)}
    keep_schedules(worse, fits, pipe._condition(1, "bird"), weights_hash=pipe._weights_hash())
    assert worse.config.calibrated_schedules["schedules"] == schedules


def test_a_folders_images_have_one_schedule(tmp_path):
    """Image k is the same in folders of any size: a block of one class alone takes the schedule of all that are asked
    for, which the manifest names, and so does a call that is given it."""
    pipe = with_classes()
    for labels in ("all", "cat"):
        pipe.calibrate(3, class_labels=labels, num_images=8, teacher_steps=12)
    settings = dict(num_inference_steps=3, class_labels="all", max_batch_size=4)
    five, eight = (generate(pipe, tmp_path / str(count), num_images=count, **settings) for count in (5, 8))
    for k in range(5):
        assert (five / f"{k:06d}.png").read_bytes() == (eight / f"{k:06d}.png").read_bytes()
    run = dict(num_inference_steps=3, output_type="latent")
    shared = pipe.calibrated_schedule(3, class_labels=list(pipe.id2label))
    alone = pipe(seeds=[4], class_labels=["cat"], calibrated=shared, **run)
    beside = pipe(seeds=[4, 5], class_labels=["cat", "dog"], **run)
    assert pipe.interpolate(4, 5, num_images=3, class_labels=["cat", "dog"], **run).calibrated
    assert alone.calibrated and torch.allclose(alone.images[0], beside.images[0], atol=1e-3)
    assert not torch.allclose(pipe(seeds=[4], class_labels=["cat"], **run).images[0], beside.images[0], atol=1e-2)
    for other in (dict(num_inference_steps=4), dict(eta=0.5), dict(timesteps=[900, 500, 0]), dict(clip_sample=True)):
        with pytest.raises(ValueError, match="calibrated is a schedule of 3 steps"):
            pipe(class_labels=["cat"], calibrated=shared, **run | other)


def test_schedules_of_before_are_read():
    """A key without classes, as configs had them, is that of the classes in its entry."""
    pipe = with_classes()
    pipe.calibrate(3, class_labels=["cat", "dog"], **SETTINGS)
    record = copy.deepcopy(pipe.scheduler.config.calibrated_schedules)
    record["schedules"] = {"3": record["schedules"].pop("3 of classes 0-1")}
    pipe.scheduler.change_config(calibrated_schedules=record)
    assert pipe.calibrated_schedule(3, class_labels="dog") and not pipe.calibrated_schedule(3, class_labels="bird")


def test_each_class_is_in_both_halves():
    """Fewer noises than twice the classes are refused: some classes would be measured alone, or fitted to alone."""
    with pytest.raises(ValueError, match="num_images is 7 with 4 classes; allowed: from 8"):
        with_classes().calibrate(3, num_images=7, teacher_steps=12, class_labels="all")


def test_guidance_is_a_number_of_any_kind(fitted):
    """A schedule is found by a guidance of float32 as by Python's."""
    pipe = with_classes()
    pipe.calibrate(3, class_labels="cat", guidance_scale=1.1, **SETTINGS)
    assert pipe.calibrated_schedule(3, class_labels="cat", guidance_scale=np.float32(1.1))


def test_betas_changed_in_place_turn_schedules_off(fitted, tmp_path):
    """Values of alphas_cumprod that are changed in place count for schedules, and are saved."""
    pipe = DDIMCustomPipeline(fitted.unet, copy.deepcopy(fitted.scheduler))
    pipe.set_progress_bar_config(disable=True)
    assert images(pipe).calibrated
    pipe.scheduler.alphas_cumprod[:] = pipe.scheduler.alphas_cumprod**2
    pipe.save_pretrained(tmp_path)
    loaded = DDIMCustomPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert not pipe.calibrated_schedule(4)
    assert torch.allclose(loaded.scheduler.alphas_cumprod, pipe.scheduler.alphas_cumprod, rtol=1e-4, atol=1e-7)
    assert torch.allclose(images(loaded).images, images(pipe).images, atol=1e-4)


# The command


def test_what_save_scheduler_cannot_write_is_said_before_the_work(fitted, tmp_path, monkeypatch, capsys):
    """A checkpoint, which would no longer be whole, and a folder in another layout are refused by calibrate.py before
    it loads them, and by save_scheduler; the folder stays as it was. So is an --output_dir that cannot be made, or
    that holds a model, whose own schedules would go."""
    fitted.save_pretrained(tmp_path)
    file, script = tmp_path / "scheduler" / "scheduler_config.json", str(ROOT / "examples" / "calibrate.py")
    monkeypatch.setattr(sys, "argv", [script, str(tmp_path), "--num_inference_steps", "3"])

    def assert_refused_at_once(message: str):
        before = file.read_bytes()
        with pytest.raises(SystemExit) as end:
            runpy.run_path(script, run_name="__main__")
        assert end.value.code == 2 and re.search(message, capsys.readouterr().err) and file.read_bytes() == before

    def assert_refused(message: str):
        with pytest.raises(ValueError, match=message):
            fitted.save_scheduler(tmp_path)
        assert_refused_at_once(message)

    monkeypatch.setattr(sys, "argv", [*sys.argv, "--output_dir", str(file / "below")])
    assert_refused_at_once("scheduler_config.json/below' cannot be written: .*Not a directory")
    shutil.copytree(tmp_path, tmp_path / "other")
    monkeypatch.setattr(sys, "argv", [*sys.argv[:-1], str(tmp_path / "other")])
    assert_refused_at_once("other holds a model already; allowed: a new folder")
    monkeypatch.setattr(sys, "argv", sys.argv[:-2])
    (tmp_path / "state.json").write_text("{}")
    assert_refused("is a checkpoint, .*; allowed: another folder")
    (tmp_path / "state.json").unlink()
    (tmp_path / "model_index.json").unlink()
    assert_refused("has no model_index.json .*; allowed: what save_pretrained has written")


@pytest.mark.parametrize("place", ["model", "other"])
def test_a_killed_command_keeps_what_it_has_fitted(fitted, tmp_path, place):
    """kill -9 amid the second schedule leaves the first with the model, there or in --output_dir, and it is used."""
    DDIMCustomPipeline(fitted.unet, DDIMSchedulerCustom()).save_pretrained(tmp_path / "model")
    words = [str(tmp_path / "model"), "--num_inference_steps", "3,90", "--num_images", "8"]
    words += ["--output_dir", str(tmp_path / "other")] if place == "other" else []
    run = Run(tmp_path / "said.txt", words, script=ROOT / "examples" / "calibrate.py")
    file = tmp_path / place / "scheduler" / "scheduler_config.json"
    assert run.kill_when(lambda: file.is_file() and '"timesteps"' in file.read_text()), run.text()
    assert run.wait() == -signal.SIGKILL
    pipe = DDIMCustomPipeline.from_pretrained(tmp_path / place)
    assert pipe.scheduler.config.calibrated_schedules["schedules"].keys() == {"3"}
    assert images(pipe, 3).calibrated


def test_the_command_gives_the_same_on_two_processes(fitted, tmp_path, monkeypatch, capsys):
    """calibrate.py keeps its schedules in the model's folder, whose weights it does not touch, and says what they are
    worth; two processes find what one does, to the last digit."""
    plain, script = DDIMCustomPipeline(fitted.unet, DDIMSchedulerCustom()), str(ROOT / "examples" / "calibrate.py")
    words = ["--num_inference_steps", "3,5", "--num_images", "8", "--teacher_steps", "10", "--max_batch_size", "2"]
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        plain.save_pretrained(folder)
    written = [(folder / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns for folder in folders]
    torch.set_num_threads(1)
    monkeypatch.setattr(sys, "argv", [script, str(folders[0]), *words])
    runpy.run_path(script, run_name="__main__")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    pair = subprocess.run([*launch, script, str(folders[1]), *words], env=environment, capture_output=True, text=True)
    assert pair.returncode == 0, pair.stderr

    assert written == [(f / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns for f in folders]
    one, two = ((folder / "scheduler" / "scheduler_config.json").read_text() for folder in folders)
    assert one == two and len(one) < 4000  # bytes
    assert json.loads(one)["calibrated_schedules"]["schedules"].keys() == {"3", "5"}
    said = capsys.readouterr().out
    assert said.replace(str(folders[0]), str(folders[1])) == pair.stdout
    rows = [line.split() for line in said.splitlines()]
    assert [row[0] for row in rows[1:4]] == ["S", "3", "5"] and float(rows[3][2]) < float(rows[3][1])


def test_a_schedule_is_for_its_guidance_and_classes():
    """A schedule is used with the guidance that it was fitted with and for its classes alone; others stay beside."""
    unet = tiny_unet(num_class_embeds=4).eval()
    torch.nn.init.normal_(unet.class_embedding.weight, std=5.0)
    pipe = DDIMCustomPipeline(unet, DDIMSchedulerCustom(), {0: "cat", 1: "dog", 2: "bird"})
    pipe.set_progress_bar_config(disable=True)
    pipe.calibrate(3, class_labels=["cat", "dog"], guidance_scale=1.5, **SETTINGS)
    pipe.calibrate(3, class_labels="cat", **SETTINGS)
    guided, plain = pipe.scheduler.config.calibrated_schedules["schedules"].values()
    assert guided["classes"] == [0, 1] and plain["classes"] == [0]
    assert guided["weights"] != plain["weights"]

    def taken(**asked):
        return pipe.calibrated_schedule(3, **asked)

    assert taken(class_labels=["dog", 0], guidance_scale=1.5)["weights"] == guided["weights"]
    assert taken(class_labels="cat")["weights"] == plain["weights"]
    others = [dict(), dict(class_labels="dog"), dict(class_labels=0, guidance_scale=2)]
    others += [dict(class_labels=label, guidance_scale=1.5) for label in ("bird", ["cat", None])]
    others += [dict(class_labels=0, guidance_scale=1.5, guide=pipe.unet)]
    others += [dict(class_labels=0, guidance_scale=1.5, guidance_interval=(0, 500))]
    assert [taken(**asked) for asked in others] == [None] * len(others)
    run = dict(num_inference_steps=3, seeds=[1, 2], guidance_scale=1.5)
    assert pipe(class_labels=["cat", "dog"], **run).calibrated and not pipe(class_labels=[0, 2], **run).calibrated
    with pytest.raises(ValueError, match="allowed: 3 at guidance_scale 1.5 of classes 0-1, 3 of classes 0, at"):
        pipe(2, class_labels="bird", calibrated=True, **run)
