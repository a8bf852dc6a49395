"""Distances between two sets of features: Frechet's (Heusel et al. 2017), and a kernel's (Binkowski et al. 2018).

Over Inception's features they are called FID and KID.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..files import whole_file
from ..processes import gathered
from .features import import_cleanfid


class Statistics:
    """Mean and covariance of features, accumulated batch by batch in float64 (Chan et al. 1983).

    `count` is the number of images, `mean` [D], `covariance` [D, D] (divided by count - 1, as numpy.cov). Images whose
    features are not finite are left out and named in `not_finite`; such statistics have no distance to others.
    """

    def __init__(self, mean: np.ndarray | None = None, covariance: np.ndarray | None = None, count: int = 0):
        self.mean, self.count, self.not_finite = mean, count, []
        self._scatter = None if covariance is None else covariance * max(count - 1, 1)

    @property
    def covariance(self) -> np.ndarray:
        return self._scatter / max(self.count - 1, 1)

    def update(self, features: np.ndarray | torch.Tensor, names: Sequence[str] | None = None) -> "Statistics":
        """Add features [N, D] of images that have these names (None: their numbers here); returns self."""
        features = np.asarray(features, dtype=np.float64)
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            first = self.count + len(self.not_finite)
            names = names or [f"image {first + i}" for i in range(len(features))]
            self.not_finite += [names[i] for i in np.flatnonzero(~finite)]
            features = features[finite]
        if len(features):
            mean = features.mean(axis=0)
            centred = features - mean
            self._add(mean, centred.T @ centred, len(features))
        return self

    def merge(self, other: "Statistics") -> "Statistics":
        """Add what another has seen; returns self."""
        self.not_finite += other.not_finite
        if other.count:
            self._add(other.mean, other._scatter, other.count)
        return self

    def _add(self, mean: np.ndarray, scatter: np.ndarray, count: int):
        if not self.count:
            self.mean, self._scatter, self.count = mean, scatter, count
            return
        # S = S_a + S_b + (n_a n_b / n) d d^T, m = m_a + (n_b / n) d, with d = m_b - m_a (Chan et al. 1983, eq. 2.1)
        total, shift = self.count + count, mean - self.mean
        self._scatter = self._scatter + scatter + np.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def save(self, file: Path):
        """Keep what was seen, all of it finite."""
        with whole_file(file) as beside:
            np.savez(beside, mean=self.mean, scatter=self._scatter, count=np.int64(self.count))

    def load(self, file: Path):
        """Have seen what `save` kept, to the bit."""
        with np.load(file) as kept:
            self.mean, self._scatter, self.count = kept["mean"], kept["scatter"], int(kept["count"])

    def reduced(self) -> "Statistics":
        """Over all processes, the same on each; every process has to call it."""
        whole = Statistics()
        for part in gathered(self):
            whole.merge(part)
        return whole

    def check_finite(self):
        """Raise ValueError, with the images' names, where features are not finite."""
        if self.not_finite:
            first = ", ".join(self.not_finite[:5]) + ", ..." * (len(self.not_finite) > 5)
            total = self.count + len(self.not_finite)
            raise ValueError(f"features of {len(self.not_finite)} of {total} images are not finite: {first}")

    def check(self):
        """Raise ValueError where no distance can be taken: features that are not finite, or fewer than two images."""
        self.check_finite()
        if self.count < 2:
            raise ValueError(f"a distance of {self.count} image{'s' * (self.count != 1)}; allowed: at least 2 images")
        if not (np.isfinite(self.mean).all() and np.isfinite(self._scatter).all()):
            raise ValueError(f"features of {self.count} images have no finite mean and covariance: they are too large")


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) for covariances A and B (Heusel et al. 2017, eq. 6).

    With covariances of full rank it is clean-fid's value within 1e-6. With fewer images than features clean-fid's own
    `sqrtm(A B)` turns rounding errors of 1e-16 into 1e-8 a feature and gives 1e-6 to 1e-4 too little, while this keeps
    12 digits. For 2048 features on one busy CPU core it took 19 s where `sqrtm` took 36 s (80 s at a deficient rank).

    Raises:
        ValueError: features that are not finite, with the images' names, or fewer than two images.
    """
    for statistics in (a, b):
        statistics.check()
    # tr (A B)^(1/2): with A = R_a R_a^T and B = R_b R_b^T, the sum of the singular values of R_a^T R_b
    product = _root(a.covariance).T @ _root(b.covariance)
    overlap = np.linalg.svd(product, compute_uv=False).sum()
    # |mean_a - mean_b|^2 + tr A + tr B - 2 tr (A B)^(1/2), below 0 by rounding alone
    difference = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return max(0.0, float(difference @ difference + traces - 2 * overlap))


def _root(covariance: np.ndarray) -> np.ndarray:
    """R [D, rank] with R R^T = covariance; eigenvalues that are rounding errors are left out."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > 16 * np.finfo(np.float64).eps * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])


def kernel_distance(a: np.ndarray, b: np.ndarray, seed: int = 0) -> float:
    """clean-fid's KID (Binkowski et al. 2018) over features [N, D], with its random subsets fixed by `seed`.

    Raises:
        ValueError: features that are not finite, or of fewer than two images.
    """
    for features in (a, b):
        if len(features) < 2 or not np.isfinite(features).all():
            raise ValueError(f"a kernel distance of {len(features)} images; allowed: at least 2, of finite features")
    import_cleanfid()
    from cleanfid import fid

    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        return fid.kernel_distance(a, b)
    finally:
        np.random.set_state(before)
