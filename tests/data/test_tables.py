"""What the datasets library loads: rows of any kind, configurations, odd paths, and all that it says."""

import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from image_files import dataset, error_line, expected, noise, png, write_configurations, write_folder

from ddim_hf.data import describe_images, load_images, open_source

pytestmark = pytest.mark.usefixtures("own_caches")


def zipped(folder, count=5):
    """A folder with an archive of images, as macOS makes it."""
    folder.mkdir()
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for number in range(count):
            archive.writestr(f"cats/{number:03}.png", png(noise(seed=number)))
            archive.writestr(f"__MACOSX/cats/._{number:03}.png", b"not an image")
    return folder


@pytest.mark.parametrize("limit", [2**30, 0])
def test_images_in_an_archive_are_read(tmp_path, limit):
    """The PNG files in a ZIP file, which datasets names zip://..., load like those in a folder, from many threads."""
    images = load_images(str(zipped(tmp_path / "zipped", 150)), resolution=8, max_cached_bytes=limit)
    np.testing.assert_array_equal(images[:], expected(150))
    assert images.fingerprint == load_images(str(write_folder(tmp_path / "plain", 150)), resolution=8).fingerprint


def test_many_threads_begin_with_an_archive(tmp_path):
    """The first reads of an archive, from many threads at once, find every image: its list is never half read."""
    folder, interval = zipped(tmp_path / "zipped", 150), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(10):
            source, _ = open_source(str(folder))
            with ThreadPoolExecutor(8) as pool:
                assert all(pool.map(list, map(source.read, [[n] for n in range(149, 0, -10)])))
    finally:
        sys.setswitchinterval(interval)


def test_an_archive_is_opened_once(tmp_path, monkeypatch):
    """Reading many images of an archive reads its list of files once, so that time does not grow as the square."""
    opened = []
    real = zipfile.ZipFile._RealGetContents
    folder = zipped(tmp_path / "zipped", 50)
    source, _ = open_source(str(folder))
    monkeypatch.setattr(zipfile.ZipFile, "_RealGetContents", lambda self: (opened.append(1), real(self))[1])
    assert [np.asarray(row) is not None for row in source.read(range(50))] == [True] * 50
    assert len(opened) == 1


def test_a_configuration_is_chosen_or_the_choice_is_told(tmp_path):
    """config_name picks one of several; without it, or with an unknown one, the error names them all, in one line."""
    configs = write_configurations(tmp_path / "several", small=2, large=5)
    assert len(load_images(str(configs), resolution=8, config_name="small")) == 2
    assert len(load_images(str(configs), resolution=8, config_name="large")) == 5
    line = error_line(FileNotFoundError, configs)
    assert "Config name is missing" in line and "['small', 'large']" in line and "--dataset_config_name" in line
    assert "['small', 'large']" in error_line(FileNotFoundError, configs, config_name="medium")


@pytest.mark.parametrize("name", ["[2024] cats", "a*b", "what?"])
def test_a_path_is_a_path_and_no_pattern(tmp_path, name):
    """Parquet below a folder with brackets, stars or question marks in its name is found, and nothing else is."""
    for folder in (name, "axb", "a-long-b", "whatx"):
        data = tmp_path / folder / "data"
        data.mkdir(parents=True)
        dataset(5 if folder == name else 1).to_parquet(data / "train-00000-of-00001.parquet")
        dataset(2 if folder == name else 1).to_parquet(data / "test-00000-of-00001.parquet")
    folder = tmp_path / name
    assert len(load_images(str(folder), resolution=8)) == 5
    assert len(load_images(str(folder), resolution=8, split="test")) == 2
    assert len(load_images(str(folder / "data" / "train-00000-of-00001.parquet"), resolution=8)) == 5
    dataset(3).save_to_disk(folder / "saved")
    assert len(load_images(str(folder / "saved"), resolution=8)) == 3
    zipped(folder / "zipped")
    np.testing.assert_array_equal(load_images(str(folder / "zipped"), resolution=8)[:], expected())


def test_an_option_that_means_nothing_for_a_set_is_refused(tmp_path):
    """A revision of what lies here, a configuration of a file, a column of image files: one line each, not dropped."""
    folder = write_folder(tmp_path / "plain")
    dataset().to_parquet(tmp_path / "one.parquet")
    dataset().save_to_disk(tmp_path / "saved")
    for name, options in (
        (folder, {"revision": "main"}),
        (folder, {"config_name": "small"}),
        (folder, {"image_column": "img"}),
        (tmp_path / "one.parquet", {"revision": "main"}),
        (tmp_path / "one.parquet", {"config_name": "small"}),
        (tmp_path / "saved", {"config_name": "small"}),
        ("digits", {"image_column": "img"}),
        ("digits", {"config_name": "small"}),
        ("digits", {"revision": "main"}),
    ):
        (option, value) = next(iter(options.items()))
        assert f"{option} is {value!r}, and {str(name)!r} has no such thing" in error_line(ValueError, name, **options)


def test_a_set_on_the_hub_is_loaded_by_configuration_and_revision(hub, tmp_path):
    """Over HTTP, the branch and the configuration that are asked for come, and each has its own fingerprint."""
    several = write_configurations(tmp_path / "several", small=2, large=5)
    files = {file.name: file.read_bytes() for file in several.iterdir()}
    repo = hub.add_repo("org/set", files)
    dataset(3).to_parquet(tmp_path / "old.parquet")
    repo.commit("v1", files | {"large.parquet": (tmp_path / "old.parquet").read_bytes()}, "an older one")

    line = error_line(FileNotFoundError, "org/set")
    assert "Config name is missing" in line and "['small', 'large']" in line
    found = {}
    for config_name, revision, count in (("small", None, 2), ("large", None, 5), ("large", "v1", 3)):
        images = load_images("org/set", resolution=8, config_name=config_name, revision=revision)
        np.testing.assert_array_equal(images[:], expected(count))
        found[images.fingerprint] = count
        assert describe_images("org/set", config_name=config_name, revision=revision).split == "train"
    assert len(found) == 3
    assert "no-such" in error_line(FileNotFoundError, "org/set", config_name="small", revision="no-such")
    assert "org/absent" in error_line(FileNotFoundError, "org/absent")


def test_images_beside_tables_are_told(tmp_path):
    """datasets reads the most frequent kind of file alone; how many of the other kind lie there is said."""
    (tmp_path / "tables" / "data").mkdir(parents=True)
    for part in range(3):
        dataset().to_parquet(tmp_path / "tables" / "data" / f"train-{part:05}-of-00003.parquet")
    (tmp_path / "tables" / "teaser.png").write_bytes(png(noise()))
    with pytest.warns(UserWarning, match="left out 1 image beside the tables: .*teaser.png"):
        assert len(load_images(str(tmp_path / "tables"), resolution=8)) == 15
    write_folder(tmp_path / "images", 4)
    dataset().to_parquet(tmp_path / "images" / "one.parquet")
    with pytest.warns(UserWarning, match="left out 1 table beside the images: .*one.parquet"):
        assert len(load_images(str(tmp_path / "images"), resolution=8)) == 4


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
