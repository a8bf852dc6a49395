"""Figures: clean-fid's own, ordered as they should be, with their protocol, and not measured twice."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom
from ddim_hf.data import load_images
from ddim_hf.evaluation import distances, evaluate, kernel_distance
from ddim_hf.evaluation.errors import denoising_loss, reconstruction_error
from ddim_hf.evaluation.features import FeatureExtractor, load_feature_extractor
from ddim_hf.evaluation.frechet import Statistics, frechet_distance
from ddim_hf.evaluation.references import reference_statistics
from ddim_hf.generation import generate, load_pipeline

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
cleanfid = pytest.importorskip("cleanfid.fid")


class Features(torch.nn.Module):
    """Eight filters, their means and maxima: features [N, 16] of float images 0..255."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)

    def forward(self, x):
        x = torch.relu(self.conv(x / 255))
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)


class Layers(torch.nn.Module):
    """Inception's interface: images in about [-1, 1] to features [N, 2048]."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 32, 9, stride=8)

    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(torch.relu(self.conv(x)), 8).flatten(1)


class Inception(torch.nn.Module):
    """What clean-fid expects in inception-2015-12-05.pt."""

    def __init__(self):
        super().__init__()
        self.layers = Layers()

    def forward(self, x, return_features: bool = True):
        x = torch.nn.functional.interpolate(x, size=(299, 299), mode="bilinear")
        return self.layers((x - 128) / 128)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """TorchScript files: `features.pt` and `inception.pt`; and a model, `tiny`."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    torch.jit.script(Features()).save(folder / "features.pt")
    torch.jit.script(Inception()).save(folder / "inception.pt")
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    size = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (4, 8)}
    unet = UNet2DModel(**blocks, **size, layers_per_block=1, norm_num_groups=2)
    DDIMCustomPipeline(unet, DDIMSchedulerCustom()).save_pretrained(folder / "tiny")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of colour images of 16 pixels: smooth ones, and the same kind with noise."""
    root, random = tmp_path_factory.mktemp("folders"), np.random.default_rng(0)
    for name, noise in (("a", 0), ("b", 30)):
        (root / name).mkdir()
        for i in range(60):
            small = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((16, 16))
            pixels = np.asarray(small) + noise * random.standard_normal((16, 16, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{i:03d}.png")
    return root


def pixels(folder):
    return torch.stack([torch.from_numpy(np.array(Image.open(f))).permute(2, 0, 1) for f in sorted(folder.iterdir())])


# The distance


def test_the_distance_is_cleanfids():
    """With more images than features the distance is clean-fid's within 1e-6, however the images were batched."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((500, 64)) @ rng.standard_normal((64, 64)), rng.standard_normal((300, 64)) + 0.3
    theirs = cleanfid.frechet_distance(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))
    whole = Statistics()
    for part in np.split(a, [1, 40, 480]):
        whole.merge(Statistics().update(part))
    assert frechet_distance(whole, Statistics().update(b)) == pytest.approx(theirs, abs=1e-6)
    np.testing.assert_allclose(whole.covariance, np.cov(a, rowvar=False), atol=1e-12)
    assert whole.reduced().count == 500


def test_few_images_lose_no_digits():
    """With fewer images than features the distance is the one computed from the images themselves, to 1e-9."""
    random = np.random.default_rng(0)
    a, b = random.standard_normal((30, 256)), random.standard_normal((400, 256)) * np.exp(-np.arange(256) / 20)
    roots = [(x - x.mean(0)).T / np.sqrt(len(x) - 1) for x in (a, b)]
    overlap = np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    exact = ((a.mean(0) - b.mean(0)) ** 2).sum() + sum((root**2).sum() for root in roots) - 2 * overlap
    assert frechet_distance(Statistics().update(a), Statistics().update(b)) == pytest.approx(exact, abs=1e-9)


def test_a_set_against_itself_is_zero(files, folders):
    """The distance of a set with itself is under 1e-3, on 16 features and on 2048."""
    for arguments in ({"feature_extractor": files / "features.pt"}, {"inception_weights": files / "inception.pt"}):
        features = load_feature_extractor(**arguments, device="cpu")(pixels(folders / "a"))[:40]
        statistics = Statistics().update(features[:, :512])
        assert frechet_distance(statistics, statistics) < 1e-3


@pytest.mark.parametrize("mode", ["clean", "legacy_tensorflow"])
def test_features_are_cleanfids(files, folders, tmp_path, mode):
    """Inception's features of a folder are those of clean-fid's own path, to the bit, in either mode."""
    from cleanfid.inception_torchscript import InceptionV3W

    (tmp_path / "inception-2015-12-05.pt").write_bytes((files / "inception.pt").read_bytes())
    model = InceptionV3W(str(tmp_path), download=False, resize_inside=mode == "legacy_tensorflow")
    theirs = cleanfid.get_folder_features(
        str(folders / "b"), model, num_workers=0, batch_size=60, device="cpu", mode=mode, verbose=False
    )
    extractor = load_feature_extractor(inception_weights=files / "inception.pt", mode=mode, device="cpu")
    assert np.array_equal(extractor(pixels(folders / "b")), theirs) and theirs.shape == (60, 2048)
    assert (extractor.name, extractor.metric) == (f"inception-{mode}", "fid")


def test_legacy_pytorch_takes_a_file_of_weights(tmp_path, folders, monkeypatch):
    """In mode legacy_pytorch the weights come from the file, and the features are clean-fid's own with them."""
    from cleanfid import features, inception_pytorch

    torch.manual_seed(0)
    made = {}
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda self, state: made.update(self.state_dict()))
    monkeypatch.setattr(inception_pytorch, "load_state_dict_from_url", lambda *args, **keywords: {})
    theirs = features.build_feature_extractor("legacy_pytorch", torch.device("cpu"), use_dataparallel=False)
    monkeypatch.undo()
    torch.save(made, tmp_path / "weights.pth")
    ours = load_feature_extractor(inception_weights=tmp_path / "weights.pth", mode="legacy_pytorch", device="cpu")
    files = sorted(map(str, (folders / "a").iterdir()))[:2]
    expected = cleanfid.get_files_features(
        files, theirs, num_workers=0, device="cpu", mode="legacy_pytorch", verbose=False
    )
    np.testing.assert_array_equal(ours(pixels(folders / "a")[:2]), expected)


def test_two_folders_give_cleanfids_own_figure(files, folders, tmp_path):
    """evaluate on two folders gives clean-fid's own distance on them within 1e-6, named as what it is."""
    model = torch.jit.load(files / "features.pt")
    theirs = cleanfid.compute_fid(
        *(str(folders / name) for name in "ab"),
        custom_feat_extractor=model,
        custom_fn_resize=lambda x: x,
        num_workers=0,
        device="cpu",
        verbose=False,
    )
    rows = evaluate(
        str(folders / "a"),
        str(folders / "b"),
        tmp_path / "results.json",
        feature_extractor=files / "features.pt",
        cache_dir=tmp_path,
    )
    assert rows[0]["value"] == pytest.approx(theirs, abs=1e-6) and theirs > 0.01
    assert rows[0]["metric"] == "frechet_distance" and rows[0]["feature_extractor"] == "features.pt"


def test_more_noise_is_further_away(files):
    """The distance grows with the noise on the images."""
    extractor = load_feature_extractor(files / "features.pt", device="cpu")
    assert_grows(extractor, load_images("digits", resolution=8, channels=1)[:], (0, 10, 30, 60, 100))


@pytest.mark.skipif(not (SHARED / "features").is_dir(), reason="the features trained on CIFAR-10 are not here")
def test_more_noise_is_further_away_on_cifar10_features(tmp_path):
    """So it does for CIFAR-10 on features trained on it."""
    extractor = load_feature_extractor(SHARED / "features/cifar10_features.pt", device="cpu")
    images = load_images(str(SHARED / "data/cifar10-jpeg"), split="test", resolution=32, cache_dir=tmp_path)
    assert_grows(extractor, images[:400], (0, 10, 20, 40))


def assert_grows(extractor, images, levels):
    half = len(images) // 2
    reference = Statistics().update(extractor(images[:half]))
    noise = torch.randn(images[half:].shape, generator=torch.Generator().manual_seed(0))
    noisy = [(images[half:] + level * noise).round().clamp(0, 255).to(torch.uint8) for level in levels]
    found = [frechet_distance(Statistics().update(extractor(x)), reference) for x in noisy]
    assert found == sorted(found) and found[-1] > 3 * found[0], found


def test_the_kernel_distance_is_cleanfids_and_repeats():
    """KID is clean-fid's own with its random subsets fixed, and leaves numpy's generator as it was."""
    random = np.random.default_rng(0)
    a, b = random.standard_normal((50, 8)), random.standard_normal((60, 8)) + 1
    np.random.seed(3)
    theirs, state = cleanfid.kernel_distance(a, b), np.random.get_state()[1].tolist()
    assert kernel_distance(a, b, seed=3) == kernel_distance(a, b, seed=3) == theirs > 0
    assert np.random.get_state()[1].tolist() == state


def test_the_reference_is_kept_by_content(files, tmp_path):
    """A reference is computed once for each content and extractor, and a kept one is taken as it is."""
    extractor = load_feature_extractor(files / "features.pt", device="cpu")
    images = load_images("digits", split="test", resolution=8, channels=1)
    first = reference_statistics(images, extractor, tmp_path, batch_size=50)
    extractor._forward = None  # calling it would fail
    assert np.array_equal(reference_statistics(images, extractor, tmp_path).mean, first.mean)
    other = load_images("digits", split="train", resolution=8, channels=1)
    with pytest.raises(TypeError):
        reference_statistics(other, extractor, tmp_path)
    assert len(list((tmp_path / "features").glob("*.npz"))) == 1


# Errors on data


def test_the_denoising_loss_of_no_prediction_is_one(files):
    """A network that predicts no noise has loss 1, in every range of timesteps, and the batch size changes nothing."""
    pipe = DDIMCustomPipeline.from_pretrained(files / "tiny")
    images = load_images("digits", split="train", resolution=8, channels=1)
    loss = denoising_loss(pipe, images, num_images=30, seed=1, max_batch_size=7)[0]
    assert denoising_loss(pipe, images, num_images=30, seed=1, max_batch_size=30)[0] == pytest.approx(loss, rel=1e-5)
    assert denoising_loss(pipe, images, num_images=30, seed=2)[0] != pytest.approx(loss, rel=1e-5)
    for parameter in pipe.unet.conv_out.parameters():
        parameter.data.zero_()
    loss, ranges = denoising_loss(pipe, images, seed=0)
    assert loss == pytest.approx(1, abs=0.02) and len(ranges) == 10
    assert all(value == pytest.approx(1, abs=0.05) for *_, value in ranges)
    assert [edges[:2] for edges in ranges][::9] == [[0, 99], [900, 999]]


def test_the_reconstruction_error_is_the_mean_over_images(files):
    """The reconstruction error is the mean of what `reconstruct` reports, whatever the batch size."""
    pipe = DDIMCustomPipeline.from_pretrained(files / "tiny")
    images = load_images("digits", split="test", resolution=8, channels=1)
    expected = pipe.reconstruct(images[:10], 4).mse.mean().item()
    assert reconstruction_error(pipe, images, 4, num_images=10, max_batch_size=4) == pytest.approx(expected, rel=1e-4)


# The table


TABLE = {"num_inference_steps": [2, 4], "eta": [0.0, 1.0], "variance": ["sigma", "sigma_hat"], "num_images": 32}


def test_fast_sampling_is_recorded_of_ours_alone(files, tmp_path):
    """With --fast, stock still runs the plain network: its row says so and has the figure that it has without."""
    settings = {"num_inference_steps": [2], "num_images": 4, "feature_extractor": files / "features.pt"}
    settings |= {"cache_dir": tmp_path, "also_stock": True, "max_batch_size": 4}
    plain, rows = (
        evaluate(str(files / "tiny"), "digits", tmp_path / f"{fast}.json", **settings, fast=fast)
        for fast in (False, True)
    )
    networks = {row["implementation"]: row["network"] for row in rows}
    assert networks["stock"] == "float32" and networks["ddim_hf"].startswith("fast sampling")
    assert rows[1]["value"] == plain[1]["value"] and rows[1]["implementation"] == "stock"


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
    settings = {**TABLE, "feature_extractor": files / "features.pt", "cache_dir": tmp_path, "also_stock": True}
    rows = evaluate(*arguments, **settings)
    value = {(r["implementation"], r["variance"], r["eta"], r["num_inference_steps"]): r["value"] for r in rows}
    assert len(rows) == len(value) == 10  # 2 eta x 2 S of each, and sigma_hat at eta 1 of ours
    for (name, *cell), figure in value.items():
        assert name == "ddim_hf" or figure == pytest.approx(value[("ddim_hf", *cell)], rel=1e-3)
    expected = {"metric": "frechet_distance", "num_images": 32, "num_reference": 1797, "seed": 0, "tau": "uniform"}
    assert expected.items() <= rows[0].items() and rows[0]["reference"] == "digits"
    assert all(len(rows[0][key]) == 64 for key in ("feature_extractor_hash", "weights_hash"))
    assert "features 0" in capsys.readouterr().out

    content = json.loads((tmp_path / "results.json").read_text())
    assert content["results"] == rows and "torch" in content["versions"] and content["machine"]
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


def test_a_cpu_is_not_shared_with_a_second_thread():
    """Features are computed by the thread that samples: another one's OpenMP threads would slow the sampling down."""
    threads = set()

    def forward(images):
        threads.add(threading.current_thread())
        return images.flatten(1)[:, :4]

    def make(block, seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return torch.stack([torch.randint(256, (3, 2, 2), generator=g).to(torch.uint8) for g in generators])

    extractor = FeatureExtractor("first pixels", "", forward, None, torch.device("cpu"))
    reference = Statistics().update(np.random.default_rng(0).uniform(0, 255, (50, 4)).astype(np.float32))
    found = distances(make, extractor, reference, num_images=30, block=8)
    assert threads == {threading.current_thread()}
    images = np.concatenate([make(1, [seed]) for seed in range(30)])
    assert found["frechet_distance"] == pytest.approx(
        frechet_distance(Statistics().update(extractor(torch.from_numpy(images))), reference), rel=1e-9
    )
    assert 0 < found["seconds_features"] <= found["seconds_waiting"] <= found["seconds"]


# Bad input


def test_a_run_that_has_not_finished_is_no_folder_of_images(files, tmp_path):
    """Its grids are not taken for samples."""
    (tmp_path / "run/samples").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text("{}")
    Image.new("L", (8, 8)).save(tmp_path / "run/samples/grid.png")
    with pytest.raises(FileNotFoundError, match="run that has not finished"):
        evaluate(str(tmp_path / "run"), "digits", tmp_path / "r.json", feature_extractor=files / "features.pt")


def test_without_weights_or_network_one_line_names_the_options(monkeypatch, tmp_path):
    """Without Inception's weights and without network one line names both options."""
    from cleanfid import downloads_helper

    if Path("/tmp/inception-2015-12-05.pt").exists():
        pytest.skip("Inception's weights are here")
    monkeypatch.setattr(downloads_helper, "inception_url", f"file://{tmp_path}/none")
    with pytest.raises(FileNotFoundError, match="--inception_weights FILE.* or --feature_extractor FILE") as error:
        load_feature_extractor()
    assert "\n" not in str(error.value)


def test_precomputed_statistics_are_cleanfids(monkeypatch, tmp_path, files):
    """A reference "cifar10/train" is clean-fid's own file of statistics, of Inception alone."""
    import cleanfid as package

    from ddim_hf.evaluation import load_reference

    monkeypatch.setattr(package, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "stats").mkdir()
    np.savez(tmp_path / "stats/cifar10_clean_train_32.npz", mu=np.arange(3.0), sigma=np.eye(3))
    inception = load_feature_extractor(inception_weights=files / "inception.pt", device="cpu")
    reference = load_reference("cifar10/train", resolution=32, channels=3, extractor=inception)
    statistics = reference.statistics(inception, "clean", None)
    assert np.array_equal(statistics.mean, np.arange(3.0)) and np.array_equal(statistics.covariance, np.eye(3))
    own = load_feature_extractor(files / "features.pt", device="cpu")
    with pytest.raises(ValueError, match="features.pt needs images"):
        load_reference("cifar10/train", resolution=32, channels=3, extractor=own)


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


def test_the_folder_that_sampling_left_is_its_images_alone(files, tmp_path):
    """Given sample.py's own folder, the distance is that of images/, not of the grid and GIF beside it."""
    pipe = load_pipeline(str(files / "tiny"))
    generate(pipe, tmp_path / "out", num_images=8, num_inference_steps=2, grid=4, gif=True)
    settings = {"feature_extractor": files / "features.pt", "cache_dir": tmp_path / "cache"}
    whole = evaluate(str(tmp_path / "out"), "digits", tmp_path / "a.json", **settings)
    images = evaluate(str(tmp_path / "out/images"), "digits", tmp_path / "b.json", **settings)
    assert whole[0]["value"] == images[0]["value"] and whole[0]["num_images"] == 8
