"""Which images a model names as its own."""

import json

import pytest

from ddim_hf.hub import trained_on


def test_a_runs_record_names_its_images(tmp_path):
    """The data set is the record's, with the split that was held out, or else the trained one."""
    record = {"dataset_name": "data/mine", "split": "train", "validation_split": "dev", "image_column": "photo"}
    (tmp_path / "config.json").write_text(json.dumps(record))
    found = trained_on(tmp_path)
    assert found["name"] == "data/mine" and found["split"] == "dev" and found["image_column"] == "photo"
    (tmp_path / "config.json").write_text(json.dumps({**record, "validation_split": "none"}))
    assert trained_on(tmp_path)["split"] == "train"


def test_a_card_names_its_data_set(tmp_path):
    """Without a record the data set that the card's metadata names is taken; without one it is asked for."""
    (tmp_path / "README.md").write_text("---\ndatasets:\n- uoft-cs/cifar10\n---\n# A model\n")
    assert trained_on(tmp_path) == {"name": "uoft-cs/cifar10"}
    (tmp_path / "README.md").write_text("# A model\n")
    with pytest.raises(ValueError, match="does not tell what it was trained on; allowed: with --data"):
        trained_on(tmp_path)
