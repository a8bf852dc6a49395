"""Labels from every source of images: their numbers and names, and what is said where they cannot be had."""

import datasets
import numpy as np
import pytest
from image_files import dataset, error_line, expected, noise, png, write_folder

from ddim_hf.data import describe_images, load_images
from ddim_hf.data.labels import in_order, number_labels
from ddim_hf.data.tables import ImageColumn

pytestmark = pytest.mark.usefixtures("own_caches")
ANIMALS = ["dog", "cat", "dog", "bird", "cat"]


def loaded(place, **options):
    return load_images(str(place), resolution=8, labelled=True, **options)


def table(file, values, feature=None, column="label"):
    """The five images, with a column beside them; a parquet file."""
    rows = datasets.Dataset.from_dict(
        {"image": [{"bytes": png(noise(seed=i)), "path": None} for i in range(5)], column: values},
        datasets.Features({"image": datasets.Image(), column: feature}) if feature else None,
    )
    rows.to_parquet(file)
    return file


def class_folders(root, names=ANIMALS):
    for number, name in enumerate(names):
        (root / name / "deeper").mkdir(parents=True, exist_ok=True)
        (root / name / "deeper" / f"{number}.png").write_bytes(png(noise(seed=number)))
    return root


def test_the_digits_are_labelled_as_scikit_learn_has_them():
    """The digits' labels are scikit-learn's targets, in each split; what they are is told without loading them too."""
    from sklearn.datasets import load_digits

    target = load_digits().target
    whole, train, test = (loaded("digits", split=split) for split in (None, "train", "test"))
    for images, real in ((whole, target), (test, target[::10]), (train, np.delete(target, slice(None, None, 10)))):
        assert images.labels.dtype == np.int64 and images.labels.tolist() == real.tolist()
        assert images.label_names == tuple("0123456789")
    assert describe_images("digits", "train", labelled=True).label_names == whole.label_names


COLUMNS = {
    "names": (ANIMALS, None, ("bird", "cat", "dog")),
    "ints": ([10, 9, 10, 2, 9], None, ("2", "9", "10")),
    "names that are numbers": (["10", "9", "10", "2", "9"], None, ("2", "9", "10")),
    "floats of a column with gaps": ([10.0, 9.0, 10.0, 2.0, 9.0], None, ("2", "9", "10")),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_of_names_or_numbers(tmp_path, kind):
    """A column of strings or numbers gives labels in the order of numbers if all are numbers, else of the alphabet."""
    values, feature, names = COLUMNS[kind]
    images = loaded(table(tmp_path / "set.parquet", values, feature))
    assert images.label_names == names and images.labels.tolist() == [2, 1, 2, 0, 1]


def test_a_class_label_column_keeps_its_own_names(tmp_path):
    """ClassLabel's names stand as they are, those that do not occur too; a description has them without a download."""
    names = ["truck", "cat", "dog", "bird"]
    file = table(tmp_path / "set.parquet", [2, 1, 2, 3, 1], datasets.ClassLabel(names=names), column="kind")
    images = loaded(file)  # found by its type
    assert images.label_names == tuple(names) and images.labels.tolist() == [2, 1, 2, 3, 1]
    assert describe_images(str(file), labelled=True).label_names == tuple(names)


def test_the_column_is_found_by_name_or_asked_for(tmp_path):
    """fine_label comes before coarse_label, label_column chooses, and what is not there or not clear names the
    columns."""
    rows = dataset().remove_columns("label").add_column("fine_label", ANIMALS).add_column("coarse_label", ["a"] * 5)
    rows.to_parquet(tmp_path / "two.parquet")
    assert loaded(tmp_path / "two.parquet").label_names == ("bird", "cat", "dog")
    assert loaded(tmp_path / "two.parquet", label_column="coarse_label").label_names == ("a",)
    said = error_line(ValueError, tmp_path / "two.parquet", labelled=True, label_column="colour")
    assert "no column 'colour'" in said and "coarse_label" in said
    rows.remove_columns("fine_label").to_parquet(tmp_path / "none.parquet")
    said = error_line(ValueError, tmp_path / "none.parquet", labelled=True)
    assert "no column of labels: choose label_column (--label_column) from ['image', 'coarse_label']" in said


def test_class_folders_are_labels_of_the_first_level(tmp_path):
    """The folder directly below the set's or the split's is the class, whatever lies deeper, with splits or not."""
    for root in (class_folders(tmp_path / "plain"), class_folders(tmp_path / "split" / "train").parent):
        images = loaded(root)
        assert images.label_names == ("bird", "cat", "dog") and images.labels.tolist() == [0, 1, 1, 2, 2]
        np.testing.assert_array_equal(images[:], expected()[[3, 1, 4, 0, 2]])
        assert describe_images(str(root), "train", labelled=True).label_names == images.label_names
    numbered = class_folders(tmp_path / "numbered", ["10", "9", "10", "2", "9"])
    assert loaded(numbered).label_names == ("2", "9", "10")


def test_the_same_images_with_and_without_labels_share_their_pixels(tmp_path):
    """Labels make another fingerprint and no other file of pixels; without them all is as it was."""
    file = table(tmp_path / "set.parquet", ANIMALS)
    plain, labelled = load_images(str(file), resolution=8), loaded(file)
    assert plain.labels is None and plain.label_names == ()
    assert labelled.fingerprint != plain.fingerprint == labelled.unlabelled().fingerprint
    assert labelled.unlabelled().labels is None
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1
    other = loaded(table(tmp_path / "other.parquet", [*ANIMALS[:4], "dog"]))
    assert other.fingerprint not in (labelled.fingerprint, plain.fingerprint)
    assert other.unlabelled().fingerprint == plain.fingerprint


def test_labels_are_read_once(tmp_path, monkeypatch):
    """Labels come from the cache the second time, are read again on demand, and a torn file of them is made anew."""
    file = table(tmp_path / "set.parquet", ANIMALS)
    first = loaded(file)
    (kept,) = (tmp_path / "cache").glob("*.labels.json")
    with monkeypatch.context() as patch:
        patch.setattr(ImageColumn, "labels", None)
        assert loaded(file).labels.tolist() == first.labels.tolist() and loaded(file).fingerprint == first.fingerprint
        with pytest.raises(TypeError):
            loaded(file, refresh_cache=True)
    kept.write_text(kept.read_text()[:20])
    assert loaded(file).labels.tolist() == first.labels.tolist()


def test_labels_are_those_of_the_folder_that_is_named(tmp_path):
    """A folder and the one above it hold the same images and other classes; neither is given what the other's left."""
    inner = class_folders(tmp_path / "set" / "animals")
    assert loaded(tmp_path / "set").label_names == ("animals",)
    assert loaded(inner).label_names == ("bird", "cat", "dog")
    assert loaded(tmp_path / "set").label_names == ("animals",)


def test_broken_images_take_their_labels_with_them(tmp_path):
    """With skip_broken the labels stay those of the images that are left."""
    root = class_folders(tmp_path / "images")
    (root / "cat" / "deeper" / "1.png").write_bytes(b"torn")
    with pytest.warns(UserWarning, match="left out 1 of 5"):
        images = loaded(root, skip_broken=True)
    assert [images.label_names[number] for number in images.labels] == ["bird", "cat", "dog", "dog"]


def test_what_has_no_labels_says_so_in_one_line(tmp_path):
    """No folders, some images outside them, None and -1, lists, and arrays of samples have a line each."""
    assert "lie in no folders" in error_line(ValueError, write_folder(tmp_path / "flat"), labelled=True)
    mixed = class_folders(tmp_path / "mixed")
    (mixed / "stray.png").write_bytes(png(noise(seed=9)))
    assert f"1 of 6 images in '{mixed}' have no label ({mixed}/stray.png)" in error_line(
        ValueError, mixed, labelled=True
    )
    said = error_line(ValueError, table(tmp_path / "gaps.parquet", ["a", None, "b", "", "b"]), labelled=True)
    assert "2 of 5 images" in said and "row 1 of" in said and "row 3 of" in said
    hidden = table(tmp_path / "hidden.parquet", [-1] * 5, datasets.ClassLabel(names=["a", "b"]))
    assert "5 of 5 images" in error_line(ValueError, hidden, labelled=True)
    assert "labels of" in error_line(ValueError, table(tmp_path / "lists.parquet", [[1]] * 5), labelled=True)
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "00000000-00000001.npy", np.zeros((2, 8, 8, 3), np.uint8))
    assert "arrays of samples" in error_line(ValueError, tmp_path / "arrays", labelled=True)
    for place in ("digits", mixed):
        assert "label_column is 'label'" in error_line(ValueError, place, labelled=True, label_column="label")


def test_labels_are_numbered_as_other_names_are(tmp_path):
    """labels_as gives the numbers of the same names in another order; a label that is not among them is named."""
    images = loaded(class_folders(tmp_path / "images"))
    assert images.labels_as(["dog", "cow", "cat", "bird"]).tolist() == [3, 2, 2, 0, 0]
    with pytest.raises(ValueError, match="labels bird are not among the model's classes; allowed: cat, dog"):
        images.labels_as(["cat", "dog"], "the model's classes")


def test_numbers_sort_as_numbers_and_mixed_names_as_words():
    """2 comes before 10 where all are numbers, and 10 before 2 where one is a word; negative numbers come first."""
    assert in_order({"10", "2", "-5"}) == ("-5", "2", "10")
    assert in_order({"10", "2", "x"}) == ("10", "2", "x")
    assert number_labels("set", [True, False], str).names == ("False", "True")
