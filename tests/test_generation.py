"""Images out by the thousand: the same set however it is made."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_unet
from diffusers import UNet2DModel, UniPCMultistepScheduler
from PIL import Image

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom
from ddim_hf.generation import generate, load_pipeline, sample_numbers
from ddim_hf.images import class_grid

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {"num_images": 40, "num_inference_steps": 3, "eta": 0.5, "seed": 7}
FLAGS = [word for key, value in SETTINGS.items() for word in (f"--{key}", str(value))]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny network over 8x8 colour images, saved."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, attention_head_dim=4, **blocks
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    DDIMCustomPipeline(unet, DDIMSchedulerCustom()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """The set of SETTINGS, made in one go by one process."""
    folder = tmp_path_factory.mktemp("samples") / "whole"
    generate(load_pipeline(model), folder, **SETTINGS)
    return folder


def start(*arguments, processes=1):
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launch, "examples/sample.py", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def contents(folder):
    return {file.name: file.read_bytes() for file in (folder / "images").iterdir()}


def test_image_k_is_what_the_pipeline_makes_from_seed_plus_k(model, whole):
    """Image k is the pipeline's own image from seed + k, but for a last bit in rare pixels."""
    made = load_pipeline(model)(1, seeds=[7 + 5], eta=0.5, num_inference_steps=3).images[0]
    image = np.asarray(Image.open(whole / "images/000005.png")).astype(int)
    assert np.abs(image - np.asarray(made)).max() <= 1
    assert len(contents(whole)) == len(set(contents(whole).values())) == 40


def test_an_image_does_not_depend_on_those_beside_it(model):
    """An image's states are the same to the last bit, whichever images share its block."""
    pipe = load_pipeline(model)
    settings = {"seed": 0, "max_batch_size": 16, "num_inference_steps": 3, "eta": 0.5, "output_type": "latent"}
    states = [
        torch.cat([output.images[: len(own)] for own, output in sample_numbers(pipe, numbers, **settings)])
        for numbers in (range(20), [3, 6, 17])
    ]
    assert torch.equal(states[0][[3, 6, 17]], states[1])


def test_two_processes_give_identical_files(model, whole, tmp_path):
    """Two processes give the same files as one, byte for byte."""
    process = start(model, "--output_dir", tmp_path / "out", *FLAGS, processes=2)
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, output
    assert contents(tmp_path / "out") == contents(whole)
    assert json.loads((tmp_path / "out/manifest.json").read_text()) == json.loads(
        (whole / "manifest.json").read_text()
    )


def test_a_killed_run_completes_to_the_identical_set(model, tmp_path):
    """After kill -9 every file there is whole, and a second call makes what is missing and nothing else."""
    settings = {"num_images": 64, "num_inference_steps": 20}
    process = start(model, "--output_dir", tmp_path / "killed", "--num_images", 64, "--num_inference_steps", 20)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("images/[!.]*.png")):
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read().decode()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    files = [file for file in (tmp_path / "killed/images").iterdir() if not file.name.startswith(".")]
    assert 0 < len(files) < 64
    for file in files:
        Image.open(file).load()
    (tmp_path / "killed/images/.000063.1.partial.png").write_bytes(b"torn")
    before = {file: file.stat().st_mtime_ns for file in files}
    pipe = load_pipeline(model)
    generate(pipe, tmp_path / "killed", **settings)
    generate(pipe, tmp_path / "fresh", **settings)
    assert contents(tmp_path / "killed") == contents(tmp_path / "fresh")
    assert before == {file: file.stat().st_mtime_ns for file in files}


def test_shards_hold_the_same_images(model, whole, tmp_path, monkeypatch):
    """npy shards hold the pixels of the PNG files in order, and a lost shard alone is made again."""
    monkeypatch.setattr("ddim_hf.generation.SHARD_IMAGES", 24)
    pipe = load_pipeline(model)
    images = generate(pipe, tmp_path, format="npy", **SETTINGS)
    assert [file.name for file in sorted(images.iterdir())] == ["00000000-00000023.npy", "00000024-00000039.npy"]
    pixels = np.concatenate([np.load(file) for file in sorted(images.iterdir())])
    expected = np.stack([np.asarray(Image.open(file)) for file in sorted((whole / "images").iterdir())])
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, expected)
    before = contents(tmp_path)
    (images / "00000024-00000039.npy").unlink()
    generate(pipe, tmp_path, format="npy", **SETTINGS)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "change", [{"num_inference_steps": 4}, {"eta": 0.0}, {"seed": 8}, {"num_images": 39}, {"format": "npy"}]
)
def test_a_folder_of_other_settings_is_refused(model, whole, change):
    """A folder made with other settings is refused, naming the one that differs, and stays as it is."""
    before = contents(whole)
    with pytest.raises(ValueError, match=f"other settings: {next(iter(change))} .* there, .* asked for"):
        generate(load_pipeline(model), whole, **{**SETTINGS, **change})
    assert contents(whole) == before


def test_other_weights_are_refused_and_more_images_are_not(model, tmp_path):
    """Other weights under the same name are refused; raising num_images adds the rest."""
    pipe = load_pipeline(model)
    first = generate(pipe, tmp_path, **{**SETTINGS, "num_images": 2})
    before = contents(tmp_path)
    generate(pipe, tmp_path, **{**SETTINGS, "num_images": 3})
    assert len(list(first.iterdir())) == 3 and before.items() <= contents(tmp_path).items()
    pipe.unet.conv_in.weight.data += 1
    with pytest.raises(ValueError, match="weights_hash"):
        generate(pipe, tmp_path, **SETTINGS)


def test_sampling_needs_the_core_alone(model, whole, tmp_path):
    """Without accelerate and the extras' other packages sample.py gives the same images; several processes are told
    in one line that they need it."""
    words = ["sample.py", str(model), "--output_dir", str(tmp_path), *FLAGS]
    code = (
        "import runpy, sys\n"
        "for name in ('accelerate', 'datasets', 'transformers', 'cleanfid', 'matplotlib', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
        f"sys.argv = {words!r}\n"
        "runpy.run_path('examples/sample.py', run_name='__main__')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path) == contents(whole)
    several = {**environment, "WORLD_SIZE": "2"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=several, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == (
        "error: several processes need accelerate: pip install 'ddim_hf[train]'\n"
    )


def test_a_pipeline_built_in_code_fills_a_folder(tmp_path):
    """A pipeline that was never loaded generates; its manifest names no model."""
    pipe = DDIMCustomPipeline(tiny_unet(), DDIMSchedulerCustom())
    pipe.set_progress_bar_config(disable=True)
    images = generate(pipe, tmp_path, num_images=2, num_inference_steps=1, max_batch_size=2)
    assert len(list(images.iterdir())) == 2
    assert json.loads((tmp_path / "manifest.json").read_text())["model"] is None


@pytest.mark.parametrize("format", ["png", "npy"])
def test_a_network_that_makes_nan_fills_no_folder(tmp_path, format):
    """Images that are NaN are an error with their seeds, and not black files."""
    pipe = DDIMCustomPipeline(tiny_unet(), DDIMSchedulerCustom())
    pipe.unet.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"not finite .* from the seeds \[7, 8, 9\]"):
        generate(pipe, tmp_path / "out", num_images=3, num_inference_steps=2, seed=7, format=format)
    assert not list((tmp_path / "out/images").iterdir())


def test_a_model_of_the_hub_is_named_by_its_repository(model, hub, tmp_path):
    """The manifest of a model of the Hub names the repository, and its commit apart from that."""
    DDIMCustomPipeline.from_pretrained(model).push_to_hub("org/tiny", token="hf_writer")
    generate(load_pipeline("org/tiny"), tmp_path, num_images=1, num_inference_steps=1, max_batch_size=1)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["model"] == "org/tiny" and len(manifest["commit"]) == 40


def test_a_grid_holds_few_files_open(model, tmp_path):
    """A grid of more images than a process may have open files is drawn."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 30, limits[1]))
    try:
        generate(load_pipeline(model), tmp_path, num_images=64, num_inference_steps=1, grid=64)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (tmp_path / "samples.png").is_file()


def test_the_manifest_names_what_made_the_images(whole):
    """The manifest records model, weights, steps, eta, tau, seed, count, versions, and no folder of this machine."""
    text = (whole / "manifest.json").read_text()
    manifest = json.loads(text)
    expected = {**SETTINGS, "model": "tiny", "tau": "uniform", "variance": "sigma", "max_batch_size": 16}
    assert expected.items() <= manifest.items()
    assert len(manifest["weights_hash"]) == 64 and "torch" in manifest["versions"] and str(ROOT) not in text


def test_grid_and_gif(model, whole):
    """The grid shows the images asked for; the animation ends with the images themselves."""
    generate(load_pipeline(model), whole, grid=9, gif=True, **SETTINGS)
    grid = np.asarray(Image.open(whole / "samples.png"))
    assert grid.shape == (3 * 52, 3 * 52, 3)  # 8 pixels enlarged to 48, and a border
    second = Image.open(whole / "images/000001.png").resize((48, 48), Image.Resampling.BICUBIC)
    assert np.array_equal(grid[2:50, 54:102], np.asarray(second))
    with Image.open(whole / "denoising.gif") as animation:
        assert animation.n_frames >= 4 and animation.size == (4 * 52, 4 * 52)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["/no/such/model"], "/no/such/model"),
        (["MODEL", "--eta", "2"], "eta is 2.0; allowed: 0"),
        (["MODEL", "--num_inference_steps", "0"], "num_inference_steps is 0; allowed"),
        (["MODEL", "--num_images", "0"], "num_images is 0; allowed"),
    ],
)
def test_bad_input_is_one_line(model, tmp_path, monkeypatch, capsys, arguments, message):
    """Bad input ends the script with exit code 2 and one line, before anything is written."""
    arguments = [str(model) if word == "MODEL" else word for word in arguments]
    monkeypatch.setattr(sys, "argv", ["sample.py", *arguments, "--output_dir", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "examples/sample.py"), run_name="__main__")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_broken_torchvision_stops_evaluation_alone(model, tmp_path):
    """With a torchvision that torch cannot load, sampling works and FID names the two packages to align."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text(
        'raise RuntimeError("operator torchvision::nms does not exist")\n'
    )
    code = (
        "from ddim_hf import DDIMCustomPipeline\n"
        f"pipe = DDIMCustomPipeline.from_pretrained({str(model)!r})\n"
        "print(pipe(1, num_inference_steps=1).images[0].size)\n"
        "from ddim_hf.evaluation.features import load_feature_extractor\n"
        "try:\n    load_feature_extractor()\nexcept ImportError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    size, line = done.stdout.strip().splitlines()
    assert size == "(8, 8)" and "torchvision::nms" in line
    assert line.startswith(f"torch {torch.__version__.split('+')[0]}") and " and torchvision " in line


# Classes


@pytest.fixture(scope="module")
def with_classes():
    """A pipeline of three classes that tell."""
    unet = tiny_unet(num_class_embeds=4).eval()
    torch.nn.init.normal_(unet.class_embedding.weight, std=5.0)
    pipe = DDIMCustomPipeline(unet, DDIMSchedulerCustom(), {0: "cat", 1: "dog", 2: "bird"})
    pipe.set_progress_bar_config(disable=True)
    return pipe


GUIDED = dict(num_inference_steps=3, seed=7, max_batch_size=4, class_labels=["dog", 0, None], guidance_scale=2)


def test_images_take_the_labels_in_turn(with_classes, tmp_path):
    """Image k is the pipeline's own from seed + k and the k-th label in turn, however it is completed."""
    generate(with_classes, tmp_path / "set", num_images=6, guidance_interval=(0, 500), **GUIDED)
    made = contents(tmp_path / "set")
    run = dict(num_inference_steps=3, guidance_scale=2, guidance_interval=(0, 500), output_type="np")
    own = with_classes(seeds=range(7, 13), class_labels=["dog", "cat", 3, "dog", "cat", 3], **run).images
    for k in range(6):
        with Image.open(tmp_path / "set" / "images" / f"{k:06d}.png") as image:
            assert np.abs(np.asarray(image) / 255 - own[k, ..., 0]).max() < 1.6 / 255
    (tmp_path / "set" / "images" / "000004.png").unlink()
    generate(with_classes, tmp_path / "set", num_images=7, guidance_interval=(0, 500), **GUIDED)
    completed = contents(tmp_path / "set")
    assert len(completed) == 7 and {name: completed[name] for name in made} == made
    generate(with_classes, tmp_path / "all", num_images=3, **GUIDED | {"class_labels": "all"})
    generate(with_classes, tmp_path / "out", num_images=6, grid=6, **GUIDED)
    grid = class_grid([Image.open(tmp_path / "out/images" / f"{k:06}.png") for k in range(6)], ["dog", "cat", "any"])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/samples.png")), np.asarray(grid))
    assert json.loads((tmp_path / "all" / "manifest.json").read_text())["class_labels"] == [0, 1, 2]


def test_files_of_others_do_not_end_a_run(model, tmp_path):
    """Files whose names `generate` does not write are counted as no images, and stay as they are, in a folder of PNG
    files as in one of arrays, whose grid leaves them out."""
    for format, copy in (("png", "000001-copy.png"), ("npy", "00000000-copy.npy")):
        pipe, folder = load_pipeline(model), tmp_path / format
        settings = {"num_inference_steps": 1, "max_batch_size": 2, "format": format, "num_images": 2}
        images = generate(pipe, folder, **settings)
        (images / copy).write_bytes(b"mine")
        (images / "notes.txt").write_bytes(b"mine")
        generate(pipe, folder, grid=2, **settings)
        assert (images / copy).read_bytes() == (images / "notes.txt").read_bytes() == b"mine"
        assert (folder / "samples.png").is_file()


def test_a_variance_that_is_not_drawn_is_refused(model, tmp_path, monkeypatch, capsys):
    """sample.py takes no sigma_hat at eta 0, which adds no noise; a model whose own it is samples plainly."""
    words = f"sample.py {model} --output_dir {tmp_path / 'out'} --variance sigma_hat"
    monkeypatch.setattr(sys, "argv", words.split())
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "examples/sample.py"), run_name="__main__")
    said = "error: variance is sigma_hat and eta is 0, which adds no noise; allowed: --eta 1, or --variance sigma\n"
    assert end.value.code == 2 and capsys.readouterr().err == said and not (tmp_path / "out").exists()
    pipe = load_pipeline(model, variance="sigma_hat")
    generate(pipe, tmp_path / "out", num_images=1, num_inference_steps=2)


def test_an_assigned_scheduler_is_refused(model, tmp_path):
    """A manifest tells the settings of our scheduler; a folder by another one is refused in one line."""
    pipe = load_pipeline(model)
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(
        ValueError, match="the scheduler is UniPCMultistepScheduler; allowed in a folder of images: DD"
    ):
        generate(pipe, tmp_path / "out", num_images=1, num_inference_steps=2)


def test_other_labels_and_guidance_are_refused(with_classes, tmp_path):
    """A folder goes on with its own labels and guidance alone; wrong ones are refused before there is a folder."""
    generate(with_classes, tmp_path / "set", num_images=2, **GUIDED)
    other = with_classes.unet
    for changed, message in [
        (dict(class_labels="dog"), r"class_labels \[1, 0, 3\] there, \[1\] asked for"),
        (dict(class_labels=None, guidance_scale=1), r"class_labels \[1, 0, 3\] there, \[3\] asked for"),
        (dict(guidance_scale=3), "guidance.scale 2.0 there, 3.0 asked for"),
        (dict(guidance_scale=1), "guidance {'scale': 2.0.* there, None asked for"),
        (dict(guidance_interval=(1, 9)), r"guidance.interval None there, \[1, 9\] asked for"),
        (dict(guide=other), "guidance.guide None there, [0-9a-f]{12}... asked for"),
    ]:
        with pytest.raises(ValueError, match=message):
            generate(with_classes, tmp_path / "set", num_images=2, **GUIDED | changed)
    for wrong in (dict(class_labels="bear"), dict(class_labels=[]), dict(class_labels=None), dict(guidance_scale=-1)):
        with pytest.raises(ValueError, match="allowed:"):
            generate(with_classes, tmp_path / "wrong", num_images=2, **GUIDED | wrong)
    assert not (tmp_path / "wrong").exists()
