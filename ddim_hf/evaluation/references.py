"""What distances are taken to: images, whose features are kept by content, or clean-fid's precomputed statistics."""

import hashlib
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock
from tqdm.auto import tqdm

from ..data import MAX_CACHED_BYTES, ImageSet, default_cache, load_images
from ..data.cache import digest
from ..data.decoding import DECODING
from ..data.messages import refuse_options
from ..files import whole_file
from .features import FeatureExtractor
from .frechet import Statistics
from .originals import OriginalImages, load_originals
from .unfinished import SAVE_SECONDS

BATCH = 128  # images of a set through the feature extractor at once
CLEANFID_SPLITS = "train|test|trainval|trainval70k|custom"


@dataclass
class Reference:
    """What distances are taken to: its images, or clean-fid's precomputed statistics (`images` is None)."""

    name: str
    split: str | None
    images: ImageSet | OriginalImages | None
    resolution: int | None

    def statistics(self, extractor: FeatureExtractor, mode: str, cache_dir: str | Path | None) -> Statistics:
        if self.images is not None:
            return reference_statistics(self.images, extractor, cache_dir)
        mean, covariance = self._precomputed(mode, "FID")
        return Statistics(mean, covariance, 2)  # the count is not on record, and not needed

    def features(self, extractor: FeatureExtractor, mode: str, cache_dir: str | Path | None) -> np.ndarray:
        if self.images is not None:
            return reference_features(self.images, extractor, cache_dir)
        return self._precomputed(mode, "KID")

    def protocol(self, statistics: Statistics) -> dict[str, Any]:
        """What a figure says of it; the hash is that of the images, or of clean-fid's statistics."""
        if self.images is None:
            count, content = None, digest(statistics.mean.tobytes() + statistics.covariance.tobytes())
        else:
            count, content = len(self.images), self.images.fingerprint
        return {"reference": self.name, "split": self.split, "num_reference": count, "reference_hash": content}

    def _precomputed(self, mode: str, metric: str) -> Any:
        from cleanfid.features import get_reference_statistics

        try:
            return get_reference_statistics(self.name, self.resolution, mode=mode, split=self.split, metric=metric)
        except OSError as error:  # urllib's too
            raise FileNotFoundError(
                f"clean-fid has no {metric} statistics of {self.name}/{self.split} at {self.resolution} pixels here, "
                f"and cannot download them ({error}): give --reference a dataset or a folder"
            ) from error


def load_reference(
    name: str,
    *,
    resolution: int,
    channels: int | None,
    split: str | None = None,
    extractor: FeatureExtractor,
    skip_broken: bool = False,
    max_cached_bytes: int = MAX_CACHED_BYTES,
    **data: Any,
) -> Reference:
    """Open what `load_images` opens or, by a name such as "cifar10/train", clean-fid's precomputed statistics.

    Args:
        resolution, channels: of the images, as in `load_images`. Where channels is None each image is at its own size
            and in colour, as clean-fid reads a folder, and resolution chooses among clean-fid's statistics alone.
        skip_broken, max_cached_bytes: as in `load_images`, not for images at their own size.
        data: how images are read, by the other arguments of `load_images`.

    Raises:
        ValueError: precomputed statistics with features other than Inception's.
    """
    known = re.fullmatch(rf"([\w-]+)/({CLEANFID_SPLITS})", name)
    if known and not Path(name).exists():
        if extractor.metric != "fid":
            raise ValueError(f"reference {name!r} is clean-fid's, of Inception; {extractor.name} needs images")
        refuse_options(name, **{key: data.get(key) for key in ("image_column", "config_name", "revision")})
        return Reference(known[1], known[2], None, resolution)
    if channels is None:
        images = load_originals(name, split=split, **data)
    else:
        size = {"resolution": resolution, "channels": channels}
        decoding = {"skip_broken": skip_broken, "max_cached_bytes": max_cached_bytes}
        images = load_images(name, split=split, **size, **decoding, **data)
    return Reference(short_name(name), images.split, images, resolution)


def short_name(name: str | Path) -> str:
    """A local path by its last part, so that no figure carries a machine's folders; by two where that is "images"."""
    if not Path(name).exists():
        return str(name)
    path = Path(name).resolve()
    return f"{path.parent.name}/images" if path.name == "images" else path.name


# Features of images, kept


def reference_statistics(
    images: ImageSet | OriginalImages,
    extractor: FeatureExtractor,
    cache_dir: str | Path | None = None,
    batch_size: int = BATCH,
) -> Statistics:
    """Statistics of all images, kept in `cache_dir` (as for `load_images`) by content: their fingerprint, how they
    are decoded, and the extractor's name and hash. The first process to come computes them; the others wait for its
    file. Where it is killed the next one goes on from its last note, to the same bits.

    Raises:
        ValueError: fewer than two images, or features that are not finite.
    """

    def compute(unfinished: Path | None) -> dict[str, np.ndarray]:
        whole, saved_at = Statistics(), time.monotonic()
        if unfinished and unfinished.is_file():
            whole.load(unfinished)
        for numbers, features in feature_batches(images, extractor, range(whole.count, len(images)), batch_size):
            whole.update(features, [images.label(number) for number in numbers])
            if unfinished and not whole.not_finite and time.monotonic() - saved_at >= SAVE_SECONDS:
                whole.save(unfinished)
                saved_at = time.monotonic()
        whole.check()
        return {"mean": whole.mean, "covariance": whole.covariance, "count": np.int64(whole.count)}

    kept = _kept("statistics", images, extractor, cache_dir, compute)
    return Statistics(kept["mean"], kept["covariance"], int(kept["count"]))


def reference_features(
    images: ImageSet | OriginalImages,
    extractor: FeatureExtractor,
    cache_dir: str | Path | None = None,
    batch_size: int = BATCH,
) -> np.ndarray:
    """Features of all images, float32 [N, D], kept as `reference_statistics` keeps its own (KID needs them)."""

    def compute(unfinished: Path | None) -> dict[str, np.ndarray]:
        with open(unfinished or os.devnull, "a+b") as notes:
            done = _arrays(notes) if unfinished else []
            missing = range(sum(map(len, done)), len(images))
            for _, features in feature_batches(images, extractor, missing, batch_size):
                np.save(notes, features)
                notes.flush()
                done.append(features)
        return {"features": np.concatenate(done)}

    return _kept("features", images, extractor, cache_dir, compute)["features"]


def _arrays(file: BinaryIO) -> list[np.ndarray]:
    """What `np.save` has written to a file, one array after another; a torn one at its end is cut off."""
    arrays, end = [], 0
    file.seek(0)
    with suppress(EOFError, ValueError):
        while True:
            arrays.append(np.load(file))
            end = file.tell()
    file.truncate(end)
    return arrays


def feature_batches(
    images: ImageSet | OriginalImages, extractor: FeatureExtractor, numbers: Sequence[int], batch_size: int = BATCH
) -> Iterator[tuple[Sequence[int], np.ndarray]]:
    """Yield numbers of images and their features, one batch after the other."""
    with tqdm(total=len(numbers), desc=f"features of {images.name}", unit=" images", delay=2) as bar:
        for start in range(0, len(numbers), batch_size):
            batch = numbers[start : start + batch_size]
            yield batch, extractor(images[batch])
            bar.update(len(batch))


def _kept(
    kind: str,
    images: ImageSet | OriginalImages,
    extractor: FeatureExtractor,
    cache_dir: str | Path | None,
    compute: Callable[[Path | None], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    content = f"{images.fingerprint} {DECODING} {extractor.name} {extractor.hash}"
    key = hashlib.sha256(content.encode()).hexdigest()[:32]
    file = Path(cache_dir or default_cache()).expanduser() / "features" / f"{kind}-{key}.npz"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{file}.lock").acquire()
    except OSError as error:
        warnings.warn(f"{file.parent} cannot be written ({error}): features are not kept", stacklevel=3)
        return compute(None)
    with lock:
        if not file.is_file():
            unfinished = file.with_suffix(".unfinished.npz")
            with whole_file(file) as beside:
                np.savez(beside, **compute(unfinished))
            unfinished.unlink(missing_ok=True)
        with np.load(file) as kept:
            return dict(kept)
