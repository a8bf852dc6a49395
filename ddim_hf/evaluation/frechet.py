"""Frechet distances between sets of images: features, their statistics, and the distance (Heusel et al. 2017).

Features are Inception's through clean-fid's own code and resizer (Parmar et al. 2022), and the distance is then FID;
or those of any TorchScript file, and it is then called a Frechet distance on those features.
"""

import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from tqdm.auto import tqdm

from .. import broken_torchvision
from ..data import ImageSet, default_cache

MODES = ("clean", "legacy_pytorch", "legacy_tensorflow")
INCEPTION_FILE = "inception-2015-12-05.pt"
LEGACY_FILE = "pt_inception-2015-12-05-6726825d.pth"


class FeatureExtractor:
    """A function from images, uint8 [N, C, H, W] with C 1 or 3, to features, float32 array [N, D].

    `name` is "inception-<mode>" or the file's name, `hash` the SHA-256 of its weights' file, and `metric` what a
    distance on its features is called: "fid" for Inception's, else "frechet_distance". Grey is repeated to 3 channels.
    """

    def __init__(self, name: str, hash: str, forward: Callable, resize: Callable | None, device: torch.device):
        self.name, self.hash, self.device = name, hash, device
        self.metric = "fid" if resize else "frechet_distance"
        self._forward, self._resize = forward, resize
        self._threads = ThreadPoolExecutor(min(8, os.cpu_count() or 1)) if resize else None

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> np.ndarray:
        """Raises ValueError for images that are not uint8 [N, C, H, W] with C 1 or 3."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"images are {images.dtype} {tuple(images.shape)}; allowed: torch.uint8 (N, C, H, W) with C 1 or 3"
            )
        images = images.cpu().expand(-1, 3, -1, -1)
        if self._resize:
            pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
            batch = torch.stack(list(self._threads.map(self._resized, pixels)))
        else:
            batch = images.float()
        return self._forward(batch.to(self.device)).float().cpu().numpy()

    def _resized(self, pixels: np.ndarray) -> torch.Tensor:
        """One image as clean-fid's ResizeDataset hands it to Inception: where it stays uint8, by way of [0, 1]."""
        resized = torch.from_numpy(np.array(self._resize(pixels))).permute(2, 0, 1)
        return resized.float().div(255) * 255 if resized.dtype == torch.uint8 else resized


def load_feature_extractor(
    feature_extractor: str | Path | None = None,
    inception_weights: str | Path | None = None,
    mode: str = "clean",
    device: str | torch.device | None = None,
) -> FeatureExtractor:
    """Load Inception as clean-fid runs it, or a TorchScript file.

    Args:
        feature_extractor: a TorchScript module from float images [N, 3, H, W] with values 0..255, at their own
            resolution, to [N, D]; None takes Inception.
        inception_weights: the file with Inception's weights, for machines without network: clean-fid's
            inception-2015-12-05.pt, or in mode legacy_pytorch pt_inception-2015-12-05-6726825d.pth. None takes what
            clean-fid has downloaded, or downloads it.
        mode: clean-fid's "clean", "legacy_pytorch" or "legacy_tensorflow".
        device: where it runs; None takes a GPU where there is one.

    Raises:
        ValueError: an unknown mode, or a file that is not what it should be.
        FileNotFoundError: no such file, or no weights and no network.
        ImportError: clean-fid is missing, or torchvision does not fit torch.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; allowed: {', '.join(map(repr, MODES))}")
    for name, file in (("feature_extractor", feature_extractor), ("inception_weights", inception_weights)):
        if file is not None and not Path(file).is_file():
            raise FileNotFoundError(f"{name} {str(file)!r}: no such file")
    if feature_extractor is not None:
        forward = _loaded(torch.jit.load, Path(feature_extractor), "a TorchScript module", map_location=device).eval()
        return FeatureExtractor(Path(feature_extractor).name, file_hash(feature_extractor), forward, None, device)
    import_cleanfid()
    from cleanfid.resize import build_resizer

    load = _legacy_inception if mode == "legacy_pytorch" else _inception
    forward, weights = load(inception_weights, mode, device)
    return FeatureExtractor(f"inception-{mode}", file_hash(weights), forward, build_resizer(mode), device)


def import_cleanfid():
    """Import clean-fid, which imports torchvision; raises ImportError in one line where either cannot be had."""
    if broken_torchvision.reason:
        raise ImportError(
            f"torch {_version('torch')} and torchvision {_version('torchvision')} do not fit together "
            f"({broken_torchvision.reason}): install the torchvision that was released with this torch"
        )
    try:
        import cleanfid.fid  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error}: FID and KID need clean-fid, pip install 'ddim_hf[eval]'") from error


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(missing)"


def file_hash(file: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _loaded(load: Callable, file: Path, what: str, **arguments: Any) -> Any:
    try:
        return load(str(file), **arguments)
    except Exception as error:  # of pickle, zip and TorchScript
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{str(file)!r} is not {what}, or is torn ({reason[:120]})") from error


def _inception(file: str | Path | None, mode: str, device: torch.device) -> tuple[Callable, Path]:
    from cleanfid import downloads_helper
    from cleanfid.inception_torchscript import InceptionV3W

    # clean-fid keeps the file here. It is put there whole, because clean-fid takes any file that it finds.
    kept = Path(tempfile.gettempdir() if os.name == "nt" else "/tmp", INCEPTION_FILE)
    if file is None and not kept.is_file():
        with FileLock(f"{kept}.lock"), tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            if not kept.is_file():
                _downloaded(downloads_helper.check_download_inception, folder, url=downloads_helper.inception_url)
                os.replace(Path(folder, INCEPTION_FILE), kept)
    file = Path(file or kept)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(file, Path(folder, INCEPTION_FILE))
        inside = mode == "legacy_tensorflow"
        what = "Inception as a TorchScript module with layers"
        try:
            module = InceptionV3W(folder, download=False, resize_inside=inside)
        except Exception as error:  # of zip and TorchScript
            raise ValueError(f"{str(file)!r} is not {what}, or is torn: delete it or give another") from error
    return module.to(device).eval(), file


def _legacy_inception(file: str | Path | None, mode: str, device: torch.device) -> tuple[Callable, Path]:
    from cleanfid.features import build_feature_extractor
    from cleanfid.inception_pytorch import FID_WEIGHTS_URL

    hub = torch.hub.get_dir()
    if file is None:
        forward = _downloaded(build_feature_extractor, mode, device, use_dataparallel=False, url=FID_WEIGHTS_URL)
        return forward, Path(hub, "checkpoints", LEGACY_FILE)
    with tempfile.TemporaryDirectory() as folder:  # torch.hub takes a file of this name for its own download
        Path(folder, "checkpoints").mkdir()
        shutil.copyfile(file, Path(folder, "checkpoints", LEGACY_FILE))
        torch.hub.set_dir(folder)
        try:
            return build_feature_extractor(mode, device, use_dataparallel=False), Path(file)
        except Exception as error:  # of pickle, zip and load_state_dict
            raise ValueError(f"{str(file)!r} does not hold Inception's weights for legacy_pytorch") from error
        finally:
            torch.hub.set_dir(hub)


def _downloaded(fetch: Callable, *arguments: Any, url: str, **keywords: Any) -> Any:
    try:
        return fetch(*arguments, **keywords)
    except OSError as error:  # urllib's, all of them
        raise FileNotFoundError(
            f"Inception's weights are not here and cannot be downloaded ({error}): give --inception_weights FILE, "
            f"fetched elsewhere from {url}, or --feature_extractor FILE for a Frechet distance on other features"
        ) from error


class Statistics:
    """Mean and covariance of features, accumulated batch by batch in float64 (Chan et al. 1983).

    `count` is the number of images, `mean` [D], `covariance` [D, D] (divided by count - 1, as numpy.cov).
    """

    def __init__(self, mean: np.ndarray | None = None, covariance: np.ndarray | None = None, count: int = 0):
        self.mean, self.count = mean, count
        self._scatter = None if covariance is None else covariance * max(count - 1, 1)

    @property
    def covariance(self) -> np.ndarray:
        return self._scatter / max(self.count - 1, 1)

    def update(self, features: np.ndarray | torch.Tensor) -> "Statistics":
        """Add features [N, D]; returns self."""
        features = np.asarray(features, dtype=np.float64)
        mean = features.mean(axis=0)
        centred = features - mean
        return self._add(mean, centred.T @ centred, len(features))

    def merge(self, other: "Statistics") -> "Statistics":
        """Add what another has seen; returns self."""
        return self._add(other.mean, other._scatter, other.count) if other.count else self

    def _add(self, mean: np.ndarray, scatter: np.ndarray, count: int) -> "Statistics":
        if not self.count:
            self.mean, self._scatter, self.count = mean, scatter, count
            return self
        total, shift = self.count + count, mean - self.mean
        self._scatter = self._scatter + scatter + np.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total
        return self

    def reduced(self, accelerator: Any = None) -> "Statistics":
        """Over all processes, the same on each; every process has to call it (`accelerator` is not needed)."""
        from accelerate.utils import gather_object

        whole = Statistics()
        for part in gather_object([(self.mean, self._scatter, self.count)]):
            if part[2]:
                whole._add(*part)
        return whole


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) for covariances A and B (Heusel et al. 2017, eq. 6).

    The last trace is the sum of the singular values of R_a^T R_b, where A = R_a R_a^T and B = R_b R_b^T. With
    covariances of full rank it is clean-fid's value within 1e-6. With fewer images than features clean-fid's own
    `sqrtm(A B)` turns rounding errors of 1e-16 into 1e-8 a feature and gives 1e-6 to 1e-4 too little, while this keeps
    12 digits. For 2048 features on one busy CPU core it took 19 s where `sqrtm` took 36 s (80 s at a deficient rank).
    """
    product = _root(a.covariance).T @ _root(b.covariance)
    overlap = np.linalg.svd(product, compute_uv=False).sum()
    difference = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return max(0.0, float(difference @ difference + traces - 2 * overlap))


def _root(covariance: np.ndarray) -> np.ndarray:
    """R [D, rank] with R R^T = covariance; eigenvalues that are rounding errors are left out."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > 16 * np.finfo(np.float64).eps * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])


def reference_statistics(
    images: ImageSet, extractor: FeatureExtractor, cache_dir: str | Path | None = None, batch_size: int = 128
) -> Statistics:
    """Statistics of all images, kept in `cache_dir` (as for `load_images`) by content: their fingerprint and the
    extractor's name and hash. The first process to come computes them; the others wait for its file."""

    def compute() -> dict[str, np.ndarray]:
        whole = Statistics()
        for features in feature_batches(images, extractor, batch_size):
            whole.update(features)
        return {"mean": whole.mean, "covariance": whole.covariance, "count": np.int64(whole.count)}

    kept = _cached("statistics", images, extractor, cache_dir, compute)
    return Statistics(kept["mean"], kept["covariance"], int(kept["count"]))


def reference_features(
    images: ImageSet, extractor: FeatureExtractor, cache_dir: str | Path | None = None, batch_size: int = 128
) -> np.ndarray:
    """Features of all images, float32 [N, D], kept as `reference_statistics` keeps its own (KID needs them)."""

    def compute() -> dict[str, np.ndarray]:
        return {"features": np.concatenate(list(feature_batches(images, extractor, batch_size)))}

    return _cached("features", images, extractor, cache_dir, compute)["features"]


def feature_batches(images: ImageSet, extractor: FeatureExtractor, batch_size: int):
    """Yield the features of one batch after the other."""
    with tqdm(total=len(images), desc=f"features of {images.name}", unit=" images", delay=2) as bar:
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            yield extractor(batch)
            bar.update(len(batch))


def _cached(kind: str, images: ImageSet, extractor: FeatureExtractor, cache_dir, compute) -> dict[str, np.ndarray]:
    key = hashlib.sha256(f"{images.fingerprint} {extractor.name} {extractor.hash}".encode()).hexdigest()[:32]
    file = Path(cache_dir or default_cache()) / "features" / f"{kind}-{key}.npz"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{file}.lock").acquire()
    except OSError as error:
        warnings.warn(f"{file.parent} cannot be written ({error}): features are not kept", stacklevel=3)
        return compute()
    with lock:
        if not file.is_file():
            temporary = file.with_suffix(".tmp.npz")
            np.savez(temporary, **compute())
            os.replace(temporary, file)
        with np.load(file) as kept:
            return dict(kept)
