"""What a set of images is, told without decoding it, and without writing or downloading anything."""

import io
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..reports.words import counted
from .decoding import IMAGE_SUFFIXES, is_grey
from .folders import ImageFiles, visible_files
from .labels import in_order
from .messages import refuse_options, tell
from .sources import (
    Source,
    choose_split,
    digits,
    is_plain_folder,
    local_path,
    needs_datasets,
    open_source,
    tell_where,
)
from .tables import (
    choose_image_column,
    class_names,
    dataset_arguments,
    find_label_column,
    import_datasets,
    is_saved_dataset,
    not_loaded,
)

LOOKED_AT = 64  # images whose headers are read


@dataclass(frozen=True)
class ImageDescription:
    """A set of images; what cannot be known without a download is None or empty.

    `kind` says where they come from, `modes` are Pillow's, the most frequent first, `smallest` and `largest` the least
    and greatest (width, height) that occur, `square` where all are: these of the `looked_at` images alone, which lie
    evenly over the set (of tables, at its beginning). `num_folders` is the number of folders directly below the set's
    or the split's own that hold all the image files, 0 where some lie beside them and for other kinds.
    `label_names` are the names of the classes, () where they were not asked for, None where a table has to be read
    through for them.
    """

    name: str
    kind: str
    split: str | None
    num_images: int | None
    modes: tuple[str, ...]
    smallest: tuple[int, int] | None
    largest: tuple[int, int] | None
    looked_at: int
    num_folders: int = 0
    label_names: tuple[str, ...] | None = ()
    square: bool = False

    @property
    def channels(self) -> int | None:
        """1 if all images that were looked at are grey, else 3."""
        if not self.modes:
            return None
        return 1 if all(map(is_grey, self.modes)) else 3

    def __str__(self) -> str:
        count = "an unknown number of images" if self.num_images is None else counted(self.num_images, "image")
        words = [f"{count} in {self.kind} {self.name!r}"]
        words += [f"split {self.split!r}"] if self.split else []
        if self.modes:
            small, large = (" x ".join(map(str, size)) for size in (self.smallest, self.largest))
            words += ["/".join(self.modes), f"{small} pixels" if small == large else f"{small} to {large} pixels"]
        return ", ".join(words)


def describe_images(
    name: str,
    split: str | None = None,
    *,
    image_column: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    labelled: bool = False,
    label_column: str | None = None,
) -> ImageDescription:
    """Say what `load_images` would open with these arguments, from headers and metadata alone.

    Nothing is written: no cache, no prepared dataset. Of a dataset on the Hub its card and its list of files are asked
    for; where the Hub cannot be reached, the number of images is unknown.

    Raises:
        ValueError, FileNotFoundError, ImportError: as `load_images` does.
    """
    options = {"image_column": image_column, "config_name": config_name, "revision": revision}
    path = local_path(name)
    tell_where(name, path)
    if name == "digits":
        refuse_options(name, **options, label_column=label_column)
        images, names = digits(split)[0], in_order(map(str, range(10))) if labelled else ()
        described = _describe("the built-in set", name, split, len(images), map(Image.fromarray, images[:1]))
        return replace(described, label_names=names)
    files = visible_files(name, path) if is_plain_folder(path) else []
    if is_saved_dataset(path) or is_plain_folder(path) and not needs_datasets(files):
        source, split = open_source(name, split, **options)
        described = describe_source(
            "the saved dataset" if is_saved_dataset(path) else "the folder", name, split, source
        )
        return replace(described, label_names=source.labels(label_column).names if labelled else ())
    return _describe_table(name, path, files, split, **options, labelled=labelled, label_column=label_column)


def describe_source(kind: str, name: str, split: str | None, source: Source) -> ImageDescription:
    """Say what an open source holds, from the headers of images that lie evenly over it."""
    numbers = np.unique(np.linspace(0, len(source) - 1, LOOKED_AT).round().astype(int)).tolist()
    described = _describe(kind, name, split, len(source), _opened(source.read(numbers)))
    if not isinstance(source, ImageFiles):
        return described
    tops = {path.relative_to(source.root).parts[:-1][:1] for path in source.paths}
    return replace(described, num_folders=0 if () in tops else len(tops))


def _describe(
    kind: str, name: str, split: str | None, count: int | None, images: Iterable[Image.Image]
) -> ImageDescription:
    seen = [(_mode(image), image.size) for image in images]
    modes = tuple(mode for mode, _ in Counter(mode for mode, _ in seen).most_common())
    sizes = [size for _, size in seen]
    smallest, largest = (tuple(map(of, zip(*sizes, strict=True))) if sizes else None for of in (min, max))
    square = bool(sizes) and all(width == height for width, height in sizes)
    return ImageDescription(name, kind, split, count, modes, smallest, largest, len(seen), square=square)


def _opened(encoded: Iterable[bytes | None]) -> Iterator[Image.Image]:
    """Those that Pillow knows; their pixels are not decoded."""
    for image in encoded:
        with suppress(Exception):
            yield Image.open(io.BytesIO(image))


def _describe_table(
    name: str,
    path: Path,
    files: list[Path],
    split: str | None,
    image_column: str | None,
    config_name: str | None,
    revision: str | None,
    labelled: bool,
    label_column: str | None,
) -> ImageDescription:
    datasets = import_datasets()
    if path.exists():
        refuse_options(name, revision=revision)
    arguments = dataset_arguments(name, path, files, config_name, revision)
    with tempfile.TemporaryDirectory() as scratch:  # for the lock that the library makes
        try:
            builder = datasets.load_dataset_builder(**arguments, cache_dir=scratch)
        except ConnectionError:
            tell(f"{name!r} is not here, and the Hub cannot be reached: what it holds is not known")
            return replace(_describe("the Hub's dataset", name, split, None, []), label_names=None if labelled else ())
        except Exception as error:  # of many libraries, as when it is loaded
            raise not_loaded(name, error) from error
        by_split = {str(key): list(paths) for key, paths in builder.config.data_files.items()}
        split = choose_split(name, by_split, split)
        if not path.exists():
            known = (builder.info.splits or {}).get(split)
            described = _describe("the Hub's dataset", name, split, known and known.num_examples, [])
            names = _label_names(name, builder.info.features, label_column) if labelled else ()
            return replace(described, label_names=names)
        stream = builder.as_streaming_dataset(split=split)
        names = _label_names(name, stream.features, label_column) if labelled else ()
        if stream.features:
            stream = stream.decode(False)  # one image that cannot be read would end it
        images = _images_in(name, stream, image_column)
    kind = "the tables" if path.is_dir() else "the table"
    return replace(_describe(kind, name, split, _count(by_split[split]), images), label_names=names)


def _label_names(name: str, features: Mapping[str, Any] | None, wanted: str | None) -> tuple[str, ...] | None:
    """The classes that the columns' types name, where they are known."""
    names = class_names(features[find_label_column(name, features, wanted)]) if features else None
    return names and tuple(names)


def _images_in(name: str, stream: Any, wanted: str | None) -> list[Image.Image]:
    """Those of the first rows, in the column that `find_image_column` would find."""
    rows = list(itertools.islice(stream, LOOKED_AT))
    if not rows:
        return []
    seen = [{key: image for key, value in row.items() if (image := _as_image(value))} for row in rows]
    kind = import_datasets().Image
    columns = [column for column, feature in (stream.features or {}).items() if isinstance(feature, kind)]
    if not columns or wanted not in (None, *columns):
        columns = list(dict.fromkeys([*columns, *itertools.chain(*seen)]))
    column = choose_image_column(name, list(rows[0]), columns, wanted)
    return [images[column] for images in seen if column in images]


def _as_image(value: Any) -> Image.Image | None:
    """A value of a row as an image, if it is one; of those in an archive the row has the path alone."""
    if isinstance(value, dict) and value.get("bytes") is None and value.get("path"):
        with suppress(Exception):
            return import_datasets().Image().decode_example(value)
    if isinstance(value, dict):
        value = value.get("bytes")
    return next(_opened([value]), None) if isinstance(value, bytes) else None


def _count(files: list[str]) -> int | None:
    """The images in local files, where that can be read from parquet's footer, or seen from their names."""
    from pyarrow.parquet import read_metadata

    suffixes = {Path(file).suffix.lower() for file in files}
    if suffixes == {".parquet"}:
        return sum(read_metadata(file).num_rows for file in files)
    return len(files) if suffixes <= set(IMAGE_SUFFIXES) else None


def _mode(image: Image.Image) -> str:
    """Pillow's mode; one with alpha also where a PNG says in another way which colour is transparent."""
    marked = "transparency" in image.info and image.mode in ("L", "P", "RGB", "I;16")
    return image.mode + "A" * marked
