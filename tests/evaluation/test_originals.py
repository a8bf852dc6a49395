"""Folders of images, read as clean-fid's own reader gives them."""

import numpy as np
import pytest
import torch
from cleanfid import fid as cleanfid
from conftest import tiny_unet
from PIL import Image

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom
from ddim_hf.calibration import describe_sampler
from ddim_hf.evaluation import evaluate, kernel_distance
from ddim_hf.evaluation.features import load_feature_extractor
from ddim_hf.evaluation.frechet import Statistics, frechet_distance
from ddim_hf.evaluation.originals import load_originals
from ddim_hf.generation import generate, load_pipeline


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


def test_the_folder_that_sampling_left_is_its_images_alone(files, tmp_path):
    """Given sample.py's own folder, the distance is that of images/, not of the grid and GIF beside it."""
    pipe = load_pipeline(str(files / "tiny"))
    generate(pipe, tmp_path / "out", num_images=8, num_inference_steps=2, grid=4, gif=True)
    settings = {"feature_extractor": files / "features.pt", "cache_dir": tmp_path / "cache"}
    whole = evaluate(str(tmp_path / "out"), "digits", tmp_path / "a.json", **settings)
    images = evaluate(str(tmp_path / "out/images"), "digits", tmp_path / "b.json", **settings)
    assert whole[0]["value"] == images[0]["value"] and whole[0]["num_images"] == 8


def test_a_run_that_has_not_finished_is_no_folder_of_images(files, tmp_path):
    """Its grids are not taken for samples."""
    (tmp_path / "run/samples").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text("{}")
    Image.new("L", (8, 8)).save(tmp_path / "run/samples/grid.png")
    with pytest.raises(FileNotFoundError, match="run that has not finished"):
        evaluate(str(tmp_path / "run"), "digits", tmp_path / "r.json", feature_extractor=files / "features.pt")


def mixed_folder(folder, seed, count=40):
    """Images of all modes and sizes, square or not, in three formats, some in a folder below; grey and small first."""
    random = np.random.default_rng(seed)
    (folder / "below").mkdir(parents=True)
    for i in range(count):
        height, width = (8, 8) if i == 0 else random.integers(9, 40, 2)
        pixels = random.integers(seed, 256, (height, width, 4), dtype=np.uint8)
        mode = ("L", "RGB", "RGBA", "P", "1", "LA")[i % 6]
        image = Image.fromarray(pixels).convert(mode)
        suffix = "jpg" if mode in ("L", "RGB") and i % 4 == 1 else "bmp" if mode == "1" else "png"
        image.save((folder / "below" if i % 5 == 4 else folder) / f"{i:03d}.{suffix}")
    Image.fromarray(random.integers(0, 2**16, (10, 12), dtype=np.uint16)).save(folder / "sixteen.png")
    return folder


def same_inception(files, folder):
    """clean-fid's own module around our file of weights."""
    from cleanfid.inception_torchscript import InceptionV3W

    folder.mkdir()
    (folder / "inception-2015-12-05.pt").write_bytes((files / "inception.pt").read_bytes())
    return InceptionV3W(str(folder), download=False, resize_inside=False)


@pytest.mark.slow
def test_mixed_folders_are_read_as_cleanfid_reads_them(files, tmp_path):
    """Folders of mixed modes and sizes have clean-fid's own features, to the bit, and distance and KID, to 1e-6."""
    a, b = (mixed_folder(tmp_path / name, seed) for seed, name in ((0, "a"), (90, "b")))
    (a / "._000.png").write_bytes(b"not an image")  # hidden files are no images, there as here
    inception = same_inception(files, tmp_path / "inception")
    options = {"num_workers": 0, "device": "cpu", "verbose": False, "mode": "clean"}
    extractor = load_feature_extractor(inception_weights=files / "inception.pt", device="cpu")
    features = [cleanfid.get_folder_features(str(folder), inception, **options) for folder in (a, b)]
    ours = load_originals(str(a), cache_dir=tmp_path)
    assert len(ours) == 41 and np.array_equal(extractor(ours[range(41)]), features[0])

    settings = {"inception_weights": files / "inception.pt", "cache_dir": tmp_path, "kid": True}
    fid, kid = evaluate(str(a), str(b), tmp_path / "r.json", **settings)
    assert fid["metric"] == "fid" and fid["num_images"] == fid["num_reference"] == 41
    exact = frechet_distance(*(Statistics().update(part) for part in features))
    assert fid["value"] == pytest.approx(exact, rel=1e-9)
    theirs = cleanfid.compute_fid(str(a), str(b), custom_feat_extractor=inception, **options)
    assert fid["value"] == pytest.approx(theirs, rel=1e-3)  # its own rounding, with fewer images than features
    assert kid["value"] == pytest.approx(kernel_distance(features[1], features[0], 0), rel=1e-6)


def test_the_first_files_colour_does_not_count(files, tmp_path):
    """Red against green images are as far apart as clean-fid finds them, though a grey one sorts first."""
    random = np.random.default_rng(0)
    for name, channel in (("red", 0), ("green", 1)):
        (tmp_path / name).mkdir()
        for i in range(40):
            pixels = np.zeros((12, 16, 3), np.uint8)
            pixels[..., channel] = random.integers(100, 256, (12, 16))
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
        Image.new("L", (16, 12), 128).save(tmp_path / name / "-.png")
    theirs = cleanfid.compute_fid(
        str(tmp_path / "red"),
        str(tmp_path / "green"),
        custom_feat_extractor=torch.jit.load(files / "features.pt"),
        custom_fn_resize=lambda x: x,
        num_workers=0,
        device="cpu",
        verbose=False,
    )
    settings = {"feature_extractor": files / "features.pt", "cache_dir": tmp_path}
    (row,) = evaluate(str(tmp_path / "red"), str(tmp_path / "green"), tmp_path / "r.json", **settings)
    assert row["value"] == pytest.approx(theirs, abs=1e-6) and theirs > 0.01


def test_one_reader_for_both_sides(files, tmp_path):
    """What sample.py leaves, as PNG with a grid and a GIF or as npy, is its images alone on either side: its distance
    to itself is 0, and the formats do not differ."""
    pipe = load_pipeline(str(files / "tiny"))
    for name, options in (("png", {"grid": 4, "gif": True}), ("npy", {"format": "npy"})):
        generate(pipe, tmp_path / name, num_images=12, num_inference_steps=2, **options)
    (tmp_path / "png/images/._000000.png").write_bytes(b"not an image")
    settings = {"feature_extractor": files / "features.pt", "cache_dir": tmp_path / "cache"}
    for number, model in enumerate(("png", "npy", "png/images", "npy/images")):
        (row,) = evaluate(str(tmp_path / model), str(tmp_path / "png"), tmp_path / f"{number}.json", **settings)
        assert row["value"] == pytest.approx(0, abs=1e-9) and row["num_images"] == row["num_reference"] == 12
    (row,) = evaluate(str(tmp_path / "npy"), "digits", tmp_path / "r.json", **settings)
    model = {"num_images": 12, "num_inference_steps": [2]}
    (of_model,) = evaluate(str(files / "tiny"), "digits", tmp_path / "model.json", **model, **settings)
    assert (
        row["value"] == pytest.approx(of_model["value"], rel=1e-5) and row["weights_hash"] == of_model["weights_hash"]
    )


def test_a_folder_of_samples_says_how_they_were_made(files, tmp_path):
    """The row of a folder that was sampled with classes, guidance or a fitted schedule says so, as a model's does."""
    classes = DDIMCustomPipeline(tiny_unet(num_class_embeds=3), DDIMSchedulerCustom())
    guided = {"class_labels": "all", "guidance_scale": 2.5, "guidance_interval": (100, 900), "guide": classes}
    generate(classes, tmp_path / "guided", num_images=4, num_inference_steps=2, **guided)
    fitted = load_pipeline(files / "tiny")
    schedule = {"timesteps": [900, 50], "weights": [[1, 0, 0], [1, 0, 0]]}
    record = {"weights_hash": fitted._weights_hash(), "sampler": describe_sampler(fitted.scheduler.config)}
    fitted.scheduler.change_config(calibrated_schedules=record | {"schedules": {"2": schedule}})
    generate(fitted, tmp_path / "fitted", num_images=4, num_inference_steps=2)
    fitted.save_pretrained(tmp_path / "model")

    settings = {"feature_extractor": files / "features.pt", "cache_dir": tmp_path / "cache"}
    (row,) = evaluate(str(tmp_path / "guided"), "digits", tmp_path / "guided.json", **settings)
    assert row["class_labels"] == [0, 1] and row["guidance_scale"] == 2.5 and row["guidance_interval"] == [100, 900]
    assert row["implementation"] == "ddim_hf" and row["guide"] == classes._weights_hash()
    (row,) = evaluate(str(tmp_path / "fitted"), "digits", tmp_path / "fitted.json", **settings)
    model = {"num_images": 4, "num_inference_steps": [2], "calibrated": True}
    *_, of_model = evaluate(str(tmp_path / "model"), "digits", tmp_path / "model.json", **model, **settings)
    assert row["implementation"] == of_model["implementation"] == "ddim_hf calibrated"
    assert row["schedule"] == of_model["schedule"]


def test_a_file_that_is_no_image_is_named(files, tmp_path):
    """An image that cannot be read ends the evaluation with its name."""
    folder = mixed_folder(tmp_path / "a", 0, 5)
    (folder / "torn.png").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"a/torn\.png cannot be read"):
        evaluate(
            str(folder), "digits", tmp_path / "r.json", feature_extractor=files / "features.pt", cache_dir=tmp_path
        )
