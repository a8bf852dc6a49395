"""The features of a cell that is not finished, in files: a killed evaluation goes on amid the cell."""

import shutil
import time
import warnings
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from ..data import default_cache
from ..data.cache import digest
from ..files import whole_file
from ..reports.provenance import package_versions

SAVE_SECONDS = 20.0  # between two files of a process


class Unfinished:
    """The features of the blocks of images that are done, by the number of a block's first image.

    Every process writes files of its own. Whichever number of processes goes on reads them all: each takes those
    blocks that fall to it, and they are the same whoever made them.

    Args:
        protocol: whatever the features depend on; versions of packages are added.
        cache_dir: as for `load_images`.
    """

    def __init__(self, protocol: dict[str, Any], cache_dir: str | Path | None):
        key = digest(sorted(protocol.items()), package_versions())
        self.folder = Path(cache_dir or default_cache()).expanduser() / "unfinished" / key
        self._waiting: dict[str, np.ndarray] = {}
        self._saved_at = time.monotonic()

    def load(self, firsts: Collection[int]) -> dict[int, np.ndarray]:
        """The features that are there of the blocks that begin with these images."""
        done: dict[int, np.ndarray] = {}
        for file in sorted(self.folder.glob("[!.]*.npz")):
            try:
                with np.load(file) as blocks:
                    done |= {int(first): blocks[first] for first in blocks.files if int(first) in firsts}
            except (OSError, ValueError, zipfile.BadZipFile):  # another evaluation of the same cell has ended, or torn
                continue
        return done

    def add(self, first: int, features: np.ndarray):
        """Keep a block's features [N, D]; every so often they are written."""
        self._waiting[str(first)] = features
        if time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self._save()

    def _save(self):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole_file(self.folder / f"{int(next(iter(self._waiting))):08d}.npz") as beside:
                np.savez(beside, **self._waiting)
        except OSError as error:
            warnings.warn(f"{self.folder} cannot be written ({error}): a kill would lose this cell", stacklevel=3)
        self._waiting.clear()
        self._saved_at = time.monotonic()

    def remove(self):
        """Forget them: the cell's figures are kept."""
        shutil.rmtree(self.folder, ignore_errors=True)
