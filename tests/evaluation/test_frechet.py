"""Distances between features: clean-fid's own, and none where there is none."""

import numpy as np
import pytest
from cleanfid import fid as cleanfid

from ddim_hf.evaluation import kernel_distance
from ddim_hf.evaluation.frechet import Statistics, frechet_distance


def test_the_distance_is_cleanfids():
    """With more images than features the distance is clean-fid's within 1e-6, however the images were batched."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((500, 64)) @ rng.standard_normal((64, 64)), rng.standard_normal((300, 64)) + 0.3
    theirs = cleanfid.frechet_distance(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))
    whole = Statistics()
    for part in np.split(a, [1, 40, 480]):
        whole.merge(Statistics().update(part))
    assert frechet_distance(whole, Statistics().update(b)) == pytest.approx(theirs, abs=1e-6)
    np.testing.assert_allclose(whole.covariance, np.cov(a, rowvar=False), atol=1e-12)
    assert whole.reduced().count == 500


def test_few_images_lose_no_digits():
    """With fewer images than features the distance is the one computed from the images themselves, to 1e-9."""
    random = np.random.default_rng(0)
    a, b = random.standard_normal((30, 256)), random.standard_normal((400, 256)) * np.exp(-np.arange(256) / 20)
    roots = [(x - x.mean(0)).T / np.sqrt(len(x) - 1) for x in (a, b)]
    overlap = np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    exact = ((a.mean(0) - b.mean(0)) ** 2).sum() + sum((root**2).sum() for root in roots) - 2 * overlap
    assert frechet_distance(Statistics().update(a), Statistics().update(b)) == pytest.approx(exact, abs=1e-9)


def test_the_kernel_distance_is_cleanfids_and_repeats():
    """KID is clean-fid's own with its random subsets fixed, and leaves numpy's generator as it was."""
    random = np.random.default_rng(0)
    a, b = random.standard_normal((50, 8)), random.standard_normal((60, 8)) + 1
    np.random.seed(3)
    theirs, state = cleanfid.kernel_distance(a, b), np.random.get_state()[1].tolist()
    assert kernel_distance(a, b, seed=3) == kernel_distance(a, b, seed=3) == theirs > 0
    assert np.random.get_state()[1].tolist() == state


def test_features_that_are_not_finite_have_no_distance():
    """One NaN or infinity among the features is an error that names its image, on either side, merged or not."""
    features = np.random.default_rng(0).standard_normal((20, 4))
    sound = Statistics().update(features)
    for value in (np.nan, np.inf):
        broken = features.copy()
        broken[7, 2] = value
        statistics = (
            Statistics().update(features[:0]).merge(Statistics().update(broken, [f"{i}.png" for i in range(20)]))
        )
        for pair in ((statistics.reduced(), sound), (sound, statistics)):
            with pytest.raises(ValueError, match=r"features of 1 of 20 images are not finite: 7\.png"):
                frechet_distance(*pair)
        with pytest.raises(ValueError, match="not finite: image 7"):
            frechet_distance(Statistics().update(broken), sound)
        with pytest.raises(ValueError, match="of finite features"):
            kernel_distance(broken, features)
    with pytest.raises(ValueError, match="too large"):
        frechet_distance(Statistics().update(features * 1e200), sound)


def test_one_image_has_no_distance():
    """A distance of fewer than two images, which have no covariance, is an error, on either side."""
    features = np.random.default_rng(0).standard_normal((20, 4))
    few, many = Statistics().update(features[:1]), Statistics().update(features)
    for pair in ((few, many), (many, few), (Statistics(), many)):
        with pytest.raises(ValueError, match="allowed: at least 2 images"):
            frechet_distance(*pair)
    with pytest.raises(ValueError, match="kernel distance of 1 images; allowed: at least 2"):
        kernel_distance(features[:1], features)
