"""Images from every source: what is read, in which order, and what is said where it cannot be."""

import sys
import warnings

import datasets
import numpy as np
import pytest
from image_files import dataset, error_line, expected, write_folder

from ddim_hf.data import load_images

pytestmark = pytest.mark.usefixtures("own_caches")


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


def test_a_wrong_name_or_setting_is_told_in_one_line(tmp_path, monkeypatch):
    """Folders without images, absent paths, other files, unknown Hub ids and wrong channels: each has its line."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "torn.parquet").write_text("no parquet")
    assert "no images in the folder" in error_line(FileNotFoundError, tmp_path / "empty")
    assert "does not exist" in error_line(FileNotFoundError, tmp_path / "absent")
    assert "'' does not exist" in error_line(FileNotFoundError, "")
    assert "not a .parquet file" in error_line(ValueError, tmp_path / "notes.txt")
    assert "torn.parquet" in error_line(FileNotFoundError, tmp_path / "torn.parquet")
    assert "image_column is 'img'" in error_line(ValueError, write_folder(tmp_path / "images"), image_column="img")
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
