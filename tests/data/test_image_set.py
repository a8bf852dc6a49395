"""Images by their numbers, and images that cannot be read."""

import shutil

import datasets
import numpy as np
import pytest
import torch
from image_files import error_line, expected, noise, png, write_folder

from ddim_hf.data import load_images

pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.mark.parametrize("limit", [2**30, 0])
def test_any_index_gives_a_new_writable_tensor(tmp_path, limit):
    """Lists, arrays, tensors and slices agree, cached or decoded on the fly; writing to a batch changes no data."""
    images = load_images(str(write_folder(tmp_path / "images")), resolution=8, max_cached_bytes=limit)
    for index in ([3, 0, -1], np.array([3, 0, 4]), torch.tensor([3, 0, 4])):
        assert images[index].dtype == torch.uint8
        np.testing.assert_array_equal(images[index], expected()[[3, 0, 4]])
    np.testing.assert_array_equal(images[1:4], expected()[1:4])
    mask = expected()[:, 0, 0, 0] > np.median(expected()[:, 0, 0, 0])
    for index in (mask, mask.tolist(), torch.from_numpy(mask)):
        np.testing.assert_array_equal(images[index], expected()[mask])
    for index, said in ((mask[:-1], "a mask of 4 for 5 images"), ([0.0, 1.7], "indices are of float32")):
        with pytest.raises(IndexError, match=said):
            images[index]
    assert images[[]].shape == (0, 3, 8, 8)
    images[:].zero_()
    images[[0]].zero_()
    np.testing.assert_array_equal(images[:], expected())
    with pytest.raises(IndexError):
        images[[5]]


def test_the_fingerprint_depends_on_content_alone(tmp_path):
    """A copy elsewhere, with other times, another cache, and decoded on the fly, has the same fingerprint."""
    write_folder(tmp_path / "images")
    shutil.copytree(tmp_path / "images", tmp_path / "elsewhere", copy_function=shutil.copyfile)
    first = load_images(str(tmp_path / "images"), resolution=8)
    other = load_images(str(tmp_path / "elsewhere"), resolution=8, cache_dir=tmp_path / "other", max_cached_bytes=0)
    assert first.fingerprint == other.fingerprint


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
