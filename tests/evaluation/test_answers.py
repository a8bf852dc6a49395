"""Questions and their answers: every figure with its protocol, measured once, on any number of processes."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_unet
from diffusers import UNet2DModel
from PIL import Image
from training_runs import until

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom
from ddim_hf.evaluation import evaluate
from ddim_hf.fast_sampling import FastNetwork
from ddim_hf.generation import generate, load_pipeline
from ddim_hf.hub import is_model

ROOT = Path(__file__).resolve().parents[2]
TABLE = {"num_inference_steps": [2, 4], "eta": [0.0, 1.0], "variance": ["sigma", "sigma_hat"], "num_images": 32}


def test_fast_sampling_is_recorded_of_all_but_stock(files, tmp_path, monkeypatch, capsys):
    """With --fast, stock still runs the plain network: its row says so and has the figure that it has without. Other
    schedulers run the fast one, to figures that are theirs but for rounding. What is said of the cells to come has no
    compiling in it, which the first has done for them."""
    settings = {"num_inference_steps": [2], "num_images": 4, "feature_extractor": files / "features.pt"}
    settings |= {"cache_dir": tmp_path, "also": ["stock", "unipc"], "max_batch_size": 4}
    passes, own, announced = [], FastNetwork.__call__, FastNetwork._compiling
    # Where the process or torch's cache has the code, compiling takes no time: it takes four seconds more here.
    monkeypatch.setattr(FastNetwork, "_compiling", lambda *inputs: time.sleep(4) or announced(*inputs))
    monkeypatch.setattr(FastNetwork, "__call__", lambda *inputs: passes.append(len(inputs[1])) or own(*inputs))
    plain, rows = (
        evaluate(str(files / "tiny"), "digits", tmp_path / f"{fast}.json", **settings, fast=fast)
        for fast in (False, True)
    )
    networks = {row["implementation"]: row["network"] for row in rows}
    assert networks["stock"] == "float32" and networks["ddim_hf"].startswith("fast sampling")
    assert passes == [4] * (2 + 2)  # two steps of ours and two of unipc
    assert networks["unipc"] == networks["ddim_hf"] and rows[2]["value"] == pytest.approx(plain[2]["value"], rel=0.02)
    assert rows[1]["value"] == plain[1]["value"] and rows[1]["implementation"] == "stock"
    said = capsys.readouterr().out.split("compiled in ")[1]
    compiled, to_come = re.match(r"(\d+) s\n.*^about (\d+) seconds for the 2 cells", said, re.S | re.M).groups()
    assert int(to_come) < 4 <= int(compiled)


def test_schedules_and_other_schedulers_are_measured_beside_plain_steps(files, tmp_path, capsys):
    """--calibrated adds the cells that the model has a schedule for, --also diffusers' schedulers; plain steps keep
    the figure that they had before there was a schedule, and a schedule fitted anew is measured anew."""
    pipe = DDIMCustomPipeline.from_pretrained(files / "tiny")
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": [3, 5], "num_images": 6, "feature_extractor": files / "features.pt"}
    settings |= {"cache_dir": tmp_path, "max_batch_size": 6}
    arguments = (str(tmp_path / "model"), "digits", tmp_path / "results.json")
    pipe.save_pretrained(tmp_path / "model")
    (before, _) = evaluate(*arguments, **settings)
    with pytest.raises(
        ValueError, match="calibrated with num_inference_steps .*; allowed: steps and guidance that the model has"
    ):
        evaluate(*arguments, **settings, calibrated=True)
    pipe.calibrate(3, num_images=4, teacher_steps=8)
    pipe.save_scheduler(tmp_path / "model")
    asked = {**settings, "calibrated": True, "also": ["unipc", "dpmpp", "deis"]}
    rows = evaluate(*arguments, **asked)
    cells = [(row["implementation"], row["num_inference_steps"]) for row in rows]
    others = [(name, steps) for steps in (3, 5) for name in ("unipc", "dpmpp", "deis")]
    assert sorted(cells) == sorted([("ddim_hf", 3), ("ddim_hf", 5), ("ddim_hf calibrated", 3), *others])
    assert rows[0] == before and len({row["value"] for row in rows}) == len(rows)
    assert evaluate(*arguments, **asked) == rows
    pipe.calibrate(3, num_images=6, teacher_steps=8)
    pipe.save_scheduler(tmp_path / "model")
    assert len(evaluate(*arguments, **asked)) == len(rows) + 1
    with pytest.raises(ValueError, match="also is euler; allowed: stock, unipc, dpmpp, deis"):
        evaluate(*arguments, **settings, also=["euler"])


def test_two_processes_measure_what_one_does(files, tmp_path):
    """Under a launcher of two processes every figure is that of one process, to 1e-6, each row there once."""
    settings = {"num_inference_steps": [2], "num_images": 20, "kid": True, "loss": True, "reconstruction": [2]}
    files_of = {"feature_extractor": files / "features.pt", "cache_dir": tmp_path}
    alone = evaluate(str(files / "tiny"), "digits", tmp_path / "1.json", **settings, **files_of, data_images=50)
    words = ["--num_inference_steps", 2, "--num_images", 20, "--kid", "--denoising_loss", "--reconstruction", 2]
    words += ["--feature_extractor", files / "features.pt", "--cache_dir", tmp_path, "--data_images", 50]
    words = [files / "tiny", "--reference", "digits", "--output", tmp_path / "2.json", *words]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", ROOT / "examples/evaluate.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, launch + words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    together = json.loads((tmp_path / "2.json").read_text())["results"]
    assert [row["metric"] for row in together] == [row["metric"] for row in alone] and len(alone) == 6
    for one, two in zip(alone, together, strict=True):
        assert two["value"] == pytest.approx(one["value"], rel=1e-6), one["metric"]


def test_a_table_records_its_protocol_and_resumes(files, tmp_path, capsys):
    """Each figure carries its protocol; stock agrees with ours on the same seeds; figures there are not made again."""
    arguments = (str(files / "tiny"), "digits", tmp_path / "results.json")
    settings = {**TABLE, "feature_extractor": files / "features.pt", "cache_dir": tmp_path, "also": ["stock"]}
    rows = evaluate(*arguments, **settings)
    value = {(r["implementation"], r["variance"], r["eta"], r["num_inference_steps"]): r["value"] for r in rows}
    assert len(rows) == len(value) == 10  # 2 eta x 2 S of each, and sigma_hat at eta 1 of ours
    for (name, *cell), figure in value.items():
        assert name == "ddim_hf" or figure == pytest.approx(value[("ddim_hf", *cell)], rel=1e-3)
    expected = {"metric": "frechet_distance", "num_images": 32, "num_reference": 1797, "seed": 0, "tau": "uniform"}
    assert expected.items() <= rows[0].items() and rows[0]["reference"] == "digits"
    assert all(len(rows[0][key]) == 64 for key in ("feature_extractor_hash", "weights_hash"))
    said = capsys.readouterr().out
    assert "features 0" in said and len(re.findall(r"^about .* for the 9 cells to come$", said, re.M)) == 1

    content = json.loads((tmp_path / "results.json").read_text())
    assert content["results"] == rows and all("torch" in row["versions"] and row["machine"] for row in rows)
    content["results"][0]["value"] = 123.0
    del content["results"][3]
    (tmp_path / "results.json").write_text(json.dumps(content))
    again = evaluate(*arguments, **settings)
    assert again[0]["value"] == 123.0 and again[-1]["value"] == rows[3]["value"]
    table = (tmp_path / "results.md").read_text()
    assert "| eta | S = 2 | S = 4 |" in table and "| sigma_hat |" in table and "| 0.0 | 123.00 |" in table
    assert (tmp_path / "fid_vs_steps.png").read_bytes().startswith(b"\x89PNG")


def test_losses_and_kernel_distance_in_the_table(files, tmp_path):
    """Kernel distance, denoising loss and reconstruction error stand beside it, each split and tau by itself."""
    settings = {"feature_extractor": files / "features.pt", "cache_dir": tmp_path, "kid": True, "num_images": 20}
    settings |= {"num_inference_steps": [2], "loss": True, "reconstruction": [2, 3], "data_images": 9}
    settings |= {"tau": ["uniform", "quad"]}
    rows = evaluate(str(files / "tiny"), "digits", tmp_path / "r.json", **settings)
    found = [(row["metric"], row.get("split"), row.get("tau"), row.get("num_inference_steps")) for row in rows]
    distances = [(m, None, t, 2) for t in ("uniform", "quad") for m in ("frechet_distance", "kernel_distance")]
    errors = [
        (m, split, *rest)
        for split in ("train", "test")
        for m, *rest in [("denoising_loss", None, None)]
        + [("reconstruction_mse", t, s) for t in ("uniform", "quad") for s in (2, 3)]
    ]
    assert found == distances + errors
    assert evaluate(str(files / "tiny"), "digits", tmp_path / "r.json", **settings) == rows


def test_no_more_images_than_asked_for_pass_at_once(files, tmp_path, monkeypatch):
    """max_batch_size holds for losses and reconstructions too, and changes them by no more than rounding."""
    asked = {"distance": False, "loss": True, "reconstruction": [2], "data_splits": ["test"], "data_images": 70}
    passed, forward = [], UNet2DModel.forward
    monkeypatch.setattr(
        UNet2DModel,
        "forward",
        lambda self, x, *rest, **words: passed.append(len(x)) or forward(self, x, *rest, **words),
    )
    values = []
    for size in (3, 64, None):  # None: 16 on a CPU
        passed.clear()
        rows = evaluate(str(files / "tiny"), "digits", tmp_path / f"{size}.json", **asked, max_batch_size=size)
        assert max(passed) == (size or 16)
        values.append([row["value"] for row in rows])
    assert values == [pytest.approx(values[0], rel=1e-5)] * 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--feature_extractor", "/no/such.pt"], "feature_extractor '/no/such.pt': no such file"),
        (["--feature_extractor", __file__], "is not a TorchScript module, or is torn"),
        (["--inception_weights", __file__], "is not Inception as a TorchScript module"),
        (["--feature_extractor", "FEATURES", "--eta", "0,3"], "eta is 3.0; allowed: 0"),
        (["--feature_extractor", "FEATURES", "--num_inference_steps", "1001"], "num_inference_steps is 1001"),
        (["--num_inference_steps", "0"], "num_inference_steps is 0; allowed"),  # before Inception is looked for
        (["--no_distance", "--denoising_loss", "--data_images", "-5"], "data_images is -5; allowed"),
        (["--no_distance", "--reconstruction", "2000"], "num_inference_steps is 2000; allowed"),
        (["--no_distance", "--denoising_loss", "--data_splits", "dev"], "has no split 'dev'"),
        (["--feature_extractor", "FEATURES", "--also", "stock", "--tau", "quad"], "also stock with tau ['quad']"),
        (["--output", "table.md"], "output is 'table.md'; allowed: a file such as results.json"),
        (["--tau", "cubic"], "'cubic'; allowed: uniform, quad"),
    ],
)
def test_bad_input_is_one_line(files, tmp_path, monkeypatch, capsys, arguments, message):
    """Bad input ends the script with exit code 2 and one line that names it."""
    import runpy

    arguments = [str(files / "features.pt") if word == "FEATURES" else word for word in arguments]
    known = ["evaluate.py", str(files / "tiny"), "--reference", "digits", "--output", str(tmp_path / "r.json")]
    monkeypatch.setattr(sys, "argv", known + arguments)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "examples/evaluate.py"), run_name="__main__")
    assert stop.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


# Nothing old comes back as new


def grey_folder(folder: Path, seed: int, size: int = 8) -> Path:
    """Twelve grey images of noise, brighter with the seed."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for i in range(12):
        Image.fromarray(random.integers(60 * seed, 60 * seed + 60, (size, size), dtype=np.uint8)).save(
            folder / f"{i}.png"
        )
    return folder


def model(folder: Path, size: int | tuple[int, int] = 8, **scheduler) -> str:
    """A tiny model; the same weights each time."""
    unet = tiny_unet()
    unet.register_to_config(sample_size=size)
    DDIMCustomPipeline(unet, DDIMSchedulerCustom(**scheduler)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def ask(files, tmp_path):
    """Evaluate into one results file, and return the rows that the call has added."""

    def add(model, reference, **settings):
        known = json.loads(file.read_text())["results"] if file.exists() else []
        features = {"feature_extractor": files / "features.pt"} if settings.get("distance", True) else {}
        cells = {"num_inference_steps": [2], "num_images": 8} if features and is_model(model) else {}
        rows = evaluate(str(model), str(reference), file, **cells | settings | features, cache_dir=tmp_path / "cache")
        assert rows[: len(known)] == known
        return rows[len(known) :]

    file = tmp_path / "results.json"
    return add


def test_references_of_one_name_are_two(ask, files, tmp_path):
    """A/train_images and B/train_images are two references, and so is a folder whose images are replaced; a second
    call measures neither again."""
    a, b = (grey_folder(tmp_path / name / "train_images", seed) for seed, name in enumerate("AB"))
    values = [
        row["value"] for folder in (a, b) for row in ask(files / "tiny", folder, loss=True, data_splits=["train"])
    ]
    assert len(values) == 4 and values[0] != pytest.approx(values[2], rel=1e-3)
    shutil.rmtree(a)
    grey_folder(a, 3)
    (replaced,) = ask(files / "tiny", a)
    assert replaced["value"] != pytest.approx(values[0], rel=1e-3)
    assert ask(files / "tiny", a) == ask(files / "tiny", b) == []


def test_models_that_differ_in_the_scheduler_are_two(ask, tmp_path):
    """The same weights with another prediction_type, x0_formula or noise schedule give figures of their own."""
    settings = [{}, {"prediction_type": "v_prediction"}, {"x0_formula": "as_printed"}, {"beta_end": 0.03}]
    values = []
    for number, scheduler in enumerate(settings):
        (row,) = ask(model(tmp_path / str(number) / "model", **scheduler), "digits")
        assert row.get("scheduler") == (scheduler or None)
        values.append(row["value"])
    assert len(set(values)) == 4
    (loss,) = ask(tmp_path / "0/model", "digits", distance=False, loss=True, data_splits=["test"], data_images=20)
    (of_v,) = ask(tmp_path / "1/model", "digits", distance=False, loss=True, data_splits=["test"], data_images=20)
    assert loss["value"] != pytest.approx(of_v["value"], rel=1e-3)
    table = (tmp_path / "results.md").read_text()
    assert "scheduler prediction_type v_prediction" in table and "scheduler x0_formula as_printed" in table


def test_real_images_of_two_resolutions_are_two(ask, tmp_path):
    """The --floor row of a model of 8 pixels is not that of a model of 16, nor that of other images."""
    words = {"floor": "test", "num_images": 10}
    floors = [
        next(row for row in ask(model(tmp_path / str(size), size), "digits", **words) if row.get("images_hash"))
        for size in (8, 16)
    ]
    assert [row["resolution"] for row in floors] == [8, 16]
    assert floors[0]["value"] != pytest.approx(floors[1]["value"], rel=0.01)


def test_real_images_have_every_distance_that_samples_have(ask, files):
    """With kid, --floor measures the kernel distance of the real images too, the same images as for the other."""
    rows = ask(files / "tiny", "digits", floor="test", kid=True, num_images=10)
    floor = [row for row in rows if row["implementation"] == "real images (test)"]
    assert [row["metric"] for row in floor] == ["frechet_distance", "kernel_distance"]
    assert floor[0] | {"metric": 0, "value": 0} == floor[1] | {"metric": 0, "value": 0}


def test_the_floor_of_a_folder_of_classes_has_all_of_them(ask, files, tmp_path):
    """Where images are in the order of their classes, half of them, taken evenly, have nearly the distance of all; a
    floor of before, which was of the first images, is not taken for it, one of all images is."""
    for name in ("train", "test"):
        for seed in (0, 2):
            grey_folder(tmp_path / "data" / name / str(seed), seed)
    both = [ask(files / "tiny", tmp_path / "data", floor="test", num_images=count)[0] for count in (24, 12)]
    assert [(row["num_images"], row.get("drawn")) for row in both] == [(24, None), (12, "evenly")]
    (of_one_class,) = ask(tmp_path / "data/test/0", tmp_path / "data")
    assert abs(both[1]["value"] - both[0]["value"]) < 0.1 * of_one_class["value"]


def test_a_network_of_other_than_squares_is_refused(ask, tmp_path):
    """A network whose images are no squares is not measured against square images."""
    name = model(tmp_path / "wide", (8, 16))
    with pytest.raises(ValueError, match="the network's images have 8 x 16 pixels; allowed: squares"):
        ask(name, "digits")


def test_folders_of_one_name_are_two(ask, tmp_path):
    """runA/images and runB/images have a row each, named by their run, and so have images that are replaced."""
    a, b = (grey_folder(tmp_path / name / "images", seed) for seed, name in enumerate(("runA", "runB")))
    rows = ask(a, "digits") + ask(b, "digits")
    assert [row["model"] for row in rows] == ["runA/images", "runB/images"]
    shutil.rmtree(a)
    grey_folder(a, 3)
    assert [row["model"] for row in ask(a, "digits")] == ["runA/images"] and ask(b, "digits") == []
    table = (tmp_path / "results.md").read_text()
    assert table.count("| value |") == 3 and table.count("runA/images") == 2


def test_a_folder_that_generate_filled_has_the_rows_of_the_model(ask, tmp_path):
    """The figure of images that `generate` left has the protocol that the model's own cell has: its network and the
    scheduler's settings too, so that it is another figure where those are others."""
    sampling = {"num_images": 8, "num_inference_steps": 2, "max_batch_size": 8}
    for number, settings in enumerate(({}, {"clip_sample": False, "x0_formula": "as_printed"})):
        name = model(tmp_path / str(number) / "model", **settings)
        generate(load_pipeline(name), tmp_path / str(number) / "samples", **sampling)
        (of_model,), (of_images,) = ask(name, "digits"), ask(tmp_path / str(number) / "samples", "digits")
        assert of_images["scheduler"] == of_model["scheduler"] == (settings or None)
        with pytest.raises(ValueError, match="seed is 5 of images that were made from 0; allowed: the default"):
            ask(tmp_path / str(number) / "samples", "digits", seed=5, kid=True)
        shared = of_model.keys() & of_images.keys() - {"value", "reference_hash"}  # the reference in colour
        assert {key: of_images[key] for key in shared} == {key: of_model[key] for key in shared}
        assert {"network", "weights_hash", "implementation", "tau", "variance", "seed"} <= shared


# Figures that are none


class Dark(torch.nn.Module):
    """Features that are NaN or infinite where a pixel is 0."""

    def forward(self, x):
        return torch.log(x.flatten(1)[:, :4] - 1)


def test_broken_features_are_an_error_that_names_the_images(files, tmp_path):
    """A feature that is not finite ends the evaluation with the image's file or seed, and leaves no figure."""
    torch.jit.script(Dark()).save(tmp_path / "dark.pt")
    images = grey_folder(tmp_path / "images", 2)
    Image.new("L", (8, 8)).save(images / "dark.png")
    output = tmp_path / "r.json"
    extractor = {"feature_extractor": tmp_path / "dark.pt", "cache_dir": tmp_path}
    bright = grey_folder(tmp_path / "bright", 3)
    with pytest.raises(ValueError, match=r"1 of 13 images are not finite: \S+/images/dark.png"):
        evaluate(str(images), str(bright), output, **extractor)
    with pytest.raises(ValueError, match=r"1 of 13 images are not finite: \S+/images/dark.png"):
        evaluate(str(bright), str(images), output, **extractor)
    with pytest.raises(ValueError, match=r"images are not finite: seed \d"):
        evaluate(str(files / "tiny"), str(bright), output, **extractor, num_images=8, seed=7)
    assert not output.exists()


def test_a_network_that_makes_nan_has_no_figures(ask, tmp_path):
    """Samples, losses and reconstructions that are NaN are errors, and not black images."""
    unet = tiny_unet()
    unet.conv_out.bias.data.fill_(float("nan"))
    DDIMCustomPipeline(unet, DDIMSchedulerCustom()).save_pretrained(tmp_path / "nan")
    for settings, message in [
        ({}, r"from the seeds \[0, 1, 2, 3, 4\]"),
        (
            {"distance": False, "loss": True, "data_images": 50},
            "the denoising loss of 16 images is not finite .*: image 0 of digits",
        ),
        ({"distance": False, "reconstruction": [2], "data_images": 50}, "the reconstruction error of 16 images"),
    ]:
        with pytest.raises(ValueError, match=message):
            ask(tmp_path / "nan", "digits", **settings)


def test_one_image_is_refused(ask, files, tmp_path):
    """One sample, one image in a folder, or one in the reference is an error before anything is measured."""
    Image.new("L", (8, 8)).save(grey_folder(tmp_path / "one", 0) / "0.png")
    for number in range(1, 12):
        (tmp_path / "one" / f"{number}.png").unlink()
    with pytest.raises(ValueError, match="num_images is 1; allowed: whole numbers from 2"):
        ask(files / "tiny", "digits", num_images=1)
    for pair in ((tmp_path / "one", "digits"), (files / "tiny", tmp_path / "one")):
        with pytest.raises(ValueError, match="one' holds 1 image; allowed: at least 2"):
            ask(*pair)
    assert not (tmp_path / "results.json").exists()


def test_a_folder_of_several_splits_is_not_measured_by_one(ask, tmp_path):
    """A measured folder with train/ and test/ is an error that names both, as its figure would be that of one."""
    for split in ("train", "test"):
        grey_folder(tmp_path / "two" / split, 0)
    with pytest.raises(ValueError, match=r"two' holds the splits \['test', 'train'\]: name the folder of one"):
        ask(tmp_path / "two", "digits")
    ask(tmp_path / "two" / "test", "digits")


# A kill amid a cell

SCRIPT = """
import os, runpy, sys
from pathlib import Path
import ddim_hf.evaluation.unfinished
Path(os.environ["PID_FILE"]).write_text(str(os.getpid()))
ddim_hf.evaluation.unfinished.SAVE_SECONDS = 0.0
runpy.run_path(os.environ["EVALUATE"], run_name="evaluate")["main"]()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child is not told of its parent's end")
@pytest.mark.slow
def test_a_launcher_that_is_terminated_ends_its_child_and_the_cell_goes_on(files, tmp_path):
    """SIGTERM to accelerate launch ends evaluate.py too, amid a cell; called again it goes on, and has the figure
    of an evaluation that nothing ended, to 1e-9."""
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [files / "tiny", "--reference", "digits", "--output", tmp_path / "r.json", "--num_inference_steps", 20]
    words += ["--num_images", 400, "--feature_extractor", files / "features.pt", "--cache_dir", tmp_path / "cache"]
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        1,
        "--mixed_precision",
        "no",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"PID_FILE": str(tmp_path / "pid"), "EVALUATE": str(ROOT / "examples/evaluate.py")}
    launcher = subprocess.Popen([*map(str, launch + [tmp_path / "script.py"] + words)], env=environment)

    def saved() -> int:
        return len(list((tmp_path / "cache").glob("unfinished/*/*.npz")))

    until(lambda: saved() >= 3 or launcher.poll() is not None)
    launcher.terminate()
    launcher.wait(60)
    child = int((tmp_path / "pid").read_text())
    until(lambda: not Path(f"/proc/{child}").exists())
    assert not (tmp_path / "r.json").exists()

    settings = {"num_inference_steps": [20], "num_images": 400, "feature_extractor": files / "features.pt"}
    (row,) = evaluate(str(files / "tiny"), "digits", tmp_path / "r.json", **settings, cache_dir=tmp_path / "cache")
    assert "seconds" not in row and saved() == 0
    (whole,) = evaluate(str(files / "tiny"), "digits", tmp_path / "w.json", **settings, cache_dir=tmp_path / "other")
    assert row["value"] == pytest.approx(whole["value"], rel=1e-9) and "seconds" in whole
