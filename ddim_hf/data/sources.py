"""Where images come from: the built-in digits, a folder, parquet files, a saved dataset or one on the Hub."""

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from .decoding import IMAGE_SUFFIXES, reason

TABLE_SUFFIXES = (".parquet", ".arrow")  # left to the datasets library, and archives too where no images lie beside
DATASET_SUFFIXES = (*TABLE_SUFFIXES, ".tar", ".zip")
SPLIT_FOLDERS = {"train", "validation", "valid", "val", "test"}
ALLOWED = "give a folder of images, a parquet file, a Hub dataset's id (it needs the network once), or 'digits'"


class Source(Protocol):
    """Encoded images in a fixed order."""

    def __len__(self) -> int: ...

    def read(self, numbers: Iterable[int]) -> Iterator[bytes | None]:
        """Yield the images of these numbers as they are encoded; None where there is none."""

    def label(self, number: int) -> str:
        """What a message calls this image."""

    def stamp(self) -> str:
        """A text that is cheap to make and changes when the images do."""


class ImageFiles:
    """Image files."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, numbers: Iterable[int]) -> Iterator[bytes]:
        return (self.paths[number].read_bytes() for number in numbers)

    def label(self, number: int) -> str:
        return str(self.paths[number])

    def stamp(self) -> str:
        stats = ((path, path.stat()) for path in self.paths)
        return "\n".join(f"{path.absolute()}|{stat.st_size}|{stat.st_mtime_ns}" for path, stat in stats)


class ImageColumn:
    """One column of a `datasets.Dataset`, read as Arrow so that nothing is decoded or copied on the way."""

    def __init__(self, name: str, dataset: Any, column: str):
        self.name, self.column = name, column
        self.dataset = dataset.select_columns([column]).with_format("arrow")

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, numbers: Iterable[int]) -> Iterator[bytes | None]:
        for scalar in self.dataset[numbers][self.column]:
            value = scalar.as_py()
            if isinstance(value, dict):
                path = value.get("path")
                value = value.get("bytes") or (Path(path).read_bytes() if path and os.path.isfile(path) else None)
            yield value

    def label(self, number: int) -> str:
        return f"row {number} of {self.name}"

    def stamp(self) -> str:
        return f"{self.dataset._fingerprint}|{self.column}"


def open_source(
    name: str, split: str | None = None, image_column: str | None = None, revision: str | None = None
) -> tuple[Source, str]:
    """The images of the chosen split, and that split's name.

    Raises:
        ValueError, FileNotFoundError: in one line, for a set, split or column that is not there.
        ImportError: the set needs a library that is not installed.
    """
    path = Path(name).expanduser()
    if not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1 or not name):
        raise FileNotFoundError(f"{name!r} does not exist: {ALLOWED}")
    if path.is_file() and path.suffix != ".parquet":
        raise ValueError(f"{name!r} is a file, and not a .parquet file: {ALLOWED}")
    if path.is_dir() and not _is_saved_dataset(path):
        files = _walk(path)
        suffixes = {file.suffix.lower() for file in files}
        tables = TABLE_SUFFIXES if suffixes.intersection(IMAGE_SUFFIXES) else DATASET_SUFFIXES
        if not suffixes.intersection(tables):
            return _open_folder(name, path, files, split, image_column)
    return _open_dataset(name, path, split, image_column, revision)


def digits(split: str | None) -> np.ndarray:
    """scikit-learn's 1,797 handwritten digits, uint8 [N, 8, 8]; "test" is every tenth, "train" the others."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install 'ddim_hf[demo]'") from error
    images = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    splits = {None: images, "train": np.delete(images, slice(0, None, 10), axis=0), "test": images[::10]}
    if split not in splits:
        raise ValueError(f"'digits' has no split {split!r}: choose from ['test', 'train'], or None for all of it")
    return splits[split]


# Folders of image files


def _open_folder(
    name: str, root: Path, files: list[Path], split: str | None, image_column: str | None
) -> tuple[ImageFiles, str]:
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise FileNotFoundError(f"no images in the folder {name!r}: allowed are {' '.join(IMAGE_SUFFIXES)}, .parquet")
    if image_column is not None:
        raise ValueError(f"no column {image_column!r}: the folder {name!r} holds image files, which have no columns")
    splits = {"train": images}
    tops = {image.relative_to(root).parts[0] for image in images if image.parent != root}
    if tops and ("train" in tops or tops <= SPLIT_FOLDERS):
        splits = {top: [i for i in images if root / top in i.parents] for top in sorted(tops & SPLIT_FOLDERS)}
    split = _choose_split(name, splits, split)
    return ImageFiles(sorted(splits[split], key=Path.as_posix)), split


def _walk(root: Path) -> list[Path]:
    """Every file below `root`, through links to folders too, without hidden ones."""
    found = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = [sub for sub in subfolders if not sub.startswith((".", "__MACOSX"))]
        found += [Path(folder, file) for file in files if not file.startswith(".")]
    return found


def _choose_split(name: str, splits: Mapping[str, Any], split: str | None) -> str:
    """The split that is asked for; else "train", or the only one."""
    present = [str(key) for key in splits]
    if split is None:
        split = present[0] if len(present) == 1 else "train"
    if split not in present:
        raise ValueError(f"{name!r} has no split {split!r}: choose from {present}")
    return split


# What the datasets library loads


def _is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` made it."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _open_dataset(
    name: str, path: Path, split: str | None, image_column: str | None, revision: str | None
) -> tuple[ImageColumn, str]:
    try:
        import datasets
    except ImportError as error:
        raise ImportError("this data needs the datasets library: pip install 'ddim_hf[train]'") from error
    try:
        if path.is_dir() and _is_saved_dataset(path):
            splits = datasets.load_from_disk(str(path))
        elif path.is_file():
            splits = datasets.load_dataset("parquet", data_files=str(path))
        else:
            splits = datasets.load_dataset(str(path) if path.is_dir() else name, revision=revision)
    except Exception as error:  # of many libraries: datasets, huggingface_hub, httpx, pyarrow
        message = f"cannot load images from {name!r} ({type(error).__name__}: {reason(error)}): {ALLOWED}"
        raise FileNotFoundError(message) from error

    if not isinstance(splits, dict):
        splits = {str(splits.split or "train"): splits}
    split = _choose_split(name, splits, split)
    if len(splits[split]) == 0:
        raise ValueError(f"the split {split!r} of {name!r} holds no images")
    return ImageColumn(name, splits[split], _find_column(name, splits[split], image_column)), split


def _find_column(name: str, dataset: Any, wanted: str | None) -> str:
    """The one column that holds images, by its type, or else by its bytes."""
    from datasets import Image as ImageFeature

    features = dataset.features
    if wanted is not None and wanted not in features:
        raise ValueError(f"{name!r} has no column {wanted!r}: its columns are {list(features)}")
    images = [column for column, feature in features.items() if isinstance(feature, ImageFeature)]
    if not images or (wanted and wanted not in images):
        images += [column for column in features if column not in images and _holds_images(name, dataset, column)]
    if wanted is not None and wanted not in images:
        raise ValueError(f"the column {wanted!r} of {name!r} does not hold images: choose from {images}")
    if not images:
        raise ValueError(f"{name!r} has no column of images: its columns are {list(features)}")
    if wanted is None and len(images) > 1:
        raise ValueError(f"{name!r} has several columns of images: choose image_column (--image_column) from {images}")
    return wanted or images[0]


def _holds_images(name: str, dataset: Any, column: str) -> bool:
    kind = str(dataset.data.schema.field(column).type)
    if kind not in ("binary", "large_binary") and not (kind.startswith("struct<") and "bytes: " in kind):
        return False
    first = range(min(8, len(dataset)))  # one torn image must not hide a column of images
    for encoded in ImageColumn(name, dataset, column).read(first):
        with suppress(Exception):
            Image.open(io.BytesIO(encoded))
            return True
    return False
