"""The example scripts, run as a user runs them, with a tiny model."""

import argparse
import json
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import tiny_unet
from PIL import Image
from training_runs import ROOT, save_features, save_tiny_model

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom, image_grid
from ddim_hf.calibration import describe_sampler
from ddim_hf.data import load_images
from ddim_hf.hub import model_card
from ddim_hf.unet import weights_hash

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def run(monkeypatch, script: str, *words) -> int:
    """The script's exit code."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
    try:
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    return 0


def picture(file) -> Image.Image:
    image = Image.open(file)
    image.load()
    return image


def test_reconstruct(monkeypatch, tmp_path, model):
    """reconstruct.py leaves a picture with a row for each way and a table in which exact beats plain."""
    words = ["--data", "digits", "--num_images", 3, "--num_inference_steps", 5, 10]
    assert run(monkeypatch, "reconstruct.py", model, tmp_path, *words) == 0
    shown = picture(tmp_path / "reconstruct.png")
    assert shown.height == 5 * 52 and 3 * 52 < shown.width < 5 * 52  # labels stand on the left
    mse = json.loads((tmp_path / "reconstruct.json").read_text())["mse"]
    assert mse.keys() == {"5", "10"} and all(row["exact"] < row["plain"] for row in mse.values())


def test_interpolate(monkeypatch, tmp_path, model):
    """interpolate.py makes a strip of two seeds and a grid of four, each end the image of its own seed."""
    words = ["--num_images", 4, "--num_inference_steps", 3]
    assert run(monkeypatch, "interpolate.py", model, tmp_path / "strip", *words, "--seeds", 5, 6) == 0
    assert run(monkeypatch, "interpolate.py", model, tmp_path / "grid", *words, "--seeds", 5, 6, 7, 8) == 0
    strip, grid = (picture(tmp_path / kind / "interpolate.png") for kind in ("strip", "grid"))
    assert strip.height == 52 and grid.height == 4 * 52
    assert 5 * 52 < strip.width < 6 * 52 and grid.width == strip.width  # labels stand on the left
    assert np.array_equal(np.asarray(strip), np.asarray(grid)[:52])
    assert picture(tmp_path / "grid" / "interpolate.gif").n_frames == 16
    steps = {
        kind: json.loads((tmp_path / kind / "interpolate.json").read_text())["rms_between_neighbours"]
        for kind in ("strip", "grid")
    }
    assert np.shape(steps["strip"]["along_rows"]) == (1, 3) and "down_columns" not in steps["strip"]
    assert np.shape(steps["grid"]["along_rows"]) == (4, 3) and np.shape(steps["grid"]["down_columns"]) == (3, 4)


def test_neighbours_in_a_grid():
    """Neighbours are those along a row and down a column, not a row's end and the next row's start."""
    measure = runpy.run_path(str(EXAMPLES / "interpolate.py"))["rms_between_neighbours"]
    images = [Image.new("L", (2, 2), value) for value in (0, 51, 255, 0)]
    assert measure(images, 2) == {"along_rows": [[0.2], [1.0]], "down_columns": [[1.0, 0.2]]}
    assert measure(images, 4) == {"along_rows": [[0.2, 0.8, 1.0]]}


def test_interpolate_reads_16_bits(monkeypatch, tmp_path, model):
    """interpolate.py gives of 16-bit files what it gives of the same pictures in 8 bits."""
    ramp = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    for bits, pixels in ((8, ramp), (16, ramp.astype(np.uint16) * 257)):
        for end, picture_of in enumerate((pixels, pixels[::-1].copy())):
            Image.fromarray(picture_of).save(tmp_path / f"{bits}-{end}.png")
        ends = [tmp_path / f"{bits}-{end}.png" for end in (0, 1)]
        words = ["--num_images", 3, "--num_inference_steps", 3, "--images", *ends]
        assert run(monkeypatch, "interpolate.py", model, tmp_path / str(bits), *words) == 0
    strips = (np.asarray(picture(tmp_path / bits / "interpolate.png"))[:, -3 * 52 :] for bits in ("8", "16"))
    assert np.array_equal(*strips)


def test_interpolate_takes_images(monkeypatch, tmp_path, model):
    """interpolate.py --images inverts two files of any size and mode and goes from one to the other."""
    for number in range(2):
        Image.fromarray(np.full((20, 20, 3), 90 * number + 40, dtype=np.uint8)).save(tmp_path / f"{number}.png")
    words = ["--num_images", 3, "--num_inference_steps", 20, "--images", tmp_path / "0.png", tmp_path / "1.png"]
    assert run(monkeypatch, "interpolate.py", model, tmp_path / "out", *words) == 0
    shown = np.asarray(picture(tmp_path / "out" / "interpolate.png"))
    shown = shown[:, -3 * 52 :]  # beside the label
    assert abs(shown[26, 26].mean() - 40) <= 2 and abs(shown[26, 52 * 2 + 26].mean() - 130) <= 2


def test_interpolate_names_a_file_that_is_no_image(monkeypatch, tmp_path, model, capsys):
    """Of two files, the message says which cannot be read."""
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_text("no image")
    ends = ["--images", tmp_path / "0.png", tmp_path / "1.png"]
    assert run(monkeypatch, "interpolate.py", model, tmp_path / "out", *ends) == 2
    assert "1.png cannot be read (" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_trajectory(monkeypatch, tmp_path, model):
    """trajectory.py shows states above predictions, moves through them in a GIF, and ends where it leads."""
    words = ["--num_images", 2, "--num_inference_steps", 5, "--columns", 3]
    assert run(monkeypatch, "trajectory.py", model, tmp_path, *words) == 0
    shown = picture(tmp_path / "trajectory.png")
    assert shown.height == 4 * 64 and 3 * 64 < shown.width < 5 * 64  # labels stand on the left
    assert picture(tmp_path / "trajectory.gif").n_frames >= 5
    assert json.loads((tmp_path / "trajectory.json").read_text())


def test_nearest_finds_the_same_image(monkeypatch, tmp_path, model):
    """nearest.py's distances are those of all pairs, and a training image's own nearest neighbour is itself."""
    words = ["--num_images", 3, "--neighbours", 2, "--num_inference_steps", 3]
    assert run(monkeypatch, "nearest.py", model, "digits", tmp_path, *words) == 0
    shown = picture(tmp_path / "nearest.png")
    assert shown.height == 3 * 52 and 3 * 52 < shown.width < 4 * 52  # labels stand on the left
    report = json.loads((tmp_path / "nearest.json").read_text())
    assert len(report["samples_rms"]) == len(report["held_out_rms"]) == 3

    from ddim_hf.data import load_images

    find = runpy.run_path(str(EXAMPLES / "nearest.py"))["nearest"]
    training = load_images("digits", split="train", resolution=8, channels=1)
    distances, numbers = find(training[[7, 40]], training, 2)
    assert numbers[:, 0].tolist() == [7, 40] and distances[:, 0].max() < 1e-3
    everything = training[:].double() / 255
    expected = (everything - everything[7]).square().flatten(1).mean(1).sqrt().sort().values[1]
    assert distances[0, 1] == pytest.approx(expected.item(), abs=1e-4)


def test_the_benchmark_measures_the_step(monkeypatch, tmp_path, capsys):
    """benchmark.py prints a table and writes the same rows with the machine they were measured on."""
    words = ["--only", "step", "--rounds", 1, "--output", tmp_path / "rows.json"]
    assert run(monkeypatch, "benchmarks/benchmark.py", *words) == 0
    report = json.loads((tmp_path / "rows.json").read_text())
    assert len(report["rows"]) == 4 and report["machine"]["versions"]["diffusers"]
    assert all(row["ratio"] == pytest.approx(row["stock ms"] / row["ours ms"]) for row in report["rows"])
    assert f"| {report['rows'][0]['what']} |" in capsys.readouterr().out


def test_the_benchmarks_check_can_fail():
    """A lost ratio, a step far beyond its arithmetic and a slow pipeline are each named; good figures pass."""
    lost = runpy.run_path(str(EXAMPLES / "benchmarks/benchmark.py"))["lost_ratios"]
    step = {"what": "step [256, 3, 32, 32], eta 0", "ours ms": 0.5, "its tensor operations ms": 0.5, "ratio": 2.5}
    pipeline = {"what": "pipeline", "ratio": 1.0, "beside the network": 0.003}
    assert lost([step, pipeline]) == []
    assert "ratio 1.20" in lost([step | {"ratio": 1.2}])[0]
    assert "1.60 times its arithmetic" in lost([step | {"ours ms": 0.8}])[0]
    assert (
        "ratio 0.80" in lost([pipeline | {"ratio": 0.8}])[0]
        and "6.0%" in lost([pipeline | {"beside the network": 0.06}])[0]
    )


@pytest.mark.parametrize(
    "script, words, message",
    [
        ("reconstruct.py", ["nowhere/model", "out"], "nowhere/model"),
        ("reconstruct.py", ["MODEL", "out"], "does not tell what it was trained on; allowed: with --data"),
        ("reconstruct.py", ["MODEL", "out", "--num_images", "-4"], "num_images is -4; allowed"),
        ("sample.py", ["MODEL", "--output_dir", "out", "--max_batch_size", "0"], "max_batch_size is 0; allowed"),
        ("evaluate.py", ["MODEL", "--reference", "digits", "--no_distance"], "nothing to measure"),
        ("reproduce.py", ["--minutes", "-1"], "minutes is -1; allowed: above 0"),
        ("reproduce.py", ["--parts", "show", "--num_image", "-1"], "--num_image is no flag of this script"),
        ("reproduce.py", ["--feature_extractor", "none.pt"], "feature_extractor 'none.pt': no such file"),
        ("interpolate.py", ["MODEL", "out", "--seeds", "1", "2", "3"], "3 corners; allowed: 2"),
        ("interpolate.py", ["MODEL", "out", "--num_images", "1"], "num_images is 1; allowed: 2 or more"),
        ("trajectory.py", ["MODEL", "out", "--eta", "2"], "eta is 2.0; allowed"),
        ("nearest.py", ["MODEL", "digits", "out", "--split", "dev"], "has no split 'dev'"),
        ("nearest.py", ["MODEL", "digits", "out", "--neighbours", "0"], "--neighbours is 0; allowed: 1 to 1617"),
        ("nearest.py", ["MODEL", "digits", "out", "--neighbours", "1618"], "--neighbours is 1618; allowed"),
        ("benchmarks/benchmark.py", ["--only", "speed"], "--only has speed; allowed: step"),
        (
            "benchmarks/benchmark.py",
            ["--networks", "digits"],
            "--networks has digits; allowed: cifar10-64, cifar10-128",
        ),
    ],
)
def test_bad_input_is_one_line(monkeypatch, tmp_path, capsys, model, hub, script, words, message):
    """Wrong input to any script is one line and exit code 2."""
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, script, *(model if word == "MODEL" else word for word in words)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]


@pytest.mark.parametrize(
    "script, words",
    [
        ("nearest.py", ["digits", "OUT", "--num_images", 2]),
        ("interpolate.py", ["OUT", "--images", "PNG", "PNG"]),
        ("reconstruct.py", ["OUT", "--data", "digits"]),
    ],
)
def test_a_network_of_other_than_squares_is_refused(monkeypatch, tmp_path, capsys, script, words):
    """Where images are read as squares, a network whose images are none ends the script in one line."""
    DDIMCustomPipeline(tiny_unet(sample_size=(8, 16)), DDIMSchedulerCustom()).save_pretrained(tmp_path / "wide")
    Image.new("L", (8, 16)).save(tmp_path / "0.png")
    words = [{"OUT": tmp_path / "out", "PNG": tmp_path / "0.png"}.get(word, word) for word in words]
    assert run(monkeypatch, script, tmp_path / "wide", *words, "--num_inference_steps", 2) == 2
    assert "error: the network's images have 8 x 16 pixels; allowed: squares" in capsys.readouterr().err


@pytest.mark.slow
def test_make_cifar10_trains_ten_million_images(tmp_path):
    """What `make cifar10-64` runs is valid, and FLAGS add to it."""
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / split / "0.png")
    made = subprocess.run(
        ["make", "-n", "-C", ROOT, "-o", ".venv/installed", "cifar10-64", "FLAGS=--minutes 9"],
        capture_output=True,
        text=True,
    )
    words = shlex.split(next(line for line in made.stdout.replace("\\\n", " ").splitlines() if "reproduce.py" in line))
    here = ["--parts", "train", "--dry_run", "--dataset_name", tmp_path]
    call = [sys.executable, EXAMPLES / "reproduce.py", *words[2:], *here]
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert '"mixed_precision": "bf16"' in done.stdout and '"compile": "auto"' in done.stdout
    assert "20,000 steps of 512 images" in done.stdout
    assert words[-2:] == ["--minutes", "9"]


@pytest.mark.slow
def test_make_celebahq_trains_the_published_recipe(tmp_path):
    """What `make celebahq-256` runs is valid: its dry run knows the network of 114 million parameters, the steps, the
    batch and the memory, which gradient checkpointing more than halves."""
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (256, 256)).save(tmp_path / split / "0.png")
    flags = "FLAGS=--dry_run --gradient_accumulation_steps 16 --gradient_checkpointing --mixed_precision no"
    made = subprocess.run(
        ["make", "-n", "-C", ROOT, "-o", ".venv/installed", "celebahq-256", flags], capture_output=True, text=True
    )
    words = shlex.split(next(line for line in made.stdout.replace("\\\n", " ").splitlines() if "reproduce.py" in line))
    call = [sys.executable, EXAMPLES / "reproduce.py", *words[2:], "--parts", "train", "--dataset_name", tmp_path]
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "celebahq-256 of 113,673,219 parameters; 500,000 steps of 64 images" in done.stdout
    assert '"learning_rate": 2e-05' in done.stdout and '"validation_split": "validation"' in done.stdout
    # Weights, two moments and an average of 114 million float32 numbers; four images of a pass, checkpointed
    assert "weights, moments and averages 1,734.5 MiB" in done.stdout
    assert 1_000 < float(re.search(r"activations ([\d,.]+) MiB", done.stdout)[1].replace(",", "")) < 8_488 / 2
    assert re.search(r"time: about .* on cpu, from a trial of \d images? of 64 x 64", done.stdout)


def test_ending_cifar10_ends_its_training(tmp_path, model):
    """A signal to the program alone reaches the training, whose checkpoint is there when the program ends."""
    for split in ("train", "test"):
        (tmp_path / "images" / split).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "images" / split / "0.png")
    words = [
        "--dataset_name",
        tmp_path / "images",
        "--output_dir",
        tmp_path / "run",
        "--pretrained",
        model,
        "--resolution",
        8,
    ]
    words += ["--parts", "train", "--batch_size", 2, "--samplers", "none", "--logger", "none", "--logging_steps", 1]
    process = subprocess.Popen(list(map(str, [sys.executable, EXAMPLES / "reproduce.py", *words])))
    while not (tmp_path / "run/log.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert (checkpoint / "state.json").is_file()


def test_scripts_read_data_as_training_does(monkeypatch, tmp_path, model):
    """Of a table with two columns of images, nearest.py and reconstruct.py read the one that is named."""
    images = [Image.new("L", (8, 8), shade) for shade in (0, 85, 170, 255)]
    table = datasets.Dataset.from_dict({"image": images, "mask": images[::-1]})
    table.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image()).to_parquet(
        tmp_path / "t.parquet"
    )
    options = ["--image_column", "mask", "--cache_dir", tmp_path / "cache", "--split", "train", "--num_images", 2]
    near = ["--held_out", "none", "--neighbours", 1, "--num_inference_steps", 2]
    assert run(monkeypatch, "nearest.py", model, tmp_path / "t.parquet", tmp_path / "near", *options, *near) == 0
    words = ["--data", tmp_path / "t.parquet", "--num_inference_steps", 2]
    assert run(monkeypatch, "reconstruct.py", model, tmp_path / "back", *words, *options) == 0
    shown = picture(tmp_path / "back/reconstruct.png").convert("L")
    assert shown.getpixel((shown.width - 2 * 52 + 26, 26)) == 255  # the mask's first


@pytest.mark.parametrize(
    "script, words",
    [
        ("nearest.py", ["digits", "OUT", "--num_images", 2]),
        ("interpolate.py", ["OUT", "--num_images", 3]),
        ("trajectory.py", ["OUT", "--num_images", 1]),
    ],
)
def test_images_that_are_not_finite_end_a_script(monkeypatch, tmp_path, model, capsys, script, words):
    """Of a network of NaN a script says so in one line and draws no black pictures."""
    pipe = DDIMCustomPipeline.from_pretrained(model)
    pipe.unet.conv_out.bias.data[:] = float("nan")
    pipe.save_pretrained(tmp_path / "model")
    words = [tmp_path / "out" if word == "OUT" else word for word in words]
    assert run(monkeypatch, script, tmp_path / "model", *words, "--num_inference_steps", 2) == 2
    assert "error: not finite (NaN or infinite)" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "classes, changes, there",
    [
        (None, {}, True),
        (None, {"num_inference_steps": "3"}, False),
        (None, {"eta": "0.2,1"}, False),
        (None, {"tau": "quad"}, False),
        ([2], {}, False),  # the null class
        ([0, 1], {}, True),
    ],
)
def test_reproduce_measures_the_schedules_that_evaluate_takes(tmp_path, model, classes, changes, there):
    """--calibrated is handed on where evaluate.py finds a schedule for these cells, of all classes, and only there."""
    source = model if classes is None else save_tiny_model(tmp_path / "classes", names="ab")
    pipe = DDIMCustomPipeline.from_pretrained(source)
    schedule = {"timesteps": [500, 0], "weights": [[1.0, 0.0, 0.0]] * 2} | ({"classes": classes} if classes else {})
    record = {"weights_hash": weights_hash(pipe.unet), "sampler": describe_sampler(pipe.scheduler.config)}
    pipe.scheduler.change_config(calibrated_schedules=record | {"schedules": {"2": schedule}})
    pipe.save_pretrained(tmp_path / "fitted")
    cells = {
        "num_inference_steps": "2,3",
        "eta": "0,1",
        "tau": "uniform,quad",
        "variance": "sigma,sigma_hat",
    } | changes
    assert runpy.run_path(str(EXAMPLES / "reproduce.py"))["has_schedule"](tmp_path / "fitted", cells) is there


@pytest.mark.slow
def test_from_training_to_report(tmp_path, model):
    """reproduce.py trains, evaluates beside stock and real images, and writes a report; a second call makes it again
    from what is there. What says how the data is read reaches all of its scripts."""
    random, data = np.random.default_rng(0), tmp_path / "data"
    data.mkdir()
    for split, count in (("train", 20), ("validation", 8)):  # not the other scripts' default, "test"
        images = [Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)) for _ in range(count)]
        images.append({"bytes": b"torn", "path": None})
        table = datasets.Dataset.from_dict(
            {"image": images, "mask": images[::-1]}, datasets.Features(image=datasets.Image(), mask=datasets.Image())
        )
        table.to_parquet(data / f"{split}.parquet")
    words = [
        "--recipe",
        "celebahq-256",
        "--dataset_name",
        data,
        "--image_column",
        "image",
        "--output_dir",
        tmp_path / "run",
        "--report",
        tmp_path / "docs/r.md",
    ]
    words += ["--feature_extractor", save_features(tmp_path / "features.pt", 64), "--num_images", 8]
    words += ["--skip_broken", "--num_inference_steps", 2, "--eta", 0, "--note", "Noise for images.", "--seeds", 2]
    words += ["--pretrained", model, "--resolution", 8, "--batch_size", 4, "--max_train_steps", 2]
    words += ["--samplers", "none", "--logger", "none"]
    call = [sys.executable, EXAMPLES / "reproduce.py", *words]
    done = subprocess.run([str(word) for word in call], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]

    text = (tmp_path / "docs/r.md").read_text()
    assert "Noise for images." in text and "**Training**: 2 steps (8 images)" in text
    rows = json.loads((tmp_path / "run/results.json").read_text())["results"]
    again = [row["value"] for row in rows if row.get("num_inference_steps") == 50]
    assert len(again) == 1 and "sets of seeds" not in text and "seed 8" not in text
    assert "The text that this package was written after gives 0.03-0.04" in text
    assert all(row["machine"] in text for row in rows)
    for implementation in ("ddim_hf", "stock", "real images (validation)"):
        assert f"implementation {implementation}" in text
    for name in re.findall(r"!\[.*\]\((.*)\)", text):
        assert picture(tmp_path / "docs" / name).width > 100
    (floor,) = [row for row in rows if row.get("implementation") == "real images (validation)"]

    extractor = torch.jit.load(str(tmp_path / "features.pt"))
    from ddim_hf.data import load_images
    from ddim_hf.evaluation.frechet import Statistics, frechet_distance

    data = dict(resolution=8, channels=1, image_column="image", skip_broken=True)
    sets = (load_images(str(tmp_path / "data"), split=part, **data) for part in ("validation", "train"))
    real, training = (Statistics().update(extractor(images[:].expand(-1, 3, -1, -1).float())) for images in sets)
    assert floor["value"] == pytest.approx(frechet_distance(real, training), rel=1e-6)
    assert re.search(r"\| value \|\n\| --- \|\n\| [\d.e-]+ \|\n", text)
    assert floor["num_images"] == 8 and "real images" not in (tmp_path / "run/README.md").read_text()


def test_reproduce_leaves_stock_out_for_classes(model, class_model):
    """evaluate.py refuses --also stock for a model with classes, and is not asked for it after hours of training."""
    also_stock = runpy.run_path(str(EXAMPLES / "reproduce.py"))["also_stock"]
    assert also_stock(Path(model)) == ["--also", "stock"] and also_stock(Path(class_model[1])) == []


def test_reproduce_writes_over_its_own_reports_alone(monkeypatch, tmp_path, capsys):
    """A file that is no report of the script's is refused before anything is done, and stays; its own is not."""
    report, other = tmp_path / "own.md", tmp_path / "mine.md"
    report.write_text("# cifar10-64\n\nWritten by\n\n```sh\npython examples/reproduce.py --eta 0\n```\n")
    other.write_text("# My results")
    words = ["--output_dir", tmp_path, "--seeds", 0, "--report"]
    for file, said in (
        (other, f"error: {other} was not written by this script; allowed"),
        (report, "error: seeds is 0"),
    ):
        assert run(monkeypatch, "reproduce.py", *words, file) == 2
        assert capsys.readouterr().err.startswith(said)
    assert other.read_text() == "# My results"


def test_the_processes_benchmark_says_what_it_takes(monkeypatch, capsys):
    """Without a part that it knows, benchmark_processes.py prints what it is and its parts, and no traceback."""
    for words, code in (["--help"], 0), ([], 2), (["nothing"], 2):
        assert run(monkeypatch, "benchmarks/benchmark_processes.py", *words) == code
        assert "PART is one of: startup, growth, processes, training" in capsys.readouterr().out


def test_the_processes_benchmark_trains_ours_and_stocks(monkeypatch, tmp_path):
    """The loops of the training benchmark take their steps on the images that it writes."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "benchmarks"))
    monkeypatch.setenv("DDIM_HF_CACHE", str(tmp_path / "cache"))
    parts = runpy.run_path(str(EXAMPLES / "benchmarks/benchmark_processes.py"))
    parts["write_images"](tmp_path)
    step = parts["our_stepper"](str(tmp_path), "images-32", "no", False, 2)
    step()
    assert step.__self__.state.step == 1
    for contender in ("ours", "stock", "bare"):
        seconds = parts["seconds_of_steps"](contender, str(tmp_path), "images-32", "no", 2)
        assert len(seconds) == parts["STEPS"] and min(seconds) > 0


def test_a_flag_of_zero_is_handed_on():
    """reproduce.py hands every flag that is given to its scripts, one of value 0 too, and none that is not."""
    given = runpy.run_path(str(EXAMPLES / "reproduce.py"))["given"]
    args = argparse.Namespace(max_cached_bytes=0, skip_broken=True, refresh_cache=False, cache_dir=None)
    assert given(args, *vars(args)) == ["--max_cached_bytes", 0, "--skip_broken"]


def test_the_report_says_what_chance_does():
    """Of a cell that was measured from several sets of seeds the report tells the figures and their spread, of other
    cells nothing; the tables hold the first seeds alone."""
    report = runpy.run_path(str(EXAMPLES / "reproduce.py"))
    row = {"metric": "frechet_distance", "implementation": "ddim_hf", "eta": 0.0, "tau": "uniform"}
    row |= {"variance": "sigma", "num_inference_steps": 50, "num_images": 1000, "weights_hash": "a"}
    rows = [row | {"seed": seed, "value": value} for seed, value in ((1000, 8.5), (0, 8.0), (2000, 8.25))]
    rows += [row | {"seed": 0, "value": 9.0, "eta": 0.2}, row | {"seed": 0, "value": 7.0, "num_images": 5000}]
    said = report["chance"](rows)
    assert "1,000 images from 3 sets of seeds: 8.00, 8.50, 8.25. The largest is 0.5 above" in said
    assert said.count("Chance") == 1 and report["chance"](rows[1:2]) == ""
    assert [row["value"] for row in report["of_first_seeds"](rows)] == [8.0, 9.0, 7.0]


def test_the_models_in_the_repository_make_images():
    """The CIFAR-10 model loads in float32 from half precision; its neighbouring pixels are alike, unlike noise's."""
    pipe = DDIMCustomPipeline.from_pretrained(ROOT / "models" / "ddim-cifar10-64")
    assert pipe.unet.dtype == torch.float32 and pipe.unet.config.dropout == 0.0
    pixels = pipe(8, num_inference_steps=5, seeds=range(8), output_type="pt").images
    steps = (pixels[..., 1:] - pixels[..., :-1]).abs().mean(dim=(1, 2, 3))
    assert pixels.shape == (8, 3, 32, 32) and pixels.std() > 0.15
    assert steps.max() < 0.15, steps  # uniform noise has 0.33


def test_the_model_with_classes_is_as_its_page_shows_it(monkeypatch):
    """docs/classes.md has the figures of its results.json, its card is what the code writes, and its picture's first
    image is what the lines beside that give."""
    monkeypatch.chdir(ROOT)  # where its card names it
    folder, text = Path("models/ddim-cifar10-64-classes"), Path("docs/classes.md").read_text()
    rows = json.loads((folder / "results.json").read_text())["results"]
    of = {(row["metric"], row["guidance_scale"]): row["value"] for row in rows if row.get("guidance_scale")}
    names = ("frechet_distance", "frechet_distance_within_classes", "label_accuracy")
    for scale in (1, 1.25, 1.5, 2, 3):
        distance, within, accuracy = (of[name, scale] for name in names)
        assert f"| {scale:g} | {distance:.2f} | {within:.2f} | {accuracy:.1%} |\n" in text
    assert model_card(folder) == (folder / "README.md").read_text()
    pipe = DDIMCustomPipeline.from_pretrained(folder)
    image = pipe(class_labels=[0], guidance_scale=2.0, num_inference_steps=20, seeds=[0]).images
    picture = Image.open(ROOT / "docs/cifar10-classes.png").convert("RGB")
    made, left = np.asarray(image_grid(image)).astype(int), picture.width - 8 * 68
    assert np.abs(made - np.asarray(picture)[:68, left : left + 68]).mean() < 1


@pytest.fixture(scope="module")
def class_model(tmp_path_factory):
    """A pipeline of two classes that tell, and the folder that it lies in."""
    unet = tiny_unet(num_class_embeds=3).eval()
    torch.nn.init.normal_(unet.class_embedding.weight, std=5.0)
    pipe = DDIMCustomPipeline(unet, DDIMSchedulerCustom(), {0: "cat", 1: "dog"})
    pipe.set_progress_bar_config(disable=True)
    folder = tmp_path_factory.mktemp("classes")
    pipe.save_pretrained(folder)
    return pipe, str(folder)


def test_classes_of_the_scripts(monkeypatch, tmp_path, class_model):
    """sample.py, trajectory.py, interpolate.py and reconstruct.py take classes and guidance as their methods do."""
    pipe, folder = class_model
    guidance = ["--guidance_scale", 2, "--guidance_interval", "0,500"]
    words = ["--num_images", 3, "--num_inference_steps", 3]
    asked = ["--class_labels", "dog,0", *guidance, "--guide", folder]
    assert run(monkeypatch, "sample.py", folder, "--output_dir", tmp_path / "sample", *words, *asked) == 0
    settings = dict(num_inference_steps=3, guidance_scale=2, guidance_interval=(0, 500))
    images = pipe(seeds=range(3), class_labels=[1, 0, 1], guide=pipe, **settings).images
    for k in range(3):
        made = np.asarray(picture(tmp_path / "sample" / "images" / f"{k:06d}.png")).astype(int)
        assert np.abs(made - np.asarray(images[k])).max() <= 1

    words = ["--num_inference_steps", 3, *guidance]
    assert run(monkeypatch, "interpolate.py", folder, tmp_path, *words, "--class_labels", "cat,dog") == 0
    strip = pipe.interpolate(0, 1, num_images=11, class_labels=["cat", "dog"], **settings).images
    shown = np.asarray(picture(tmp_path / "interpolate.png"))[:, -11 * 52 :]
    assert np.array_equal(shown, np.asarray(image_grid(strip, 11)))
    assert json.loads((tmp_path / "interpolate.json").read_text())["class_labels"] == "cat,dog"
    images = ["--num_images", 3, "--class_labels", "all"]
    assert run(monkeypatch, "trajectory.py", folder, tmp_path, *words, *images) == 0
    path = pipe(seeds=range(3), class_labels=[0, 1, 0], return_trajectory=True, output_type="latent", **settings)
    far = [((x - path.images) / 2).square().mean().item() for x in path.pred_original_samples]
    assert json.loads((tmp_path / "trajectory.json").read_text())["mse_of_predicted_x0"] == pytest.approx(
        far, rel=1e-3
    )
    words = ["--data", "digits", "--num_images", 3, "--num_inference_steps", 3, "--class_labels", "all"]
    assert run(monkeypatch, "reconstruct.py", folder, tmp_path, *words) == 0
    digits = load_images("digits", split="test", resolution=8, channels=1)[:3]
    wanted = pipe.reconstruct(digits, 3, class_labels=[0, 1, 0]).mse.mean().item()
    mse = json.loads((tmp_path / "reconstruct.json").read_text())["mse"]
    assert mse["3"]["plain"] == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(
    "words, said",
    [
        (
            ["--class_labels", "cat,bird"],
            "error: class_labels has 'bird'; allowed: cat (0), dog (1), or 2 or None, the null",
        ),
        (["--guidance_scale", "2"], "error: guidance_scale is 2.0 without class_labels; allowed: 1, or with"),
        (["--guidance_interval", "9,x"], "error: guidance_interval is ['9', 'x']; allowed: two timesteps"),
        (["--guide", "nowhere/at/all"], "error: 'nowhere/at/all' is neither a folder"),
    ],
)
def test_wrong_classes_end_a_script(monkeypatch, capsys, tmp_path, class_model, words, said):
    """A wrong flag of the classes ends in one line and exit code 2, before there is a folder."""
    assert run(monkeypatch, "sample.py", class_model[1], "--output_dir", tmp_path / "none", *words) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(said) and not (tmp_path / "none").exists()
