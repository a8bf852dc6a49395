"""Files that are whole or not there: written beside their place, synced, and renamed into it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes the place of `path` when the block ends without an error.

    Other readers see the old file or the new one, whatever happens in between, a power cut included. The name to write
    to ends as `path` does, as some writers choose a format by it, and is this process's own.
    """
    path = Path(path)
    beside = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield beside
        sync(beside)
        beside.replace(path)
        sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: str | Path, text: str):
    """Replace a small file as a whole."""
    with whole_file(path) as beside:
        beside.write_text(text)


def sync(path: Path):
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
