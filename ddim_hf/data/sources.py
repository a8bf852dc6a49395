"""Where images come from: the built-in digits, a folder of images, or what the datasets library loads."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .decoding import IMAGE_SUFFIXES
from .folders import ARCHIVE_SUFFIXES, open_folder, visible_files
from .labels import Labels
from .messages import ALLOWED, refuse_options, tell
from .tables import TABLE_SUFFIXES, find_image_column, is_saved_dataset, load_splits


class Source(Protocol):
    """Encoded images in a fixed order."""

    def __len__(self) -> int: ...

    def read(self, numbers: Iterable[int]) -> Iterator[bytes | None]:
        """Yield the images of these numbers as they are encoded; None where there is none."""

    def label(self, number: int) -> str:
        """What a message calls this image."""

    def stamp(self) -> str:
        """A text that is cheap to make and changes when the images do."""

    def labels(self, column: str | None) -> Labels:
        """The images' labels, of a table in that column; ValueError, in one line, where there are none."""


def open_source(
    name: str,
    split: str | None = None,
    *,
    image_column: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    refresh_cache: bool = False,
    whole: bool = False,
) -> tuple[Source, str]:
    """The encoded images of the chosen split, and that split's name; the arguments are those of `load_images`.

    With `whole`, a set of several splits is refused, where else "train" is taken of it.

    Raises:
        ValueError, FileNotFoundError: in one line, for a set, split or column that is not there.
        ImportError: the set needs a library that is not installed.
    """
    path = local_path(name)
    tell_where(name, path)
    files = visible_files(name, path) if is_plain_folder(path) else []
    if path.exists():
        refuse_options(name, revision=revision)
    if is_plain_folder(path) and not needs_datasets(files):
        refuse_options(name, image_column=image_column, config_name=config_name)
        splits = open_folder(name, path, files)
        split = choose_split(name, splits, split, whole)
        return splits[split], split
    if path.is_file() or is_saved_dataset(path):
        refuse_options(name, config_name=config_name)
    splits = load_splits(name, path, files, config_name, revision, refresh_cache)
    split = choose_split(name, splits, split, whole)
    if len(splits[split]) == 0:
        raise ValueError(f"the split {split!r} of {name!r} holds no images")
    return find_image_column(name, splits[split], image_column), split


def local_path(name: str) -> Path:
    """Where a set lies, or would lie: what is not there is a dataset's id on the Hub."""
    path = Path(name).expanduser()
    if not name or not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise FileNotFoundError(f"{name!r} does not exist: {ALLOWED}")
    if path.is_file() and path.suffix != ".parquet":
        raise ValueError(f"{name!r} is a file, and not a .parquet file: {ALLOWED}")
    return path


def tell_where(name: str, path: Path):
    """Warn where a name may have been meant for another set than the one that it stands for."""
    if name == "digits" and path.is_dir():
        tell("'digits' is the built-in set; the folder of that name is './digits'")
    elif name != "digits" and not path.exists() and ("/" not in name or path.parent.is_dir()):
        tell(f"{name!r} is no folder or file here, and is asked for on the Hub")


def is_on_hub(name: str) -> bool:
    """Whether a set's name, seen from the working directory, is an id on the Hub: neither built in nor a path."""
    return name != "digits" and not local_path(name).exists()


def is_plain_folder(path: Path) -> bool:
    return path.is_dir() and not is_saved_dataset(path)


def needs_datasets(files: list[Path]) -> bool:
    """Whether a folder of these files is one of tables, or of archives alone, which the datasets library reads."""
    suffixes = {file.suffix.lower() for file in files}
    if suffixes.intersection(IMAGE_SUFFIXES):
        return bool(suffixes.intersection(TABLE_SUFFIXES))
    return bool(suffixes.intersection((*TABLE_SUFFIXES, *ARCHIVE_SUFFIXES)))


def choose_split(name: str, splits: Mapping[str, Any], split: str | None, whole: bool = False) -> str:
    """The split that is asked for; else "train", or the only one."""
    present = [str(key) for key in splits]
    if whole and len(present) > 1:
        raise ValueError(f"{name!r} holds the splits {present}: name the folder of one of them")
    if split is None:
        split = present[0] if len(present) == 1 else "train"
    if split not in present:
        raise ValueError(f"{name!r} has no split {split!r}: choose from {present}")
    return split


def digits(split: str | None) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 handwritten digits, uint8 [N, 8, 8], and which they are, int64 [N]; "test" is every tenth,
    "train" the others."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install 'ddim_hf[demo]'") from error
    if split not in (None, "train", "test"):
        raise ValueError(f"'digits' has no split {split!r}: choose from ['test', 'train'], or None for all of it")
    whole = load_digits()
    held_out = np.arange(len(whole.target)) % 10 == 0
    chosen = {None: slice(None), "train": ~held_out, "test": held_out}[split]
    return np.round(whole.images[chosen] * (255 / 16)).astype(np.uint8), whole.target[chosen].astype(np.int64)
