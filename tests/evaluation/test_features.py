"""Features: clean-fid's own of the same files, and distances over them in the right order."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cleanfid import fid as cleanfid
from evaluation_files import pixels

from ddim_hf.data import load_images
from ddim_hf.evaluation.features import load_feature_extractor
from ddim_hf.evaluation.frechet import Statistics, frechet_distance

SHARED = Path(__file__).resolve().parents[3] / "shared"


def test_a_set_against_itself_is_zero(files, folders):
    """The distance of a set with itself is under 1e-3, on 16 features and on 2048."""
    for arguments in ({"feature_extractor": files / "features.pt"}, {"inception_weights": files / "inception.pt"}):
        features = load_feature_extractor(**arguments, device="cpu")(pixels(folders / "a"))[:40]
        statistics = Statistics().update(features[:, :512])
        assert frechet_distance(statistics, statistics) < 1e-3


@pytest.mark.parametrize("mode", ["clean", "legacy_tensorflow"])
def test_features_are_cleanfids(files, folders, tmp_path, mode):
    """Inception's features of a folder are those of clean-fid's own path, to the bit, in either mode."""
    from cleanfid.inception_torchscript import InceptionV3W

    (tmp_path / "inception-2015-12-05.pt").write_bytes((files / "inception.pt").read_bytes())
    model = InceptionV3W(str(tmp_path), download=False, resize_inside=mode == "legacy_tensorflow")
    theirs = cleanfid.get_folder_features(
        str(folders / "b"), model, num_workers=0, batch_size=60, device="cpu", mode=mode, verbose=False
    )
    extractor = load_feature_extractor(inception_weights=files / "inception.pt", mode=mode, device="cpu")
    assert np.array_equal(extractor(pixels(folders / "b")), theirs) and theirs.shape == (60, 2048)
    assert (extractor.name, extractor.metric) == (f"inception-{mode}", "fid")


def test_legacy_pytorch_takes_a_file_of_weights(tmp_path, folders, monkeypatch):
    """In mode legacy_pytorch the weights come from the file, and the features are clean-fid's own with them."""
    from cleanfid import features, inception_pytorch

    torch.manual_seed(0)
    made = {}
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda self, state: made.update(self.state_dict()))
    monkeypatch.setattr(inception_pytorch, "load_state_dict_from_url", lambda *args, **keywords: {})
    theirs = features.build_feature_extractor("legacy_pytorch", torch.device("cpu"), use_dataparallel=False)
    monkeypatch.undo()
    torch.save(made, tmp_path / "weights.pth")
    ours = load_feature_extractor(inception_weights=tmp_path / "weights.pth", mode="legacy_pytorch", device="cpu")
    files = sorted(map(str, (folders / "a").iterdir()))[:2]
    expected = cleanfid.get_files_features(
        files, theirs, num_workers=0, device="cpu", mode="legacy_pytorch", verbose=False
    )
    np.testing.assert_array_equal(ours(pixels(folders / "a")[:2]), expected)


def test_more_noise_is_further_away(files):
    """The distance grows with the noise on the images."""
    extractor = load_feature_extractor(files / "features.pt", device="cpu")
    assert_grows(extractor, load_images("digits", resolution=8, channels=1)[:], (0, 10, 30, 60, 100))


@pytest.mark.skipif(not (SHARED / "features").is_dir(), reason="the features trained on CIFAR-10 are not here")
def test_more_noise_is_further_away_on_cifar10_features(tmp_path):
    """So it does for CIFAR-10 on features trained on it."""
    extractor = load_feature_extractor(SHARED / "features/cifar10_features.pt", device="cpu")
    images = load_images(str(SHARED / "data/cifar10-jpeg"), split="test", resolution=32, cache_dir=tmp_path)
    assert_grows(extractor, images[:400], (0, 10, 20, 40))


def assert_grows(extractor, images, levels):
    half = len(images) // 2
    reference = Statistics().update(extractor(images[:half]))
    noise = torch.randn(images[half:].shape, generator=torch.Generator().manual_seed(0))
    noisy = [(images[half:] + level * noise).round().clamp(0, 255).to(torch.uint8) for level in levels]
    found = [frechet_distance(Statistics().update(extractor(x)), reference) for x in noisy]
    assert found == sorted(found) and found[-1] > 3 * found[0], found


def test_without_weights_or_network_one_line_names_the_options(monkeypatch, tmp_path):
    """Without Inception's weights and without network one line names the options, training's among them."""
    from cleanfid import downloads_helper

    monkeypatch.setattr("ddim_hf.evaluation.features.INCEPTION_FILE", str(tmp_path / "none.pt"))
    monkeypatch.setattr(downloads_helper, "inception_url", f"file://{tmp_path}/none")
    with pytest.raises(FileNotFoundError, match="--inception_weights FILE.* or --feature_extractor FILE") as error:
        load_feature_extractor()
    assert "\n" not in str(error.value) and "--feature_extractor none" in str(error.value)
