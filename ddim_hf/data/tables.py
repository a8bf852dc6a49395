"""What the datasets library loads: parquet files, archives, saved datasets and those on the Hub."""

import glob
import io
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from .decoding import IMAGE_SUFFIXES
from .labels import Labels, choose_label_column, number_labels
from .messages import ALLOWED, reason, tell_left_out

TABLE_SUFFIXES = (".parquet", ".arrow")
BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset", ".zip": "imagefolder"}


class ImageColumn:
    """One column of a `datasets.Dataset`, read as Arrow so that nothing is decoded or copied on the way."""

    def __init__(self, name: str, dataset: Any, column: str):
        self.name, self.column, self.table = name, column, dataset
        self.dataset = dataset.select_columns([column]).with_format("arrow")
        self._archives: dict[str, Any] = {}  # opened once, as each opening reads the archive's list of files
        self._opening = threading.Lock()

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, numbers: Iterable[int]) -> Iterator[bytes | None]:
        for scalar in self.dataset[numbers][self.column]:
            value = scalar.as_py()
            if isinstance(value, dict):
                value = value.get("bytes") or self._read_path(value.get("path"))
            yield value

    def _read_path(self, path: str | None) -> bytes | None:
        """A local file, or what `datasets` reads by fsspec: "zip://image.png::archive.zip", "hf://...", "https://..."."""
        if not path or "://" not in path:
            return Path(path).read_bytes() if path and os.path.isfile(path) else None
        from fsspec.core import url_to_fs

        inner, _, archive = path.partition("::")
        if not archive:
            files, place = url_to_fs(path)
            return files.cat_file(place)
        with self._opening:
            if archive not in self._archives:
                files, _ = url_to_fs(path)
                files.ls("")  # reads the list, which another thread would else find half read
                self._archives[archive] = files
        return self._archives[archive].cat_file(inner.partition("://")[2])

    def label(self, number: int) -> str:
        return f"row {number} of {self.name}"

    def stamp(self) -> str:
        return f"{self.dataset._fingerprint}|{self.column}"

    def labels(self, column: str | None) -> Labels:
        """Those of the wanted column, or else of one that holds labels by its name or its type."""
        features = self.table.features
        column = find_label_column(self.name, features, column)
        values = self.table.select_columns([column]).with_format("arrow")[:][column].to_pylist()
        return number_labels(self.name, values, self.label, class_names(features[column]))


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` made it."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def load_splits(
    name: str, path: Path, files: list[Path], config_name: str | None, revision: str | None, refresh_cache: bool
) -> Mapping[str, Any]:
    """A `datasets.Dataset` for each split.

    Args:
        path: where it lies on this machine; nothing is there of a dataset on the Hub.
        files: of a folder.

    Raises:
        FileNotFoundError: whatever the datasets library has to say, in one line.
    """
    datasets = import_datasets()
    try:
        if is_saved_dataset(path):
            splits = datasets.load_from_disk(str(path))
        else:
            mode = "reuse_cache_if_exists" if refresh_cache else None  # what was downloaded is kept
            arguments = dataset_arguments(name, path, files, config_name, revision)
            splits = datasets.load_dataset(**arguments, download_mode=mode)
    except Exception as error:  # of many libraries: datasets, huggingface_hub, httpx, pyarrow
        raise not_loaded(name, error) from error
    if not isinstance(splits, dict):
        splits = {str(splits.split or "train"): splits}
    if files:
        _tell_mixed(name, files, next(iter(splits.values())))
    return splits


def import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError("this data needs the datasets library: pip install 'ddim_hf[train]'") from error
    return datasets


def not_loaded(name: str, error: Exception) -> FileNotFoundError:
    what = f"{type(error).__name__}: {reason(error)}"
    allowed = "choose a config_name (--dataset_config_name)" if "Config" in what else ALLOWED
    return FileNotFoundError(f"cannot load images from {name!r} ({what}): {allowed}")


def dataset_arguments(
    name: str, path: Path, files: list[Path], config_name: str | None, revision: str | None
) -> dict[str, Any]:
    """For `datasets.load_dataset`, which takes *, ? and [ in a local path for a pattern unless they are escaped."""
    if path.is_file():
        return {"path": "parquet", "name": config_name, "data_files": glob.escape(str(path))}
    if not path.is_dir():
        return {"path": name, "name": config_name, "revision": revision}
    root = glob.escape(str(path.resolve()))
    if root == str(path.resolve()):
        return {"path": str(path), "name": config_name}
    from datasets.data_files import get_data_patterns

    suffixes = {file.suffix.lower() for file in files}
    builder = next(builder for suffix, builder in BUILDERS.items() if suffix in suffixes)
    patterns = {str(split): [f"{root}/{each}" for each in some] for split, some in get_data_patterns(root).items()}
    return {"path": builder, "name": config_name, "data_files": patterns}


def _tell_mixed(name: str, files: list[Path], dataset: Any):
    """The datasets library reads the most frequent kind of file in a folder, and no other."""
    if dataset.builder_name == "imagefolder":
        beside = [f for f in files if f.suffix.lower() in TABLE_SUFFIXES and f.stem != "metadata"]  # its own labels
        tell_left_out(name, beside, "table beside the images")
    else:
        beside = [f for f in files if f.suffix.lower() in IMAGE_SUFFIXES]
        tell_left_out(name, beside, "image beside the tables")


def find_image_column(name: str, dataset: Any, wanted: str | None) -> ImageColumn:
    """The one column that holds images, by its type, or else by its bytes."""
    from datasets import Image as ImageFeature

    columns = dataset.features
    images = [column for column, feature in columns.items() if isinstance(feature, ImageFeature)]
    if not images or (wanted in columns and wanted not in images):
        images += [column for column in columns if column not in images and _holds_images(name, dataset, column)]
    return ImageColumn(name, dataset, choose_image_column(name, list(columns), images, wanted))


def choose_image_column(name: str, columns: list[str], images: list[str], wanted: str | None) -> str:
    """The wanted one of the columns that hold images, or the only one."""
    if wanted is not None and wanted not in columns:
        raise ValueError(f"{name!r} has no column {wanted!r}: its columns are {columns}")
    if wanted is not None and wanted not in images:
        raise ValueError(f"the column {wanted!r} of {name!r} does not hold images: choose from {images}")
    if not images:
        raise ValueError(f"{name!r} has no column of images: its columns are {columns}")
    if wanted is None and len(images) > 1:
        raise ValueError(f"{name!r} has several columns of images: choose image_column (--image_column) from {images}")
    return wanted or images[0]


def find_label_column(name: str, features: Mapping[str, Any], wanted: str | None) -> str:
    """The column of labels, among columns of these types."""
    of_classes = [column for column, feature in features.items() if class_names(feature)]
    return choose_label_column(name, list(features), of_classes, wanted)


def class_names(feature: Any) -> list[str] | None:
    """The names of the classes that a column's type holds (`datasets.ClassLabel`); None for any other."""
    return getattr(feature, "names", None)


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
