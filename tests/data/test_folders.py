"""Folders of images: which files are read, which folders are splits, and what is said of the rest."""

import json
import warnings

import numpy as np
import pytest
from image_files import error_line, expected, noise, png, write_folder
from PIL import Image

from ddim_hf.data import load_images

pytestmark = pytest.mark.usefixtures("own_caches")


def load(folder, split=None):
    """The images, and no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_images(str(folder), resolution=8, split=split)


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


def test_splits_may_be_called_in_capitals(tmp_path):
    """Train/ and Test/ are splits as train/ and test/ are, with their own class folders; two of a name are refused."""
    for split, count in (("Train", 3), ("Test", 2)):
        for name in ("cat", "dog"):
            write_folder(tmp_path / "set" / split / name, count)
    assert len(load(tmp_path / "set")) == 6 and len(load(tmp_path / "set", "test")) == 4
    assert load_images(str(tmp_path / "set"), resolution=8, labelled=True).label_names == ("cat", "dog")
    write_folder(tmp_path / "set" / "train" / "cat", 1)
    with pytest.raises(ValueError, match=r"folders \['Test', 'Train', 'train'\], which are called the same; allowed"):
        load(tmp_path / "set")


@pytest.mark.parametrize("name", ["train", "test", "val"])
def test_a_class_called_as_a_split_is_a_class(tmp_path, name):
    """Where other folders hold images too, a folder train, test or val is read with them, as CIFAR-100's train is."""
    write_folder(tmp_path / "set" / "apple", 2)
    write_folder(tmp_path / "set" / name, 3)
    write_folder(tmp_path / "set" / "streetcar", 4)
    assert len(load(tmp_path / "set")) == len(load(tmp_path / "set", "train")) == 9
    (tmp_path / "set" / "0.png").write_bytes(png(noise()))
    assert len(load(tmp_path / "set")) == 10


@pytest.mark.filterwarnings("error")
def test_what_is_left_out_is_said_by_the_first_process_alone(tmp_path, monkeypatch):
    """Of the processes of a run one says what is not read."""
    write_folder(tmp_path / "set" / "train", 2)
    write_folder(tmp_path / "set" / "masks", 1)
    monkeypatch.setenv("RANK", "1")
    assert len(load(tmp_path / "set")) == 3


def test_train_beside_one_other_folder_is_read_with_it_and_that_is_said(tmp_path):
    """train/ beside masks/ alone is no split, and a warning says so; among several classes it is one, in silence."""
    write_folder(tmp_path / "set" / "train", 2)
    write_folder(tmp_path / "set" / "masks", 1)
    with pytest.warns(UserWarning, match=r"\['train'\] are read as one set with the others, masks.*3 images"):
        assert len(load_images(str(tmp_path / "set"), resolution=8)) == 3


def test_two_splits_beside_another_folder_are_read_with_it_and_that_is_said(tmp_path):
    """train/ and test/ beside masks/ are no splits, and a warning says so: test images would train unnoticed."""
    for name, count in (("train", 3), ("test", 2), ("masks", 1)):
        write_folder(tmp_path / "set" / name, count)
    with pytest.warns(UserWarning, match=r"\['test', 'train'\] are read as one set with the others, masks.*6 images"):
        assert len(load_images(str(tmp_path / "set"), resolution=8)) == 6


def test_folders_without_images_do_not_undo_splits(tmp_path):
    """A folder of notes beside train/ and test/ changes nothing."""
    write_folder(tmp_path / "set" / "train", 3)
    write_folder(tmp_path / "set" / "test", 2)
    (tmp_path / "set" / "notes").mkdir()
    (tmp_path / "set" / "notes" / "a.txt").write_text("no image")
    assert (len(load(tmp_path / "set")), len(load(tmp_path / "set", "test"))) == (3, 2)


def test_what_is_left_out_is_said_with_its_count(tmp_path):
    """Images beside the splits, formats that are not read, and archives beside images are counted in a warning."""
    write_folder(tmp_path / "set" / "train", 3)
    for number in range(4):
        (tmp_path / "set" / f"{number}.png").write_bytes(png(noise()))
    with pytest.warns(UserWarning, match=r"left out 4 images beside the splits \['train'\]: .*0\.png"):
        assert len(load_images(str(tmp_path / "set"), resolution=8)) == 3
    write_folder(tmp_path / "photos", 3)
    for name in ("a.HEIC", "b.ico", "c.zip"):
        (tmp_path / "photos" / name).write_bytes(b"not read")
    with pytest.warns(UserWarning) as told:
        assert len(load_images(str(tmp_path / "photos"), resolution=8)) == 3
    lines = [str(warning.message) for warning in told]
    assert len(lines) == 2 and "left out 2 images of a format" in lines[0] and "left out 1 archive" in lines[1]


def test_a_folder_of_unread_formats_alone_is_an_error_that_says_what_is_read(tmp_path):
    """Where nothing can be read, the formats that can are listed, and what was found is counted."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.heic").write_bytes(b"not read")
    with pytest.warns(UserWarning, match="left out 1 image of a format that is not read: .*a.heic"):
        assert "allowed are .png .jpg" in error_line(FileNotFoundError, tmp_path / "photos")


def test_a_link_that_loops_multiplies_nothing(tmp_path):
    """Links to the folder itself, or to what is read anyway, give each image once, and are told."""
    for name in ("a", "b"):
        write_folder(tmp_path / "set" / name, 2)
    with_links = tmp_path / "set"
    (with_links / "a" / "loop").symlink_to(with_links)
    (with_links / "loop").symlink_to(".")
    with pytest.warns(UserWarning, match="left out 2 links to a folder that is read already"):
        assert len(load_images(str(with_links), resolution=8)) == 4
    (with_links / "a" / "b").symlink_to(with_links / "b")
    (with_links / "b" / "a").symlink_to(with_links / "a")
    with pytest.warns(UserWarning, match="left out 4 images that a link leads to a second time"):
        images = load_images(str(with_links), resolution=8)
    np.testing.assert_array_equal(images[:], np.concatenate([expected(2), expected(2)]))


def test_links_to_other_folders_are_followed(tmp_path):
    """A class, a split and the set itself may be links; a split may even be another one's images."""
    write_folder(tmp_path / "elsewhere" / "cats", 3)
    (tmp_path / "set").mkdir()
    for name in ("train", "test"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(tmp_path / "set")
    for name in ("set", "link"):
        assert len(load(tmp_path / name)) == len(load(tmp_path / name, "test")) == 3


def test_a_link_that_leads_nowhere_is_an_image_that_cannot_be_read(tmp_path):
    """It is named, or left out with skip_broken, as a torn file is."""
    folder = write_folder(tmp_path / "set", 3)
    (folder / "003.png").symlink_to("absent.png")
    assert "003.png cannot be read (no image there)" in error_line(ValueError, folder)
    with pytest.warns(UserWarning, match="left out 1 of 4 images"):
        assert len(load_images(str(folder), resolution=8, skip_broken=True)) == 3


def write_samples(folder, images, format, promised=None):
    """A folder as `generate` leaves it, with the pictures that --grid and --gif add."""
    (folder / "images").mkdir(parents=True)
    for first in range(0, len(images), 3):
        shard = images[first : first + 3]
        if format == "npy":
            np.save(folder / "images" / f"{first:08d}-{first + len(shard) - 1:08d}.npy", shard)
        for number, image in enumerate(shard if format == "png" else (), first):
            Image.fromarray(image).save(folder / "images" / f"{number:06d}.png")
    manifest = {"num_images": promised or len(images), "num_inference_steps": 5, "format": format}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for name in ("samples.png", "denoising.gif"):
        Image.fromarray(noise(40, 40)).save(folder / name)
    return folder


@pytest.mark.parametrize("axis", [(), (1,), (3,)])
def test_a_folder_of_samples_is_its_images_in_either_format(tmp_path, axis):
    """PNG files and arrays, grey or in colour, give the same set, without samples.png and denoising.gif."""
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, *axis), dtype=np.uint8)
    png_folder = write_samples(tmp_path / "png", images[..., 0] if axis == (1,) else images, "png")
    sets = [load(png_folder), load(png_folder / "images"), load(write_samples(tmp_path / "npy", images, "npy"))]
    sets.append(load(tmp_path / "npy" / "images"))
    pixels = np.broadcast_to(images.reshape(5, 8, 8, -1).transpose(0, 3, 1, 2), (5, 3, 8, 8))
    for samples in sets:
        np.testing.assert_array_equal(samples[:], pixels)
    assert len({samples.fingerprint for samples in sets}) == 1


def test_what_the_generator_writes_is_read_whole(tmp_path, pipe):
    """Samples of a network, with grid and GIF, are the images that were asked for, in both formats alike."""
    from ddim_hf.generation import generate, load_pipeline

    pipe.save_pretrained(tmp_path / "model")
    pipe = load_pipeline(tmp_path / "model")
    settings = {"num_images": 3, "num_inference_steps": 2, "grid": 3, "gif": True}
    for format in ("png", "npy"):
        generate(pipe, tmp_path / format, format=format, **settings)
    (tmp_path / "png" / "images" / "._000000.png").write_bytes(b"what macOS leaves")
    png_set, npy_set = (load_images(str(tmp_path / f), resolution=8, channels=1) for f in ("png", "npy"))
    assert png_set.shape == npy_set.shape == (3, 1, 8, 8) and png_set.fingerprint == npy_set.fingerprint


def test_samples_that_are_not_all_there_or_torn_are_told(tmp_path):
    """Fewer images than were to be sampled give a warning; an array that is cut off, or no images, an error."""
    images = np.zeros((5, 8, 8, 3), np.uint8)
    write_samples(tmp_path / "fewer", images, "npy", promised=9)
    with pytest.warns(UserWarning, match="holds 5 images, and 9 were to be sampled"):
        assert len(load_images(str(tmp_path / "fewer"), resolution=8)) == 5
    shard = tmp_path / "fewer" / "images" / "00000000-00000002.npy"
    shard.write_bytes(shard.read_bytes()[:200])
    assert f"{shard} cannot be read" in error_line(ValueError, tmp_path / "fewer")
    np.save(shard, np.zeros((3, 8, 8, 3), np.float32))
    assert f"{shard} holds float32 of shape (3, 8, 8, 3), not 3 uint8 images" in error_line(
        ValueError, tmp_path / "fewer"
    )
