"""Images in: every source, mode and fault, on tiny images made here, and on CIFAR-10 where it is at hand."""

import io
import multiprocessing
import os
import shutil
import socket
import sys
import warnings
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from ddim_hf.data import image_set as data
from ddim_hf.data import load_images

CIFAR = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10-jpeg"


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("DDIM_HF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def noise(height=8, width=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


def write_folder(folder, count=5):
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:03}.png").write_bytes(png(noise(seed=number)))
    return folder


def saved(folder, image, name="0.png", **options):
    folder.mkdir()
    image.save(folder / name, **options)
    return folder


def one(folder, channels=3):
    return load_images(str(folder), resolution=8, channels=channels)[[0]][0].numpy()


def expected(count=5):
    return np.stack([noise(seed=number).transpose(2, 0, 1) for number in range(count)])


def dataset(count=5, columns=("image",)):
    images = {column: [{"bytes": png(noise(seed=i)), "path": None} for i in range(count)] for column in columns}
    features = {column: datasets.Image() for column in columns} | {"label": datasets.Value("int64")}
    return datasets.Dataset.from_dict(images | {"label": list(range(count))}, datasets.Features(features))


def error_line(kind, name, **options):
    with pytest.raises(kind) as caught:
        load_images(str(name), **({"resolution": 8} | options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- Sources


def test_digits_are_the_real_ones_and_the_test_split_is_held_out():
    """The digits at 8 pixels are scikit-learn's values times 255/16, and train and test divide them."""
    from sklearn.datasets import load_digits

    real = np.round(load_digits().images * 255 / 16).astype(np.uint8)[:, None]
    whole, train, test = (load_images("digits", split=s, resolution=8, channels=1) for s in (None, "train", "test"))
    assert whole.shape == (1797, 1, 8, 8) and len(train) == 1617 and len(test) == 180
    np.testing.assert_array_equal(whole[:], real)
    np.testing.assert_array_equal(test[:], real[::10])
    np.testing.assert_array_equal(train[:], np.delete(real, slice(None, None, 10), axis=0))
    assert len({whole.fingerprint, train.fingerprint, test.fingerprint}) == 3
    assert load_images("digits", resolution=16).shape == (1797, 3, 16, 16)
    assert "choose from ['test', 'train']" in error_line(ValueError, "digits", split="validation")


def test_every_local_form_of_the_same_images_gives_the_same_set_without_network(tmp_path, no_network):
    """A folder, a parquet file, a Hub-layout folder and both kinds of save_to_disk agree, fingerprints included."""
    write_folder(tmp_path / "plain")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    dataset().to_parquet(tmp_path / "one.parquet")
    dataset().to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    dataset(2).to_parquet(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet")
    dataset().save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(train=dataset(), test=dataset(2)).save_to_disk(tmp_path / "saved_dict")
    fingerprint = load_images(str(tmp_path / "plain"), resolution=8).fingerprint
    for form in ("plain", "one.parquet", "hub", "saved", "saved_dict"):
        name = str(tmp_path / form)
        images = load_images(name, resolution=8, split="train")
        assert (images.name, images.split, images.fingerprint) == (name, "train", fingerprint)
        assert images.shape == (5, 3, 8, 8) and len(images) == 5
        np.testing.assert_array_equal(images[:], expected())
        if form in ("hub", "saved_dict"):
            np.testing.assert_array_equal(load_images(name, split="test", resolution=8)[:], expected(2))
        assert "no split 'dev': choose from ['train'" in error_line(ValueError, name, split="dev")


def test_class_folders_are_one_set_and_split_folders_are_splits(tmp_path):
    """Class sub-folders are read in the order of their paths, without hidden files; train/ and test/ are splits."""
    for name in ("b", "a/deep"):
        write_folder(tmp_path / "classes" / name, 2)
    (tmp_path / "classes" / "a" / "._x.png").write_bytes(b"not an image")
    (tmp_path / "classes" / "notes.txt").write_text("not an image")
    both = load_images(str(tmp_path / "classes"), resolution=8)
    np.testing.assert_array_equal(both[:], np.concatenate([expected(2), expected(2)]))
    write_folder(tmp_path / "splits" / "train" / "cat", 3)
    write_folder(tmp_path / "splits" / "test" / "cat", 2)
    assert len(load_images(str(tmp_path / "splits"), resolution=8)) == 3
    assert len(load_images(str(tmp_path / "splits"), resolution=8, split="test")) == 2


def test_the_image_column_is_found_by_its_type_or_by_its_bytes(tmp_path):
    """Plain parquet bytes or structs without Hugging Face metadata are found; a doubtful or wrong one is an error."""
    encoded = [png(noise(seed=number)) for number in range(5)]
    structs = [{"bytes": item, "path": "x.png"} for item in encoded]
    for name, column in (("bytes", pa.array(encoded)), ("struct", pa.array(structs))):
        table = pa.table({"other": pa.array([b"no image"] * 5), "jpg": column})
        pa.parquet.write_table(table, tmp_path / f"{name}.parquet")
        np.testing.assert_array_equal(load_images(str(tmp_path / f"{name}.parquet"), resolution=8)[:], expected())
    dataset(3, ("left", "right")).save_to_disk(tmp_path / "two")
    assert "from ['left', 'right']" in error_line(ValueError, tmp_path / "two")
    assert "['left', 'right', 'label']" in error_line(ValueError, tmp_path / "two", image_column="img")
    assert "from ['left', 'right']" in error_line(ValueError, tmp_path / "two", image_column="label")
    assert len(load_images(str(tmp_path / "two"), resolution=8, image_column="right")) == 3
    datasets.Dataset.from_dict({"label": [1, 2]}).save_to_disk(tmp_path / "none")
    assert "no column of images: its columns are ['label']" in error_line(ValueError, tmp_path / "none")


@pytest.mark.skipif(not CIFAR.is_dir(), reason="the CIFAR-10 files are not at hand")
def test_cifar10_is_decoded_bit_for_bit():
    """The 10,000 test images of CIFAR-10 in the Hub's layout equal Pillow's own decoding of the parquet's rows."""
    images = load_images(str(CIFAR), split="test")
    rows = pa.parquet.read_table(CIFAR / "data" / "test-00000-of-00001.parquet")["img"]
    assert images.shape == (10000, 3, 32, 32)
    picks = [9999, *range(0, 10000, 997)]
    pillow = [np.asarray(Image.open(io.BytesIO(rows[pick].as_py()["bytes"]))).transpose(2, 0, 1) for pick in picks]
    np.testing.assert_array_equal(images[picks], pillow)


# ---- Modes and sizes


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
    [(np.uint16, 65535, "0.png"), (np.uint16, 65535, "0.tif"), (np.int32, 65535, "0.tif"), (np.float32, 1, "0.tif")],
)
def test_deep_greys_are_scaled_and_not_clipped(tmp_path, dtype, top, name):
    """16-bit and float images become round(255 x / top) in 8 bits, over their whole range."""
    ramp = np.linspace(0, top, 64).reshape(8, 8).astype(dtype)
    folder = saved(tmp_path / "deep", Image.fromarray(ramp), name)
    np.testing.assert_array_equal(one(folder, channels=1)[0], np.round(ramp.astype(np.float64) * 255 / top))


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


# ---- Indexing, cache, streaming


@pytest.mark.parametrize("limit", [2**30, 0])
def test_any_index_gives_a_new_writable_tensor(tmp_path, limit):
    """Lists, arrays, tensors and slices agree, cached or decoded on the fly; writing to a batch changes no data."""
    images = load_images(str(write_folder(tmp_path / "images")), resolution=8, max_cached_bytes=limit)
    for index in ([3, 0, -1], np.array([3, 0, 4]), torch.tensor([3, 0, 4])):
        assert images[index].dtype == torch.uint8
        np.testing.assert_array_equal(images[index], expected()[[3, 0, 4]])
    np.testing.assert_array_equal(images[1:4], expected()[1:4])
    assert images[[]].shape == (0, 3, 8, 8)
    images[:].zero_()
    images[[0]].zero_()
    np.testing.assert_array_equal(images[:], expected())
    with pytest.raises(IndexError):
        images[[5]]


def test_the_second_load_decodes_nothing(tmp_path, monkeypatch):
    """Once cached, a set is mapped from the cache's file; another resolution or content makes another file."""
    folder = write_folder(tmp_path / "images")
    first = load_images(str(folder), resolution=8)
    with monkeypatch.context() as patch:
        patch.setattr(data, "_decode", None)
        again = load_images(str(folder), resolution=8)
    assert again.fingerprint == first.fingerprint and isinstance(again._pixels, np.memmap)
    np.testing.assert_array_equal(again[:], expected())
    assert load_images(str(folder), resolution=4).fingerprint != first.fingerprint
    (folder / "000.png").write_bytes(png(noise(seed=77)))
    changed = load_images(str(folder), resolution=8)
    assert changed.fingerprint != first.fingerprint
    np.testing.assert_array_equal(changed[[0]][0], noise(seed=77).transpose(2, 0, 1))


def test_the_fingerprint_depends_on_content_alone(tmp_path):
    """A copy elsewhere, with other times, another cache, and decoded on the fly, has the same fingerprint."""
    write_folder(tmp_path / "images")
    shutil.copytree(tmp_path / "images", tmp_path / "elsewhere", copy_function=shutil.copyfile)
    first = load_images(str(tmp_path / "images"), resolution=8)
    other = load_images(str(tmp_path / "elsewhere"), resolution=8, cache_dir=tmp_path / "other", max_cached_bytes=0)
    assert first.fingerprint == other.fingerprint


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    """DDIM_HF_CACHE comes first, then XDG_CACHE_HOME/ddim_hf."""
    folder = str(write_folder(tmp_path / "images"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_images(folder, resolution=8)
    assert list((tmp_path / "cache").glob("*.npy")) and not (tmp_path / "xdg").exists()
    monkeypatch.delenv("DDIM_HF_CACHE")
    load_images(folder, resolution=8)
    assert list((tmp_path / "xdg" / "ddim_hf").glob("*.npy"))


def test_a_set_beyond_the_limit_is_decoded_on_the_fly(tmp_path):
    """Above max_cached_bytes no array is kept, in memory or on disk."""
    folder = str(write_folder(tmp_path / "images"))
    images = load_images(folder, resolution=8, max_cached_bytes=5 * 3 * 64 - 1)
    assert images._pixels is None and not list((tmp_path / "cache").glob("*.npy"))
    assert load_images(folder, resolution=8, max_cached_bytes=5 * 3 * 64)._pixels is not None


def test_an_interrupted_decoding_leaves_no_cache(tmp_path, monkeypatch):
    """A run stopped in the middle leaves no array to be mistaken for a whole one, and the next run decodes all."""
    folder = str(write_folder(tmp_path / "images", 200))
    real, calls = data._decode, iter(range(150))

    def stop(*args):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(data, "_decode", stop)
        load_images(folder, resolution=8)
    assert not list((tmp_path / "cache").glob("*.npy"))
    np.testing.assert_array_equal(load_images(folder, resolution=8)[:], expected(200))


def _load_in_process(folder, cache, start, results):
    start.wait()
    images = load_images(folder, resolution=8, cache_dir=cache)
    results.put((os.getpid(), images.fingerprint, images[:].numpy().tobytes()))


def test_processes_at_once_agree(tmp_path):
    """Four processes that open the same new folder at once all get its images, and leave one array and no scraps."""
    folder = str(write_folder(tmp_path / "images", 100))
    context = multiprocessing.get_context("fork")
    results, start = context.Queue(), context.Event()
    arguments = (folder, tmp_path / "together", start, results)
    processes = [context.Process(target=_load_in_process, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len({pid for pid, *_ in found}) == 4 and len({fingerprint for _, fingerprint, _ in found}) == 1
    assert all(pixels == expected(100).tobytes() for *_, pixels in found)
    assert len(list((tmp_path / "together").glob("*.npy"))) == 1 and not list((tmp_path / "together").glob("*.tmp"))


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    """Images are kept in memory, or decoded on the fly where that is too much, with a warning."""
    folder = str(write_folder(tmp_path / "images"))
    for limit, kept in ((2**30, True), (0, False)):
        monkeypatch.setattr(data, "IN_MEMORY_BYTES", limit)
        with pytest.warns(UserWarning, match="cannot be written"):
            images = load_images(folder, resolution=8, cache_dir="/dev/null/cache")
        assert (images._pixels is not None) == kept
        np.testing.assert_array_equal(images[:], expected())


def test_a_full_disk_is_told_before_writing(tmp_path, monkeypatch):
    """With too little room for the array the error says how much is needed, how much there is, and what to do."""
    monkeypatch.setattr(data.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 10))
    assert "DDIM_HF_CACHE" in error_line(OSError, write_folder(tmp_path / "images"))


# ---- Faults


@pytest.mark.parametrize("limit", [2**30, 0])
def test_a_torn_image_is_named_or_left_out(tmp_path, limit):
    """One torn file stops the load with its name; skip_broken leaves it out, with a warning, from the cache too."""
    folder = write_folder(tmp_path / "images")
    whole = load_images(str(folder), resolution=8, max_cached_bytes=limit)
    (folder / "002.png").write_bytes((folder / "002.png").read_bytes()[:100])
    for _ in range(2):
        line = error_line(ValueError, folder, max_cached_bytes=limit)
        assert str(folder / "002.png") in line and "--skip_broken" in line
        with pytest.warns(UserWarning, match=r"left out 1 of 5 images, not readable: .*002\.png") as told:
            images = load_images(str(folder), resolution=8, max_cached_bytes=limit, skip_broken=True)
        assert len(told) == 1 and images.shape == (4, 3, 8, 8) and images.fingerprint != whole.fingerprint
        np.testing.assert_array_equal(images[:], expected()[[0, 1, 3, 4]])
        np.testing.assert_array_equal(images[[2]], expected()[[3]])


def test_a_torn_row_is_named_by_its_number(tmp_path):
    """In a table, a torn image and an absent one are named by their row, and left out with skip_broken."""
    table = [{"bytes": png(noise(seed=i)), "path": None} for i in range(5)]
    table[1]["bytes"], table[3] = table[1]["bytes"][:80], None
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": table}, features).to_parquet(tmp_path / "torn.parquet")
    assert "row 1 of" in error_line(ValueError, tmp_path / "torn.parquet")
    with pytest.warns(UserWarning, match="left out 2 of 5 images, not readable: row 1 of .*, row 3 of "):
        images = load_images(str(tmp_path / "torn.parquet"), resolution=8, skip_broken=True)
    np.testing.assert_array_equal(images[:], expected()[[0, 2, 4]])


def test_nothing_readable_is_an_error_even_with_skip_broken(tmp_path):
    """A folder whose images are all torn is refused."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(b"torn")
    assert "none of the 1 images" in error_line(ValueError, tmp_path / "images", skip_broken=True)


def test_a_wrong_name_or_setting_is_told_in_one_line(tmp_path, monkeypatch):
    """Folders without images, absent paths, other files, unknown Hub ids and wrong channels: each has its line."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "torn.parquet").write_text("no parquet")
    assert "no images in the folder" in error_line(FileNotFoundError, tmp_path / "empty")
    assert "does not exist" in error_line(FileNotFoundError, tmp_path / "absent")
    assert "not a .parquet file" in error_line(ValueError, tmp_path / "notes.txt")
    assert "torn.parquet" in error_line(FileNotFoundError, tmp_path / "torn.parquet")
    assert "no column 'img'" in error_line(ValueError, write_folder(tmp_path / "images"), image_column="img")
    assert "channels must be 1 or 3" in error_line(ValueError, "digits", channels=2)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = error_line(FileNotFoundError, "no-such-org/no-such-set")
    assert "'no-such-org/no-such-set'" in line and "'digits'" in line


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    """Without datasets or scikit-learn the error says what to install, and plain folders need neither."""
    dataset(2).to_parquet(tmp_path / "one.parquet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert "ddim_hf[train]" in error_line(ImportError, tmp_path / "one.parquet")
    assert "ddim_hf[demo]" in error_line(ImportError, "digits")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_images(str(write_folder(tmp_path / "images")), resolution=8)) == 5
