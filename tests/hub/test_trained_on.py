"""Which images a model names as its own."""

import json

import pytest
from PIL import Image

from ddim_hf.data import load_images
from ddim_hf.hub import others_than_trained_on, trained_on
from ddim_hf.training import TrainingConfig, train


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


def test_local_images_that_are_not_here_are_not_looked_up(tmp_path, monkeypatch):
    """A folder's name is no id on the Hub: where it is not here, that is said in one line; and so is another folder of
    that name."""
    monkeypatch.chdir(tmp_path)
    record = {"dataset_name": "mine", "dataset_on_hub": False, "split": "train", "validation_split": "none"}
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="was trained on 'mine', local images that are not here; allowed: --data"):
        trained_on(tmp_path)
    (tmp_path / "mine").mkdir()
    for shade in range(2):
        Image.new("RGB", (8, 8), shade).save(tmp_path / "mine" / f"{shade}.png")
    images = load_images(**trained_on(tmp_path), resolution=8, channels=3, cache_dir=tmp_path / "cache")
    assert others_than_trained_on(tmp_path, images) is None
    for fingerprint in (images.fingerprint, "0123"):
        (tmp_path / "config.json").write_text(json.dumps(record | {"dataset_fingerprint": fingerprint}))
        note = others_than_trained_on(tmp_path, images)
        assert note is None if fingerprint == images.fingerprint else "'mine' holds other images than" in note


def test_a_run_with_classes_knows_its_images(tmp_path):
    """Of a run on labelled images nothing is noted of its own images, and other ones are; of a record of before, which
    has no fingerprint of the images without their labels, nothing is."""
    settings = dict(class_conditional=True, block_out_channels="8,8", max_train_steps=1, samplers="none")
    settings |= dict(logger="none", validation_split="none", cache_dir=str(tmp_path / "cache"))
    run = train(TrainingConfig(output_dir=str(tmp_path / "run"), **settings))
    images = load_images(**trained_on(run), resolution=8, channels=1, cache_dir=tmp_path / "cache")
    assert others_than_trained_on(run, images) is None
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(record | {"images_fingerprint": "0123"}))
    assert "'digits' holds other images than" in others_than_trained_on(run, images)
    del record["images_fingerprint"]
    (run / "config.json").write_text(json.dumps(record))
    assert others_than_trained_on(run, images) is None
