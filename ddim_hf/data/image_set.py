"""A set of images, from wherever they come, as uint8 tensors of one shape."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .cache import MAX_CACHED_BYTES, THREADS, decode_or_reuse, default_cache, digest, fingerprint
from .decoding import DECODING, decode, to_pixels
from .labels import Labels, in_order, keep_labels
from .messages import reason, refuse_options, tell, unreadable
from .sources import Source, digits, open_source


class ImageSet:
    """A read-only sequence of images, all of one shape.

    `shape` is (N, C, H, W), `name` as given to `load_images`, `split` the split it chose (None: all of the digits).
    `labels` is int64 [N], which of `label_names` each image is; None and () where they were not asked for.
    `fingerprint` is a hex string made from the images' encoded bytes, their order, resolution and channels, and from
    the labels: the same in every process and on every machine that holds the same data, wherever it lies.
    """

    def __init__(
        self,
        name: str,
        split: str | None,
        fingerprint: str,
        pixels: "np.ndarray | DecodedOnAccess",
        labels: Labels | None = None,
    ):
        self.name, self.split, self.fingerprint = name, split, fingerprint
        self.shape = tuple(pixels.shape)
        self.labels, self.label_names = (labels.numbers, labels.names) if labels else (None, ())
        self._pixels, self._unlabelled = pixels, fingerprint
        if labels:
            self.fingerprint = digest(fingerprint, labels.names, labels.numbers.tolist())

    def labels_as(self, names: Sequence[str], whose: str = "the names") -> np.ndarray:
        """The labels as numbers into other names, such as a model's, int64 [N].

        Raises:
            ValueError: an image has a label that is not among them.
        """
        return Labels(self.labels, self.label_names).numbered_as(names, whose)

    def unlabelled(self) -> "ImageSet":
        """The same images as a set without labels."""
        return ImageSet(self.name, self.split, self._unlabelled, self._pixels)

    def __len__(self) -> int:
        return self.shape[0]

    def label(self, number: int) -> str:
        """What a message calls this image."""
        return f"image {number} of {self.name}"

    def __getitem__(self, indices) -> torch.Tensor:
        """The images at `indices`: a new uint8 tensor [B, C, H, W].

        Args:
            indices: a slice; ints, or a bool for each image, as a list, array or 1-D tensor.

        Raises:
            IndexError: other indices, or none of this set.
        """
        if isinstance(indices, slice):
            indices = np.arange(len(self))[indices]
        else:
            indices = torch.as_tensor(indices).flatten().cpu().numpy()
            if not len(indices):
                indices = indices.astype(np.int64)
            if indices.dtype == bool and len(indices) != len(self):
                raise IndexError(f"a mask of {len(indices)} for {len(self)} images; allowed: a bool for each")
            if indices.dtype.kind not in "biu":
                raise IndexError(f"indices are of {indices.dtype}; allowed: whole numbers, or a bool for each image")
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
            except MemoryError:
                raise
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
    config_name: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    refresh_cache: bool = False,
    skip_broken: bool = False,
    max_cached_bytes: int = MAX_CACHED_BYTES,
    labelled: bool = False,
    label_column: str | None = None,
) -> ImageSet:
    """Open a set of images, each centre-cropped and resized (Lanczos, antialiased) to `resolution` pixels a side.

    Any image mode becomes `channels` 1 or 3: alpha is laid on white, 16 bits are scaled to 8, floats are taken as 0..1
    (or 0..255 where any is above 1), whole numbers of 32 bits as 0..255 (or 0..65535 where any is above 255). Of an
    animation, or of several pages, the first picture is taken, which a warning says when they are decoded.

    Decoded images are kept in `cache_dir` by their fingerprint, a hash of their encoded bytes. So that a known set is
    not read through each time, the fingerprint is remembered by what is cheap to look up: of image files the path,
    size, inode and times of last modification and change, so that a replaced file is always seen; of everything else
    the `datasets` library's own fingerprint, which sees a replaced file by its modification time alone.

    Args:
        name: "digits" (scikit-learn's 1,797 images; "test" is every tenth, "train" the others); a folder of images,
            of parquet files or of ZIP or TAR archives; what `ddim_hf.generation.generate` wrote; one parquet file; a
            `save_to_disk` folder; or a dataset's id on the Hub.
        split: None means "train", or else the only one; of the digits all. The folders train, validation, valid, val
            and test, in small letters or capitals, are splits if no other folder beside them holds images; else all
            images are the split "train".
        image_column: found by its type, or by its bytes, if not given.
        config_name: the configuration, of a dataset that has several.
        revision: branch, tag or commit of a dataset on the Hub.
        cache_dir: default `$DDIM_HF_CACHE`, else `$XDG_CACHE_HOME/ddim_hf`, else `~/.cache/ddim_hf`.
        refresh_cache: read and decode everything again, whatever is remembered.
        skip_broken: leave out images that cannot be read, with a warning.
        max_cached_bytes: sets that are larger when decoded are read through once and then decoded on each access.
        labelled: read the labels too: which digit it is; the folder, directly below the set's or the split's own, that
            an image file lies in; a table's column of strings, ints or `ClassLabel`. Numbers are classes in their
            order, other names in that of the alphabet. They are kept beside the pixels.
        label_column: found by its name (label, labels, fine_label, class, target), else by its type, if not given.

    Raises:
        ValueError, FileNotFoundError: in one line, for a set, split or column that is not there, for an image that
            cannot be read and, where labels are asked for, for one that has none.
        OSError: the disk is too full for the cache.
        ImportError: the set needs a library that is not installed.
    """
    if channels not in (1, 3) or resolution < 1:
        raise ValueError(f"channels must be 1 or 3 and resolution at least 1, not {channels} and {resolution}")
    chosen = {"image_column": image_column, "config_name": config_name, "revision": revision}
    if name == "digits":
        refuse_options(name, **chosen, label_column=label_column)
        return _load_digits(split, resolution, channels, labelled)
    source, split = open_source(str(name), split, **chosen, refresh_cache=refresh_cache)
    cache = Path(cache_dir).expanduser() if cache_dir else default_cache()
    labels = None
    if labelled:  # first, as it takes no time
        # By the name too: of the same files it says below which folder the class folders lie.
        file = cache / f"{digest(source.stamp(), 'labels', str(name), label_column)}.labels.json"
        labels = keep_labels(file, len(source), lambda: source.labels(label_column), refresh_cache)
    key = fingerprint(source, channels, resolution, cache, refresh_cache)
    shape = (len(source), channels, resolution, resolution)
    options = {"max_bytes": max_cached_bytes, "skip_broken": skip_broken, "refresh": refresh_cache}
    pixels, broken = decode_or_reuse(source, shape, cache, digest(key, DECODING), **options)

    if broken and not skip_broken:  # found by an earlier call that left them out
        raise unreadable(source.label(min(broken)), broken[min(broken)])
    if len(broken) == len(source):
        raise ValueError(f"none of the {len(source)} images in {name!r} can be read: {source.label(0)} ({broken[0]})")
    if broken:
        first = ", ".join(source.label(number) for number in sorted(broken)[:3])
        tell(f"{name}: left out {len(broken)} of {len(source)} images, not readable: {first}")
        key = digest(key, sorted(broken))
        labels = labels and replace(labels, numbers=np.delete(labels.numbers, sorted(broken)))
    if pixels is None:
        readable = np.delete(np.arange(len(source)), sorted(broken))
        pixels = DecodedOnAccess(source, readable, channels, resolution)
    return ImageSet(name, split, key, pixels, labels)


def _load_digits(split: str | None, resolution: int, channels: int, labelled: bool) -> ImageSet:
    images, which = digits(split)
    labels = Labels(which, in_order(map(str, range(10)))) if labelled else None
    pixels = np.stack([to_pixels(Image.fromarray(image), channels, resolution) for image in images])
    return ImageSet("digits", split, digest(images.tobytes(), channels, resolution), pixels, labels)
