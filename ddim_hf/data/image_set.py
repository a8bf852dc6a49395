"""A set of images, from wherever they come, as uint8 tensors of one shape."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .cache import THREADS, decode_or_reuse, default_cache, digest, fingerprint
from .decoding import decode, reason, to_pixels, unreadable
from .sources import Source, digits, open_source


class ImageSet:
    """A read-only sequence of images, all of one shape.

    `shape` is (N, C, H, W), `name` as given to `load_images`, `split` the split it chose (None: all of the digits).
    `fingerprint` is a hex string made from the images' encoded bytes, their order, resolution and channels: the same
    in every process and on every machine that holds the same data, wherever it lies.
    """

    def __init__(self, name: str, split: str | None, fingerprint: str, pixels: "np.ndarray | DecodedOnAccess"):
        self.name, self.split, self.fingerprint = name, split, fingerprint
        self.shape = tuple(pixels.shape)
        self._pixels = pixels

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices) -> torch.Tensor:
        """The images at `indices` (a slice; ints as a list, array or 1-D tensor): a new uint8 tensor [B, C, H, W]."""
        if isinstance(indices, slice):
            indices = np.arange(len(self))[indices]
        else:
            indices = torch.as_tensor(indices, dtype=torch.int64).flatten().cpu().numpy()
        return torch.from_numpy(self._pixels[indices])


class DecodedOnAccess:
    """The readable images of a source as an array [N, C, H, W] that holds no pixels: an index reads and decodes."""

    def __init__(self, source: Source, readable: np.ndarray, channels: int, resolution: int):
        self.source, self.readable = source, readable
        self.shape = (len(readable), channels, resolution, resolution)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        numbers = self.readable[indices]
        batch = np.empty((len(numbers), *self.shape[1:]), np.uint8)

        def fill(place: int, number: int):
            (encoded,) = self.source.read([number])
            try:
                batch[place] = decode(encoded, *self.shape[1:3])
            except Exception as error:  # it was readable when the set was opened
                raise unreadable(self.source.label(number), reason(error)) from error

        with ThreadPoolExecutor(max(1, min(THREADS, len(numbers)))) as pool:
            list(pool.map(fill, range(len(numbers)), numbers.tolist()))
        return batch


def load_images(
    name: str,
    *,
    split: str | None = None,
    resolution: int = 32,
    channels: int = 3,
    image_column: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    skip_broken: bool = False,
    max_cached_bytes: int = 16 * 2**30,
) -> ImageSet:
    """Opens a set of images, each resized (Lanczos, antialiased) and centre-cropped to `resolution` pixels a side.

    `name` is "digits" (scikit-learn's 1,797 images; "test" is every tenth, "train" the others), a local folder of
    images, a folder with parquet files, one parquet file, a `save_to_disk` folder, or a dataset's id on the Hub (at
    `revision`). `split` None means "train", or else the only split. Of a folder of images, the sub-folders train,
    validation, valid, val and test are splits; any others are not. Any image mode becomes `channels` 1 or 3: alpha is
    laid on white, 16 bits are scaled to 8, floats are taken as 0..1 (or 0..255 where any is above 1).

    Decoded images lie in `cache_dir` (default `$DDIM_HF_CACHE`, else `$XDG_CACHE_HOME/ddim_hf`, else
    `~/.cache/ddim_hf`); sets beyond `max_cached_bytes` are read through once and then decoded on each access.

    Raises ValueError or FileNotFoundError, in one line, for a set, split or column that is not there and for an image
    that cannot be read, unless `skip_broken`, which leaves such out; OSError where the disk is too full for the cache.
    """
    if channels not in (1, 3) or resolution < 1:
        raise ValueError(f"channels must be 1 or 3 and resolution at least 1, not {channels} and {resolution}")
    if name == "digits":
        return _load_digits(split, resolution, channels)
    source, split = open_source(str(name), split, image_column, revision)
    cache = Path(cache_dir).expanduser() if cache_dir else default_cache()
    key = fingerprint(source, channels, resolution, cache)
    shape = (len(source), channels, resolution, resolution)
    limits = {"max_bytes": max_cached_bytes, "skip_broken": skip_broken}
    pixels, broken = decode_or_reuse(source, shape, cache, key, **limits)

    if broken and not skip_broken:  # found by an earlier call that left them out
        raise unreadable(source.label(min(broken)), broken[min(broken)])
    if len(broken) == len(source):
        raise ValueError(f"none of the {len(source)} images in {name!r} can be read: {source.label(0)} ({broken[0]})")
    if broken:
        first = ", ".join(source.label(number) for number in sorted(broken)[:3])
        warnings.warn(f"{name}: left out {len(broken)} of {len(source)} images, not readable: {first}", stacklevel=2)
        key = digest(key, sorted(broken))
    if pixels is None:
        readable = np.delete(np.arange(len(source)), sorted(broken))
        pixels = DecodedOnAccess(source, readable, channels, resolution)
    return ImageSet(name, split, key, pixels)


def _load_digits(split: str | None, resolution: int, channels: int) -> ImageSet:
    images = digits(split)
    pixels = np.stack([to_pixels(Image.fromarray(image), channels, resolution) for image in images])
    return ImageSet("digits", split, digest(images.tobytes(), channels, resolution), pixels)
