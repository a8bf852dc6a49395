"""Every mode and size as pixels, on tiny images made here, and on CIFAR-10 where it is at hand."""

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from image_files import error_line, noise, one, saved
from PIL import Image

from ddim_hf.data import load_images

CIFAR = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10-jpeg"

pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "LA", "RGBA"])
def test_opaque_images_of_any_mode_equal_pillows_conversion(tmp_path, mode):
    """Every 8-bit mode, in one channel or three, is Pillow's own conversion, alpha of 255 changing nothing."""
    name = "0.tif" if mode == "CMYK" else "0.png"
    folder = saved(tmp_path / "images", Image.fromarray(noise()).convert(mode), name)
    with Image.open(folder / name) as image:
        assert image.mode == mode
        rgb = image.convert("RGB")
    np.testing.assert_array_equal(one(folder), np.asarray(rgb).transpose(2, 0, 1))
    np.testing.assert_array_equal(one(folder, channels=1)[0], np.asarray(rgb.convert("L")))


def test_alpha_is_laid_on_white(tmp_path):
    """Clear pixels are white whatever colour lies under them, in RGBA, LA and palettes; half clear is half white."""
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:4], rgba[4:] = (200, 0, 0, 0), (0, 0, 0, 128)
    pixels = one(saved(tmp_path / "rgba", Image.fromarray(rgba))).astype(int)
    assert (pixels[:, :4] == 255).all() and (abs(pixels[:, 4:] - 127) <= 1).all()
    assert (one(saved(tmp_path / "la", Image.new("LA", (8, 8), (0, 0))), channels=1) == 255).all()
    assert (one(saved(tmp_path / "p", Image.new("P", (8, 8), 0), transparency=0)) == 255).all()


@pytest.mark.parametrize(
    ("dtype", "top", "name"),
    [
        *((np.uint16, 65535, "0.png"), (np.uint16, 65535, "0.tif"), (np.float32, 1, "0.tif")),
        *((np.int32, 65535, "0.tif"), (np.int32, 255, "0.tif")),
    ],
)
def test_deep_greys_are_scaled_and_not_clipped(tmp_path, dtype, top, name):
    """16-bit, 32-bit and float images become round(255 x / top) in 8 bits, over their whole range."""
    ramp = np.linspace(0, top, 64).reshape(8, 8).astype(dtype)
    folder = saved(tmp_path / "deep", Image.fromarray(ramp), name)
    np.testing.assert_array_equal(one(folder, channels=1)[0], np.round(ramp.astype(np.float64) * 255 / top))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_whose_zero_is_white_is_no_negative(tmp_path, dtype):
    """Of 8 bits and of 16 alike, what such a file has as 0 is white (TIFF's PhotometricInterpretation 0)."""
    top = np.iinfo(dtype).max
    ramp = np.linspace(0, top, 64).reshape(8, 8).astype(dtype)
    folder = saved(tmp_path / "film", Image.fromarray(top - ramp), "0.tif")
    encoded = bytearray((folder / "0.tif").read_bytes())
    entry = encoded.index(struct.pack("<HHI", 262, 3, 1)) + 8  # the tag, a short, one of it: then its value
    encoded[entry : entry + 2] = struct.pack("<H", 0)
    (folder / "0.tif").write_bytes(encoded)
    np.testing.assert_array_equal(one(folder, channels=1)[0], np.round(ramp.astype(np.float64) * 255 / top))


def test_a_transparent_grey_of_16_bits_is_laid_on_white(tmp_path):
    """The one value that a 16-bit PNG calls transparent is white, and others that are the same in 8 bits are not."""
    values = np.full((8, 8), 600, np.uint16)
    values[:4] = 601
    pixels = one(saved(tmp_path / "clear", Image.fromarray(values), transparency=601), channels=1)
    assert (pixels[0, :4] == 255).all() and (pixels[0, 4:] == 2).all()


def test_the_first_of_several_pictures_is_taken_and_that_is_said(tmp_path):
    """Animations and pages are counted in a warning when they are decoded, and their first picture is the image."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green")]
    folder = saved(tmp_path / "images", frames[0], "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "b.tif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "c.png")
    with pytest.warns(UserWarning, match=r"2 images of several pictures .*: the first is taken, as of .*a\.gif"):
        images = load_images(str(folder), resolution=8)
    assert (images[:].numpy() == np.array([255, 0, 0]).reshape(1, 3, 1, 1)).all()


def test_values_beyond_any_known_range_are_refused(tmp_path):
    """A 32-bit image with values above 16 bits, or one that is not finite, is named and not guessed at."""
    for folder, values in (("deep", np.full((8, 8), 1 << 20, np.int32)), ("nan", np.full((8, 8), np.nan, np.float32))):
        assert "0.tif" in error_line(ValueError, saved(tmp_path / folder, Image.fromarray(values), "0.tif"))


def test_exif_orientation_is_respected(tmp_path):
    """A photograph marked as turned by 90 degrees comes out upright."""
    exif = Image.Exif()
    exif[0x0112] = 6  # the stored image is to be turned clockwise
    folder = saved(tmp_path / "photo", Image.fromarray(noise()), exif=exif)
    np.testing.assert_array_equal(one(folder), np.rot90(noise(), -1).transpose(2, 0, 1))


def test_images_are_centre_cropped_and_resized_with_antialiasing(tmp_path):
    """At the right height only the centre is cut out, bit for bit; a fine checkerboard shrinks to grey, no aliases."""
    folder = saved(tmp_path / "wide", Image.fromarray(noise(8, 14)))
    np.testing.assert_array_equal(one(folder), noise(8, 14)[:, 3:11].transpose(2, 0, 1))
    board = (np.indices((64, 96)).sum(0) % 2 * 255).astype(np.uint8)
    shrunk = one(saved(tmp_path / "board", Image.fromarray(board)), channels=1)
    assert shrunk.shape == (1, 8, 8) and abs(shrunk - 127.5).max() < 4
    assert one(saved(tmp_path / "small", Image.fromarray(noise(3, 5)))).shape == (3, 8, 8)


@pytest.mark.skipif(not CIFAR.is_dir(), reason="the CIFAR-10 files are not at hand")
def test_cifar10_is_decoded_bit_for_bit():
    """The 10,000 test images of CIFAR-10 in the Hub's layout equal Pillow's own decoding of the parquet's rows."""
    images = load_images(str(CIFAR), split="test")
    rows = pyarrow.parquet.read_table(CIFAR / "data" / "test-00000-of-00001.parquet")["img"]
    assert images.shape == (10000, 3, 32, 32)
    picks = [9999, *range(0, 10000, 997)]
    pillow = [np.asarray(Image.open(io.BytesIO(rows[pick].as_py()["bytes"]))).transpose(2, 0, 1) for pick in picks]
    np.testing.assert_array_equal(images[picks], pillow)


def test_colours_that_are_made_grey_are_counted(tmp_path):
    """Colour images among greys, which only decoding finds, are told with their number and the first of them."""
    (tmp_path / "images").mkdir()
    for number in range(6):
        Image.new("RGB" if number in (2, 5) else "L", (8, 8), 40).save(tmp_path / "images" / f"{number}.png")
    asked = {"resolution": 8, "cache_dir": tmp_path / "cache"}
    with pytest.warns(UserWarning, match=r"2 images in colour made grey, as .*2\.png"):
        load_images(str(tmp_path / "images"), channels=1, **asked)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_images(str(tmp_path / "images"), channels=3, **asked)
