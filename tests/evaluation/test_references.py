"""References: kept by content, or clean-fid's own statistics."""

import json
import os
import runpy
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
from image_files import write_configurations, write_folder
from training_runs import ROOT, free_port

from ddim_hf.data import load_images
from ddim_hf.evaluation import evaluate, load_reference, references
from ddim_hf.evaluation.features import load_feature_extractor
from ddim_hf.evaluation.references import reference_features, reference_statistics


def test_the_reference_is_kept_by_content(files, tmp_path, monkeypatch):
    """A reference is computed once for each content, decoding and extractor, and a kept one is taken as it is."""
    extractor = load_feature_extractor(files / "features.pt", device="cpu")
    images = load_images("digits", split="test", resolution=8, channels=1)
    first = reference_statistics(images, extractor, tmp_path, batch_size=50)
    extractor._forward = None  # calling it would fail
    assert np.array_equal(reference_statistics(images, extractor, tmp_path).mean, first.mean)
    other = load_images("digits", split="train", resolution=8, channels=1)
    with pytest.raises(TypeError):
        reference_statistics(other, extractor, tmp_path)
    assert len(list((tmp_path / "features").glob("*.npz"))) == 1
    monkeypatch.setattr(references, "DECODING", "another")
    with pytest.raises(TypeError):
        reference_statistics(images, extractor, tmp_path)


def covariance(*arguments):
    return reference_statistics(*arguments).covariance


@pytest.mark.parametrize("measured", [covariance, reference_features])
def test_killed_references_are_gone_on_with(files, tmp_path, monkeypatch, measured):
    """A reference whose measuring was killed is measured from where it was on, to the bits of one that was not."""
    monkeypatch.setattr(references, "SAVE_SECONDS", 0.0)
    extractor = load_feature_extractor(files / "features.pt", device="cpu")
    images = load_images("digits", split="test", resolution=8, channels=1)
    whole = measured(images, extractor, tmp_path / "whole", 20)
    forward, passes = extractor._forward, []

    def killed(batch):
        passes.append(len(batch))
        if len(passes) == 4:
            raise KeyboardInterrupt
        return forward(batch)

    extractor._forward = killed
    for _ in range(2):  # the second goes on
        with pytest.raises(KeyboardInterrupt) if len(passes) < 4 else nullcontext():
            again = measured(images, extractor, tmp_path / "killed", 20)
        for torn in (tmp_path / "killed/features").glob("features-*unfinished*"):
            torn.write_bytes(torn.read_bytes() + b"\x93NUMPY torn")
    assert len(passes) == 4 + 6  # of nine batches, three were noted
    assert np.array_equal(again, whole)
    assert len(list((tmp_path / "killed/features").glob("*.npz"))) == 1


REFRESHED = """
import sys, time
import ddim_hf.data.cache as cache
from ddim_hf.evaluation import evaluate
decode, decoded = cache.decode, []
cache.decode = lambda *image: (decoded.append(1), time.sleep(0.1), decode(*image))[-1]
folder, reference, output, features, kept = sys.argv[1:]
settings = dict(cache_dir=kept, feature_extractor=features, num_images=4, num_inference_steps=[2], kid=True)
evaluate(folder, reference, output, refresh_cache=True, **settings)
print("decoded", len(decoded))
"""


def test_one_process_of_a_machine_reads_a_reference_again(files, tmp_path):
    """With refresh_cache one of two processes decodes all of a reference, and the other takes what that one left."""
    reference = write_folder(tmp_path / "reference")
    words = [files / "tiny", reference, tmp_path / "results.json", files / "features.pt", tmp_path / "cache"]
    shared = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", REFRESHED, *map(str, words)],
            env={**shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in "10"
    ]
    said = [process.communicate(timeout=100)[0] for process in pair]
    assert ["decoded 0" in said[0], "decoded 5" in said[1]] == [True, True]
    assert len(json.loads((tmp_path / "results.json").read_text())["results"]) == 2


def test_precomputed_statistics_are_cleanfids(monkeypatch, tmp_path, files):
    """A reference "cifar10/train" is clean-fid's own file of statistics, of Inception alone."""
    import cleanfid as package

    monkeypatch.setattr(package, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "stats").mkdir()
    np.savez(tmp_path / "stats/cifar10_clean_train_32.npz", mu=np.arange(3.0), sigma=np.eye(3))
    inception = load_feature_extractor(inception_weights=files / "inception.pt", device="cpu")
    reference = load_reference("cifar10/train", resolution=32, channels=3, extractor=inception)
    statistics = reference.statistics(inception, "clean", None)
    assert np.array_equal(statistics.mean, np.arange(3.0)) and np.array_equal(statistics.covariance, np.eye(3))
    own = load_feature_extractor(files / "features.pt", device="cpu")
    with pytest.raises(ValueError, match="features.pt needs images"):
        load_reference("cifar10/train", resolution=32, channels=3, extractor=own)
    with pytest.raises(ValueError, match="config_name is 'small', and 'cifar10/train' has no such thing"):
        load_reference("cifar10/train", resolution=32, channels=3, extractor=inception, config_name="small")


def test_the_reference_is_read_as_it_is_asked_for(files, folders, tmp_path, own_caches):
    """Of several configurations the chosen one is measured against; what the reference does not have is refused."""
    several = str(write_configurations(tmp_path / "several", small=2, large=5))
    settings = {"feature_extractor": files / "features.pt", "cache_dir": tmp_path / "cache", "refresh_cache": True}
    for number, (name, count) in enumerate((("small", 2), ("large", 5))):
        output = tmp_path / f"{number}.json"
        (row,) = evaluate(str(folders / "a"), several, output, dataset_config_name=name, **settings)
        assert row["num_reference"] == count
    with pytest.raises(FileNotFoundError, match="--dataset_config_name"):
        evaluate(str(folders / "a"), several, tmp_path / "none.json", **settings)
    with pytest.raises(ValueError, match="revision is 'v1'"):
        evaluate(str(folders / "a"), "digits", tmp_path / "none.json", dataset_revision="v1", **settings)


def test_broken_images_of_the_reference_are_left_out(files, folders, tmp_path, monkeypatch, capsys):
    """evaluate.py names a torn image of the reference; with --skip_broken it measures as against the others alone. In
    a folder that is measured each image counts."""
    torn, whole = write_folder(tmp_path / "torn"), write_folder(tmp_path / "whole")
    (torn / "002.png").write_bytes((torn / "002.png").read_bytes()[:60])
    (whole / "002.png").unlink()

    def measured(reference, *more, model=files / "tiny"):
        words = [model, "--reference", reference, "--output", tmp_path / f"{len(more)}{reference.name}.json", *more]
        words += ["--feature_extractor", files / "features.pt", "--num_images", 2, "--num_inference_steps", 2]
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, words), "--cache_dir", str(tmp_path / "cache")])
        runpy.run_path(str(ROOT / "examples/evaluate.py"), run_name="__main__")
        (row,) = json.loads((tmp_path / f"{len(more)}{reference.name}.json").read_text())["results"]
        return row["num_reference"], row["value"]

    with pytest.raises(SystemExit, match="2"):
        measured(torn)
    said = capsys.readouterr().err
    assert "torn/002.png cannot be read" in said and "--skip_broken" in said and said.count("\n") == 1
    with pytest.warns(UserWarning, match="left out 1 of 5 images"):
        left = measured(torn, "--skip_broken")
    assert left == measured(whole) and left[0] == 4
    with pytest.raises(SystemExit, match="2"):
        measured(torn, "--skip_broken", model=folders / "a")
    assert "num_inference_steps, num_images, skip_broken are given, and" in capsys.readouterr().err
