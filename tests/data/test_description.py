"""What is said of a set before it is loaded, and that saying it leaves no trace."""

from contextlib import suppress

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import dataset, noise, png, write_folder
from PIL import Image

from ddim_hf.data import describe_images, load_images

pytestmark = pytest.mark.usefixtures("own_caches")


def test_every_kind_of_set_is_described_as_it_would_load_and_nothing_is_written(tmp_path, no_network):
    """Number, split and channels are those of load_images, for each local source; no cache and no file appears."""
    write_folder(tmp_path / "data" / "plain")
    (tmp_path / "data" / "hub" / "data").mkdir(parents=True)
    dataset().to_parquet(tmp_path / "data" / "one.parquet")
    dataset(5).to_parquet(tmp_path / "data" / "hub" / "data" / "train-00000-of-00001.parquet")
    dataset(2).to_parquet(tmp_path / "data" / "hub" / "data" / "test-00000-of-00001.parquet")
    dataset().save_to_disk(tmp_path / "data" / "saved")
    before = sorted(tmp_path.rglob("*"))
    asked = [(str(tmp_path / "data" / form), "train") for form in ("plain", "one.parquet", "hub", "saved")]
    asked += [(str(tmp_path / "data" / "hub"), "test"), ("digits", "test"), ("digits", None)]
    found = [describe_images(name, split) for name, split in asked]
    assert sorted(tmp_path.rglob("*")) == before
    for (name, split), description in zip(asked, found, strict=True):
        images = load_images(name, split=split, resolution=8)
        assert (description.num_images, description.split) == (len(images), images.split)
        assert description.channels == (1 if name == "digits" else 3)
        assert description.smallest == description.largest == (8, 8)


def test_modes_and_sizes_are_those_of_the_images(tmp_path):
    """Modes come by their frequency, sizes as the least and greatest width and height; the text holds all of it."""
    folder = write_folder(tmp_path / "mixed", 3)
    Image.fromarray(noise(20, 30)).convert("L").save(folder / "grey.png")
    (folder / "torn.png").write_bytes(b"torn")
    description = describe_images(str(folder))
    assert description.modes == ("RGB", "L") and description.channels == 3 and description.looked_at == 4
    assert (description.smallest, description.largest) == ((8, 8), (30, 20))
    assert str(description) == f"5 images in the folder {str(folder)!r}, split 'train', RGB/L, 8 x 8 to 30 x 20 pixels"
    for mode in ("1", "L", "LA", "I;16"):
        grey = tmp_path / mode
        grey.mkdir()
        image = Image.fromarray(noise()[..., 0].astype(np.uint16)) if mode == "I;16" else Image.new(mode, (8, 8))
        image.save(grey / "0.png")
        assert describe_images(str(grey)).channels == 1


def test_a_torn_image_hides_no_other(tmp_path):
    """A table is described by the images that can be read, wherever the torn one lies, whether its columns have types
    or not; of a table without any, the number is told."""
    for torn in (0, 3):
        rows = [{"bytes": png(noise(seed=number)), "path": None} for number in range(5)]
        rows[torn] = {"bytes": b"torn", "path": None}
        typed = datasets.Dataset.from_dict({"image": rows}, datasets.Features(image=datasets.Image()))
        typed.to_parquet(tmp_path / "typed.parquet")
        pq.write_table(pa.table({"picture": [row["bytes"] for row in rows]}), tmp_path / "plain.parquet")
        for name in ("typed.parquet", "plain.parquet"):
            description = describe_images(str(tmp_path / name))
            assert (description.num_images, description.looked_at, description.modes) == (5, 4, ("RGB",))
    typed.select([3]).to_parquet(tmp_path / "typed.parquet")
    description = describe_images(str(tmp_path / "typed.parquet"))
    assert (description.num_images, description.looked_at, description.channels) == (1, 0, None)


def test_what_load_images_refuses_is_refused_here(tmp_path):
    """Absent paths, splits, columns and images are errors of the same kind as when the set is loaded."""
    dataset(3, ("left", "right")).to_parquet(tmp_path / "two.parquet")
    (tmp_path / "empty").mkdir()
    for name, options in (
        (tmp_path / "absent", {}),
        (tmp_path / "empty", {}),
        (tmp_path / "two.parquet", {}),
        (tmp_path / "two.parquet", {"image_column": "label"}),
        (tmp_path / "two.parquet", {"image_column": "middle"}),
        (tmp_path / "two.parquet", {"image_column": "left", "split": "dev"}),
        (tmp_path / "two.parquet", {"image_column": "left", "revision": "main"}),
        ("digits", {"split": "dev"}),
    ):
        with pytest.raises((ValueError, FileNotFoundError)) as loading:
            load_images(str(name), **options)
        with pytest.raises(type(loading.value)) as describing:
            describe_images(str(name), **options)
        assert str(describing.value) == str(loading.value)
    assert describe_images(str(tmp_path / "two.parquet"), image_column="right").num_images == 3


def test_a_set_on_the_hub_that_cannot_be_reached_is_of_unknown_size(monkeypatch):
    """Without network the description says so, at once, where loading would fail."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.warns(UserWarning, match="'org/set' is not here, and the Hub cannot be reached"):
        description = describe_images("org/set", "test")
    assert (description.num_images, description.channels, description.split) == (None, None, "test")
    assert str(description) == "an unknown number of images in the Hub's dataset 'org/set', split 'test'"


def test_samples_and_archives_are_described(tmp_path):
    """Images in an archive have modes and sizes, though their number is not known without reading it."""
    import zipfile

    (tmp_path / "zipped").mkdir()
    with zipfile.ZipFile(tmp_path / "zipped" / "images.zip", "w") as archive:
        archive.writestr("0.png", png(noise(9, 9)))
    description = describe_images(str(tmp_path / "zipped"))
    assert (description.num_images, description.modes, description.largest) == (None, ("RGB",), (9, 9))


def test_a_name_that_may_mean_another_set_is_told(tmp_path, monkeypatch, no_network):
    """A folder called digits beside the built-in set, and names that are no folder here and so the Hub's, though they
    may be misspelt: one without a slash, and one within a folder that is here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    with pytest.warns(UserWarning, match="'digits' is the built-in set; the folder of that name is './digits'"):
        assert describe_images("digits").num_images == 1797
    (tmp_path / "images").mkdir()
    for name in ("my_pictures", "images/mine"):
        with pytest.warns(UserWarning, match=f"'{name}' is no folder or file here, and is asked for on the Hub"):
            with suppress(FileNotFoundError):  # where a Hub answers
                describe_images(name)
