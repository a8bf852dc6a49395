"""Patches of large pictures: which ones, what they hold, and that nothing is lost."""

import runpy
import sys
import warnings

import numpy as np
import pyarrow.parquet as parquet
import pytest
from image_files import noise, png
from PIL import Image
from training_runs import ROOT

from ddim_hf.data import load_images, patches
from ddim_hf.data.patches import make_patches

pytestmark = pytest.mark.usefixtures("own_caches")
OPTIONS = dict(resolution=8, overlap=0.5, flips=True)


@pytest.fixture
def pictures(tmp_path):
    """Three pictures of noise, of 20 x 12, 30 x 9 and 8 x 8 pixels."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for number, (name, size) in enumerate({"a.png": (20, 12), "deep/b.png": (30, 9), "c.png": (8, 8)}.items()):
        (folder / name).write_bytes(png(noise(size[1], size[0], seed=number)))
    return folder


def rows(output):
    return [row for file in sorted(output.glob("*.parquet")) for row in parquet.read_table(file).to_pylist()]


def crop(folder, row):
    """What a row's image has to be, cut from the picture by numpy."""
    pixels = np.asarray(Image.open(folder / row["picture"]))
    square = pixels[row["top"] : row["top"] + 8, row["left"] : row["left"] + 8]
    return (square[:, ::-1] if row["mirrored"] else square).transpose(2, 0, 1)


def test_patches_are_the_pictures_crops(tmp_path, pictures):
    """Each image of the set, read as training reads it, is the crop that its row says; the grid overlaps as asked and
    reaches every border, and each patch is there once as it is and once mirrored."""
    count = make_patches(pictures, tmp_path / "set", **OPTIONS)
    found, images = rows(tmp_path / "set"), load_images(str(tmp_path / "set"), resolution=8)
    assert count == len(found) == len(images) == 2 * (4 * 2 + 7 * 2 + 1)
    np.testing.assert_array_equal(images[:].numpy(), [crop(pictures, row) for row in found])
    where = {(row["picture"], row["left"], row["top"], row["mirrored"]) for row in found}
    assert len(where) == count
    assert {left for name, left, _, _ in where if name == "a.png"} == {0, 4, 8, 12}
    assert {top for name, _, top, _ in where if name == "a.png"} == {0, 4}


@pytest.mark.parametrize("wanted", [3, 12, 35])
def test_fewer_are_taken_evenly(tmp_path, pictures, wanted):
    """So many as are wanted, from each picture as many as from another unless it has no more; of one picture mirror
    images come after its own, and its own lie all over it."""
    assert make_patches(pictures, tmp_path / "set", num_images=wanted, **OPTIONS) == wanted
    by_picture = {}
    for row in rows(tmp_path / "set"):
        by_picture.setdefault(row["picture"], []).append(row)
    counts = {name: len(found) for name, found in by_picture.items()}
    most = max(counts.values())
    assert all(most - counts[name] <= 1 or counts[name] == full for name, full in (("a.png", 16), ("c.png", 2)))
    assert most - counts["deep/b.png"] <= 1
    for name, own in (("a.png", 8), ("deep/b.png", 14), ("c.png", 1)):
        assert sum(not row["mirrored"] for row in by_picture[name]) == min(counts[name], own)
    if wanted == 12:
        assert {row["top"] for row in by_picture["deep/b.png"]} == {0, 1}


def test_a_killed_call_is_completed(tmp_path, pictures, monkeypatch):
    """What is written stays, what is missing is made the same; another setting or other pictures are refused."""
    monkeypatch.setattr(patches, "SHARD_IMAGES", 10)
    make_patches(pictures, tmp_path / "whole", **OPTIONS)
    make_patches(pictures, tmp_path / "set", **OPTIONS)
    files = sorted((tmp_path / "set").iterdir())
    assert len(files) == 5
    for file in files[1:3]:
        file.unlink()
    kept = files[0].stat().st_mtime_ns
    assert make_patches(pictures, tmp_path / "set", **OPTIONS) == 46
    assert rows(tmp_path / "set") == rows(tmp_path / "whole") and files[0].stat().st_mtime_ns == kept
    with pytest.raises(ValueError, match="other settings: overlap 0.5 there, 0.25 asked for. Give another folder"):
        make_patches(pictures, tmp_path / "set", **OPTIONS | {"overlap": 0.25})
    picture = (pictures / "a.png").read_bytes()
    (pictures / "a.png").write_bytes(png(noise(12, 20, seed=9)))  # as large as it was
    with pytest.raises(ValueError, match="other settings: pictures"):
        make_patches(pictures, tmp_path / "set", **OPTIONS)
    (pictures / "a.png").write_bytes(picture)
    assert make_patches(pictures, tmp_path / "set", **OPTIONS) == 46
    (pictures / "a.png").unlink()
    with pytest.raises(ValueError, match="other settings: pictures"):
        make_patches(pictures, tmp_path / "set", **OPTIONS)


def test_what_cannot_be_cut_is_left_out_and_told(tmp_path, pictures):
    """Small, headless and torn pictures are named in a warning each, and the others' patches are all there."""
    (pictures / "small.png").write_bytes(png(noise(7, 90)))
    (pictures / "none.png").write_bytes(b"not a picture")
    (pictures / "photo.heic").write_bytes(b"not read")
    pages = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green")]
    pages[0].save(pictures / "pages.tif", save_all=True, append_images=pages[1:])
    torn = png(noise(64, 64))
    (pictures / "torn.png").write_bytes(torn[: len(torn) // 2])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert make_patches(pictures, tmp_path / "set", **OPTIONS) == 48
    texts = " | ".join(str(warning.message) for warning in told)
    assert "1 picture that cannot be read: none.png" in texts and "1 picture smaller than 8 pixels: small.png" in texts
    assert "left out 450 images of torn.png, which cannot be read" in texts
    assert "left out 1 image of a format that is not read: " in texts and "photo.heic" in texts
    assert "took the first of 1 file of several pictures (animations, pages): pages.tif" in texts


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_turned_and_transparent_pictures_are_cut_as_they_are_seen(tmp_path, suffix):
    """A picture that its EXIF data turn is cut upright, and transparency is laid on white."""
    (tmp_path / "pictures").mkdir()
    turned, exif = Image.fromarray(noise(16, 8)), Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / f"pictures/turned.{suffix}", exif=exif)
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(tmp_path / "pictures/clear.png")
    make_patches(tmp_path / "pictures", tmp_path / "set", resolution=8)
    images = load_images(str(tmp_path / "set"), resolution=8)[:].numpy()
    upright = np.rot90(noise(16, 8), -1).transpose(2, 0, 1)
    assert (images[0] == 255).all()
    np.testing.assert_array_equal(np.concatenate(images[1:], axis=2), upright)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--overlap", "1"], "overlap is 1; allowed: numbers from 0 below 1"),
        (["--num_images", "0"], "num_images is 0; allowed"),
        (["--num_images", "16"], "num_images is 16, and the pictures give 15; allowed: fewer"),
        (["--resolution", "99"], "is readable and 99 pixels wide and high"),
    ],
)
def test_wrong_settings_are_one_line(monkeypatch, tmp_path, pictures, capsys, words, said):
    """examples/make_patches.py says in one line what is wrong, and writes nothing."""
    words = ["make_patches.py", pictures, tmp_path / "set", "--resolution", "8", *words]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "examples/make_patches.py"), run_name="__main__")
    assert end.value.code == 2 and said in capsys.readouterr().err and not (tmp_path / "set").exists()
